"""Emoji and their names in many languages."""

import json

import pytest
from PIL import Image

from bindlm.binding.pairs import read_pairs
from bindlm.binding.sources import emoji as module
from bindlm.binding.sources.emoji import EMOJI, fetch_emoji, read_names
from bindlm.checkpoints.home import home_path
from bindlm.errors import CheckpointError
from bindlm.training.mini.pictures import NamedPicture

XML = """<?xml version="1.0" encoding="UTF-8" ?>
<!DOCTYPE ldml SYSTEM "../../common/dtd/ldml.dtd">
<ldml><annotations>
<annotation cp="🐒">Affe | Tier</annotation>
<annotation cp="🐒" type="tts">Affe</annotation>
<annotation cp="❤\ufe0f" type="tts">rotes Herz</annotation>
<annotation cp="🦊" type="tts">↑↑↑</annotation>
</annotations></ldml>
"""


@pytest.fixture
def folder(tmp_path):
    names = tmp_path / "unicode-cldr-core/usr/share/unicode/cldr/common/annotations"
    names.mkdir(parents=True)
    (names / "de.xml").write_text(XML, encoding="utf-8")
    (names / "de_CH.xml").write_text(XML.replace("Affe", "Äffli"), encoding="utf-8")
    (names / "empty.xml").write_text("<ldml/>", encoding="utf-8")
    return names


def test_short_names_are_read_by_language_without_what_is_inherited(folder):
    assert read_names(folder) == {
        "de": {"🐒": "Affe", "❤": "rotes Herz"},
        "de_CH": {"🐒": "Äffli", "❤": "rotes Herz"},
    }


def test_a_broken_language_names_its_file(folder):
    (folder / "fr.xml").write_text("<ldml>")
    with pytest.raises(CheckpointError, match=r"fr\.xml is no XML"):
        read_names(folder)


def test_pictures_table_and_names_are_written(folder, tmp_path, monkeypatch):
    for package in EMOJI.packages:
        (tmp_path / package.name).mkdir(exist_ok=True)  # there already, so that nothing is downloaded
    monkey = NamedPicture("emoji-1f412", "monkey", "emoji", Image.new("RGBA", (9, 7), (9, 9, 9, 120)))
    fox = NamedPicture("emoji-1f98a", "fox", "emoji", Image.new("RGBA", (5, 5), "red"))
    monkeypatch.setattr(module, "load_emoji", lambda root: iter([monkey, fox]))
    summary = fetch_emoji(tmp_path / "out", tmp_path)
    assert dict(summary.counts) == {"objects": 2, "images": 2, "languages": 2, "names": 2}
    names = json.loads((summary.folder / "names.json").read_text(encoding="utf-8"))
    assert names == {"de": {"emoji-1f412": "Affe"}, "de_CH": {"emoji-1f412": "Äffli"}}
    pairs = read_pairs([summary.folder / "pairs.jsonl"], "text")
    assert pairs.media == ["monkey", "fox"]
    with Image.open(summary.folder / "images/emoji-1f412.png") as picture:
        assert picture.getpixel((0, 0)) == (9, 9, 9, 120), "alpha is kept"
    assert "Open Font License" in (summary.folder / "LICENCE.md").read_text()


@pytest.mark.slow
def test_the_real_packages_name_763_emoji_in_136_languages(tmp_path):
    root = home_path() / "debian"
    if missing := [each.name for each in EMOJI.packages if not (root / each.name).is_dir()]:
        pytest.skip(f"not unpacked in bindlm's cache: {', '.join(missing)}; `bindlm data fetch emoji` does that")
    assert dict(fetch_emoji(tmp_path, root).counts) == dict(EMOJI.counts)
    names = json.loads((tmp_path / "names.json").read_text(encoding="utf-8"))
    assert names["zh"]["emoji-1f412"] == "猴子"
