"""Sweet Home 3D's catalogue of furniture."""

import zipfile

import numpy as np
import pytest

from bindlm.training.mini.catalogue import clean_name, libraries, read_catalogue, read_properties

ENGLISH = r"""# comment
! another
id=Library

name#1=Small office chair 2
category#1 : Office
icon#1=/lib/chair.png
model#1=/lib/chair/chair.obj
modelRotation#1=0 0 1 0 1 0 \
    -1 0 0
width#1=50
depth#1=60.5
height#1=100
creator#1=Ren\u00e9
name#2=BMW (blue)
icon#2=/lib/car.png
model#2=/lib/car.obj
width#2=170
depth#2=400
height#2=150
"""
GERMAN = "name#1=B\u00fcrostuhl\nname#2=BMW (blue)\n"


@pytest.fixture
def folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "Lib.sh3f", "w") as library:
        library.writestr("PluginFurnitureCatalog.properties", ENGLISH.encode("latin-1"))
        library.writestr("PluginFurnitureCatalog_de.properties", GERMAN.encode("latin-1"))
        library.writestr("PluginFurnitureCatalog_zh_CN.properties", rb"name#1=\u529e\u516c\u6905")
        library.writestr("other_fr.properties", b"name#1=chaise")
    return tmp_path


def test_entries_have_names_sizes_rotations_and_creators(folder):
    [(name, entries)] = [(name, list(read_catalogue(library, name))) for name, library in libraries(folder)]
    assert name == "Lib"
    chair, car = entries
    assert (chair.id, chair.name, chair.category, chair.creator) == ("Lib-1", "small office chair", "Office", "René")
    assert chair.names == {"de": "Bürostuhl", "zh_CN": "办公椅"}
    assert (chair.icon, chair.model) == ("lib/chair.png", "lib/chair/chair.obj")
    assert chair.size == (0.5, 1.0, 0.605)
    np.testing.assert_array_equal(chair.rotation, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    assert (car.id, car.name, car.names, car.creator) == ("Lib-2", "bMW", {}, "")
    np.testing.assert_array_equal(car.rotation, np.eye(3))


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("a=1\nb = 2 \nc:3\nd 4", {"a": "1", "b": "2 ", "c": "3", "d": "4"}),
        ("key=one \\\n   two\\\n\tthree", {"key": "one twothree"}),
        ("key=ends with two \\\\\nb=2", {"key": "ends with two \\", "b": "2"}),
        ("a\\ b\\=c=d\\u00e9\\te\\q", {"a b=c": "dé\teq"}),
        ("  # no\n!no\n\n   a = # yes", {"a": "# yes"}),
        ("a=1\r\nb=2\rc=3", {"a": "1", "b": "2", "c": "3"}),
        ("empty=\nnothing", {"empty": "", "nothing": ""}),
        ("last=goes on\\", {"last": "goes on"}),
        ("fox=\\ud83e\\udd8a", {"fox": "🦊"}),
        ("half=\\ud83e", {"half": "�"}),
        ("twice=1\ntwice=2", {"twice": "2"}),
    ],
)
def test_properties_are_read_as_java_reads_them(text, entries):
    assert read_properties(text.encode("latin-1")) == entries


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Chair", "chair"),
        ("Corner sofa 12", "corner sofa"),
        ("Door (left) 2", "door"),
        ("", ""),
        ("3 seats", "3 seats"),
    ],
)
def test_numbers_and_remarks_are_no_part_of_a_name(raw, name):
    assert clean_name(raw) == name
