"""A contact sheet shows what an answer drew on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation.contact_sheet import SheetQuery, draw_contact_sheet
from bindlm.evaluation.media_picture import picture_of

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)


@dataclass
class Row:
    caption: str | None = "a lamp"
    source: str | None = None
    similarity: float = 0.5
    weight: float = 0.25


def flat(path: Path, colour: tuple[int, int, int]) -> str:
    Image.new("RGB", (64, 32), colour).save(path)
    return str(path)


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        found = sheet.convert("RGB").getcolors(1 << 20)
    assert found is not None
    return {colour for _, colour in found if isinstance(colour, tuple)}


def test_query_and_readable_sources_are_shown_as_pictures(tmp_path: Path) -> None:
    query = SheetQuery("image", flat(tmp_path / "asked.png", RED))
    rows = [Row(source=flat(tmp_path / "one.png", GREEN)), Row(source=flat(tmp_path / "two.png", BLUE))]
    draw_contact_sheet(query, rows, tmp_path / "sheet.png")
    assert {RED, GREEN, BLUE} <= colours(tmp_path / "sheet.png")


def test_a_relative_source_starts_from_the_given_folder(tmp_path: Path) -> None:
    flat(tmp_path / "one.png", GREEN)
    query = SheetQuery("text", "a lamp")
    draw_contact_sheet(query, [Row(source="one.png")], tmp_path / "sheet.png", root=tmp_path)
    assert GREEN in colours(tmp_path / "sheet.png")
    draw_contact_sheet(query, [Row(source="one.png")], tmp_path / "sheet.png", root=tmp_path / "elsewhere")
    assert GREEN not in colours(tmp_path / "sheet.png")


@pytest.mark.parametrize(
    "source", [None, "", "gone.png", "https://example.org/a.png", "a\0b", "x" * 5000, "broken.png", "."]
)
def test_what_is_no_picture_file_is_a_tile_with_its_caption(tmp_path: Path, source: str | None) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    query = SheetQuery("text", "a lamp")
    draw_contact_sheet(query, [Row(caption="a lamp", source=source)], tmp_path / "one.png", root=tmp_path)
    draw_contact_sheet(query, [Row(caption="a stove", source=source)], tmp_path / "two.png", root=tmp_path)
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_a_larger_weight_has_a_longer_bar(tmp_path: Path) -> None:
    blue = (0, 114, 178)
    lengths = []
    for weight in (0.0, 0.3, 0.9, 7.0):  # the paper's weights are cosines and may sum up to more than 1
        draw_contact_sheet(SheetQuery("text", "a"), [Row(weight=weight)], tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            lengths.append(int((np.asarray(sheet) == blue).all(axis=2).any(axis=0).sum()))
    assert lengths[0] <= 1 < lengths[1] < lengths[2] < lengths[3] == 144


def test_one_input_makes_the_same_file_twice(tmp_path: Path) -> None:
    rows = [Row(caption=f"thing {number}", similarity=0.9 - number / 10) for number in range(7)]
    for name in ("one.png", "two.png"):
        draw_contact_sheet(SheetQuery("text", "what"), rows, tmp_path / name, title="This is a lamp.")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize(("count", "columns", "across"), [(1, 5, 1), (5, 5, 5), (7, 3, 3)])
def test_rows_are_no_wider_than_asked(tmp_path: Path, count: int, columns: int, across: int) -> None:
    draw_contact_sheet(SheetQuery("text", "a"), [Row()] * count, tmp_path / "sheet.png", columns=columns)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2 * 16 + 216 + 2 * 12 + across * (144 + 12) - 12


def test_several_mixed_media_are_all_shown(tmp_path: Path) -> None:
    queries = [
        SheetQuery("image", flat(tmp_path / "a.png", RED)),
        SheetQuery("image", flat(tmp_path / "b.png", GREEN)),
    ]
    draw_contact_sheet(queries, [Row()], tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert (sheet.format, sheet.height > 2 * 216) == ("JPEG", True)


def test_text_of_strangers_stays_in_its_tile(tmp_path: Path) -> None:
    caption = "\x1b[2J\u202e" + "very-long-word" * 400
    draw_contact_sheet(SheetQuery("text", caption), [Row(caption=caption)], tmp_path / "sheet.png", title=caption)
    with Image.open(tmp_path / "sheet.png") as sheet:
        right = np.asarray(sheet)[:, -15:]
    assert (right == 255).all()


@pytest.mark.parametrize("name", ["sheet", "sheet.gif", "sheet.pdf"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one of \.png"):
        draw_contact_sheet(SheetQuery("text", "a"), [Row()], tmp_path / name)


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 1 and 0"):
        draw_contact_sheet(SheetQuery("text", "a"), [], tmp_path / "sheet.png")
    with pytest.raises(ConfigError, match="got 0 and 1"):
        draw_contact_sheet([], [Row()], tmp_path / "sheet.png")
    with pytest.raises(ConfigError, match="tile 48 to 1024"):
        draw_contact_sheet(SheetQuery("text", "a"), [Row()], tmp_path / "sheet.png", tile=4)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError):
        draw_contact_sheet(SheetQuery("text", "a"), [Row()], tmp_path / "file" / "sheet.png")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


# -- media as pictures ------------------------------------------------------------------------------------------------


def test_a_tone_is_bright_at_its_pitch(tmp_path: Path) -> None:
    import soundfile

    rate, heights = 16_000, []
    for pitch_hz in (300, 3000):
        tone = 0.5 * np.sin(2 * np.pi * pitch_hz * np.arange(rate) / rate)
        soundfile.write(tmp_path / "tone.wav", tone, rate)
        picture = picture_of("audio", tmp_path / "tone.wav", size=128)
        assert picture is not None
        assert picture.size == (128, 128)
        heights.append(int(np.asarray(picture.convert("L")).astype(float).mean(axis=1).argmax()))
    assert heights[1] < heights[0] - 20, "a high tone stands near the top"


def test_shapes_are_shaded_on_white(tmp_path: Path) -> None:
    ball = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    np.save(tmp_path / "ball.npy", ball / np.linalg.norm(ball, axis=1, keepdims=True))
    depth = np.zeros((32, 32), dtype=np.uint16)
    depth[8:24, 8:24] = 900
    Image.fromarray(depth).save(tmp_path / "depth.png")
    for sense, name in (("point", "ball.npy"), ("depth", "depth.png")):
        picture = picture_of(sense, tmp_path / name, size=96)
        assert picture is not None
        pixels = np.asarray(picture)
        assert (pixels[0, 0] == 255).all(), sense
        assert (pixels[48, 48] < 240).all(), sense


@pytest.mark.parametrize("sense", ["image", "audio", "point", "depth", "text", "imu"])
def test_what_cannot_be_drawn_is_none(tmp_path: Path, sense: str) -> None:
    (tmp_path / "broken").write_bytes(b"nothing of the kind \x00\x01\x02")
    assert picture_of(sense, tmp_path / "broken") is None
