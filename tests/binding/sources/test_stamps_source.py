"""Tux Paint's stamps."""

import io
import json
import sys

import pytest
from PIL import Image

from bindlm.binding.pairs import read_pairs
from bindlm.binding.sources.stamps import STAMPS, fetch_stamps, picture_png, read_captions, read_options, read_stamps
from bindlm.checkpoints.home import home_path
from bindlm.errors import MediaError

FOLDER = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"


def png(colour="red"):
    content = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def root(tmp_path):
    """Three stamps of use, one without caption, one symbol, one broken."""
    files = {
        "animals/sheep.png": png(),
        "animals/sheep.txt": b"A sheep.\nde.utf8=Ein Schaf. \nen_GB.utf8=A sheep.\npt_BR.utf8=\n",
        "animals/sheep.dat": b"noflip\nscale 50%\n",
        "animals/sheep.ogg": b"OggS baa",
        "animals/sheep_desc_de.ogg": b"OggS spoken",
        "animals/sheep_mirror.png": png(),
        "symbols/a.png": png(),
        "symbols/a.txt": b"The letter A.",
        "symbols/a.ogg": b"OggS a",
        "food/broken.png": b"\x89PNG no",
        "food/broken.txt": b"A pie.",
        "food/ghost.png": png((0, 0, 0, 0)),
        "food/ghost.txt": b"A ghost.",
        "food/UK cake.png": png(),
        "food/UK cake.txt": b"UK cake (with cream)!",
    }
    for name, content in files.items():
        file = tmp_path / FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path


def test_stamps_have_captions_options_and_effects_but_no_symbols(root):
    stamps = {stamp.id: stamp for stamp in read_stamps(root / FOLDER)}
    assert sorted(stamps) == ["animals-sheep", "food-UK cake", "food-broken", "food-ghost"]
    sheep = stamps["animals-sheep"]
    assert (sheep.group, sheep.caption, sheep.name) == ("animals", "A sheep.", "sheep")
    assert sheep.captions == {"de": "Ein Schaf."}
    assert sheep.options == {"noflip": "", "scale": "50%"}
    assert sheep.sound.read_bytes() == b"OggS baa"
    assert stamps["food-UK cake"].name == "UK cake"
    assert stamps["food-UK cake"].sound is None


def test_captions_and_options_of_odd_files_are_read():
    assert read_captions(b"\xef\xbb\xbfAn owl.\r\nca@valencia.utf8= Un mussol \nnot a caption\nde.utf8=") == (
        "An owl.",
        {"ca@valencia": "Un mussol"},
    )
    assert read_captions(b"") == ("", {})
    assert read_captions("Caf\u00e9".encode("latin-1"))[0] == "Caf�"
    assert read_options(b"noflip\n\n# hm\ntinter=vector\nSCALE 1/4\n") == {
        "noflip": "",
        "tinter": "vector",
        "scale": "1/4",
    }


def test_all_rows_are_for_testing_and_broken_pictures_are_told(root, tmp_path):
    summary = fetch_stamps(tmp_path / "out", root)
    assert dict(summary.counts) == {"objects": 2, "images": 2, "sounds": 1, "languages": 1}
    assert [each.id for each in summary.skipped] == ["food-broken", "food-ghost"]
    rows = [json.loads(line) for line in (summary.folder / "pairs.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"test"}
    assert {row["licence"] for row in rows} == {"GPL-2"}
    audio = read_pairs([summary.folder / "pairs-audio.jsonl"], "audio")
    assert audio.labels == ["sheep"]
    assert len(audio.rows_of("test")) == 1
    assert len(read_pairs([summary.folder / "pairs.jsonl"], "text")) == 2
    assert json.loads((summary.folder / "names.json").read_text()) == {"de": {"animals-sheep": "Ein Schaf."}}
    assert "GPL-2" in (summary.folder / "LICENCE.md").read_text()
    assert not STAMPS.may_ship


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for resvg")
def test_svg_is_drawn_by_resvg_and_without_it_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "picture.png").write_bytes(png("blue"))
    (tmp_path / "a.svg").write_text("<svg/>")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(MediaError, match=r"resvg-cli.*librsvg2-bin"):
        picture_png(tmp_path / "a.svg")
    (tools / "resvg").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/log\nexec /bin/cat {tmp_path}/picture.png\n')
    (tools / "resvg").chmod(0o755)
    assert picture_png(tmp_path / "a.svg") == png("blue")
    assert str(tmp_path / "a.svg") in (tmp_path / "log").read_text()
    (tools / "resvg").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(MediaError, match=r"a\.svg: .*resvg does not read it"):
        picture_png(tmp_path / "a.svg")


def test_the_real_package_has_701_stamps_and_106_effects():
    folder = home_path() / "debian" / FOLDER
    if not folder.is_dir():
        pytest.skip("tuxpaint-stamps-default is not unpacked in bindlm's cache; `bindlm data fetch stamps` does that")
    stamps = list(read_stamps(folder))
    assert len(stamps) == STAMPS.counts["objects"] == 701
    assert sum(stamp.sound is not None for stamp in stamps) == STAMPS.counts["sounds"] == 106
    assert len({stamp.id for stamp in stamps}) == 701
    assert sum(stamp.picture.suffix == ".svg" for stamp in stamps) == 163
