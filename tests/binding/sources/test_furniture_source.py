"""Furniture: from a library to files and tables."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bindlm.binding.pairs import read_pairs
from bindlm.binding.sources import furniture as module
from bindlm.binding.sources.furniture import FURNITURE, depth_png, fetch_furniture, furniture_entries, views_of
from bindlm.binding.sources.splits import split_of
from bindlm.checkpoints.home import home_path
from bindlm.errors import MediaError
from bindlm.media.depth import load_depth
from bindlm.media.points import load_points
from bindlm.training.mini.catalogue import FURNITURE_FOLDER

PYRAMID = b"v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nv 0 0 2\nf 1 2 3 4\nf 1 2 5\nf 2 3 5\nf 3 4 5\nf 4 1 5\n"
ENTRY = """name#{0}={1}
category#{0}=Exterior
icon#{0}=/lib/icon.png
model#{0}=/lib/{2}
modelRotation#{0}=1 0 0 0 0 1 0 -1 0
width#{0}=200
depth#{0}=200
height#{0}=100
creator#{0}={3}
"""


def png(colour):
    content = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def root(tmp_path):
    """A package with one library: two good entries, and two broken ones."""
    folder = tmp_path / "root/sweethome3d-furniture" / FURNITURE_FOLDER
    folder.mkdir(parents=True)
    rows = [
        ("Tent", "tent.obj", "Ann"),
        ("Broken", "broken.obj", ""),
        ("Gone", "gone.obj", ""),
        ("Hut 2", "tent.obj", "Bo & Ann"),
    ]
    with zipfile.ZipFile(folder / "BlendSwap-CC-BY.sh3f", "w") as library:
        catalogue = "".join(ENTRY.format(number, *row) for number, row in enumerate(rows, start=1))
        library.writestr("PluginFurnitureCatalog.properties", catalogue)
        library.writestr("PluginFurnitureCatalog_de.properties", "name#1=Zelt")
        library.writestr("lib/icon.png", png("red"))
        library.writestr("lib/tent.obj", PYRAMID)
        library.writestr("lib/broken.obj", b"nothing")
    return tmp_path / "root"


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_library_becomes_clouds_depth_and_tables_and_broken_entries_are_told(root, tmp_path):
    folder = tmp_path / "out"
    summary = fetch_furniture(folder, root)
    assert dict(summary.counts) == {"objects": 2, "images": 2, "points": 2, "depth": 12}
    assert [(each.id, "gone.obj" in each.reason) for each in summary.skipped] == [
        ("BlendSwap-CC-BY-2", False),
        ("BlendSwap-CC-BY-3", True),
    ]
    for table in summary.tables:
        assert (folder / table).is_file()
    tent, hut = rows_of(folder / "pairs.jsonl")
    assert (tent["label"], tent["object"], hut["label"]) == ("tent", "BlendSwap-CC-BY-1", "hut")
    assert tent["split"] == split_of("tent")
    points = load_points(folder / tent["point"])
    assert points.shape == (4096, 3)
    np.testing.assert_allclose([points[:, 1].min(), points[:, 1].max()], [0, 1], atol=0.05)
    tip = points[points[:, 1] > 0.8]
    assert np.abs(tip[:, [0, 2]]).max() < 0.25, "it stands: the tip is on top"
    assert Image.open(folder / tent["image"]).mode == "RGBA"
    described = rows_of(folder / "objects.jsonl")
    assert described[0]["names"] == {"de": "Zelt"}
    assert described[0]["size"] == [2.0, 1.0, 2.0]
    note = (folder / "LICENCE.md").read_text()
    assert "CC BY 3.0" in note
    assert "Creators: Ann, Bo." in note


def test_depth_pictures_load_as_metres_and_differ_by_view(root, tmp_path):
    summary = fetch_furniture(tmp_path / "out", root)
    rows = rows_of(summary.folder / "pairs-depth.jsonl")
    maps = [load_depth(summary.folder / row["depth"]) for row in rows[:6]]
    assert {each.shape for each in maps} == {(128, 128)}
    for depth in maps:
        assert (depth == 0).any()
        assert 1 < depth[depth > 0].min() < depth.max() < 8
    assert len({each.tobytes() for each in maps}) == 6
    assert {row["object"] for row in rows[:6]} == {"BlendSwap-CC-BY-1"}
    assert len({row["split"] for row in rows[:6]}) == 1
    assert all(15 <= row["elevation"] <= 35 for row in rows)


def test_the_tables_are_ones_that_binding_reads(root, tmp_path):
    folder = fetch_furniture(tmp_path / "out", root).folder
    assert len(read_pairs([folder / "pairs.jsonl"], "point")) == 2
    assert len(read_pairs([folder / "pairs-depth.jsonl"], "depth")) == 12


def test_a_second_run_only_makes_what_is_missing(root, tmp_path, monkeypatch):
    folder = fetch_furniture(tmp_path / "out", root).folder
    before = {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    (folder / "depth/BlendSwap-CC-BY-4-3.png").unlink()
    (folder / "points/BlendSwap-CC-BY-4.npy").write_bytes(b"")  # of a full disk
    read = []
    surface = module.entry_surface
    monkeypatch.setattr(
        module, "entry_surface", lambda entry, library: read.append(entry.id) or surface(entry, library)
    )
    fetch_furniture(folder, root)
    assert set(read) == {"BlendSwap-CC-BY-2", "BlendSwap-CC-BY-3", "BlendSwap-CC-BY-4"}
    assert {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()} == before


def test_views_are_drawn_by_the_id_alone_and_go_all_around():
    views = views_of("BlendSwap-CC-BY-1")
    assert views == views_of("BlendSwap-CC-BY-1") != views_of("BlendSwap-CC-BY-2")
    gaps = np.diff(sorted(view.azimuth for view in views))
    assert gaps.max() < 100


def test_depth_too_far_for_sixteen_bits_is_refused():
    assert Image.open(io.BytesIO(depth_png(np.full((2, 2), 65.0)))).getpixel((0, 0)) == 65000
    with pytest.raises(MediaError, match="66.0 m"):
        depth_png(np.full((2, 2), 66.0))


def test_splits_hold_out_names_in_the_promised_shares():
    splits = [split_of(f"thing {number}") for number in range(4000)]
    assert splits.count("test") / 4000 == pytest.approx(0.15, abs=0.02)
    assert splits.count("validation") / 4000 == pytest.approx(0.06, abs=0.015)
    assert split_of("Chair") == split_of("chair")


def test_the_real_package_has_820_entries_with_whole_icons_and_models():
    folder = home_path() / "debian/sweethome3d-furniture" / FURNITURE_FOLDER
    if not folder.is_dir():
        pytest.skip("sweethome3d-furniture is not unpacked in bindlm's cache; `bindlm data fetch furniture` does that")
    entries = list(furniture_entries(Path(folder)))
    assert len(entries) == FURNITURE.counts["objects"] == 820
    assert len({entry.id for entry, _ in entries}) == 820
    assert all(entry.name and entry.names and entry.creator for entry, _ in entries)
    assert len({code for entry, _ in entries for code in entry.names}) == 20
    assert sum(not np.array_equal(entry.rotation, np.eye(3)) for entry, _ in entries) == 33
