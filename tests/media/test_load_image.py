"""Where pictures come from, which way up they are, and what is said when there is none."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bindlm.errors import BindLMError, MediaError
from bindlm.media import ImageLimits, load_image

# EXIF 2.32, tag Orientation: the side of the seen picture at which row 0 and column 0 of the stored one lie.
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(seen: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores of `seen`, straight from the words of the standard."""
    row_side, column_side = ORIENTATIONS[orientation]
    height, width = seen.shape[:2]
    turned = row_side in ("left", "right")
    result = np.zeros((width, height, 3) if turned else seen.shape, dtype=np.uint8)
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            place = {}
            for side, distance in ((row_side, row), (column_side, column)):
                if side in ("top", "bottom"):
                    place["y"] = distance if side == "top" else height - 1 - distance
                else:
                    place["x"] = distance if side == "left" else width - 1 - distance
            result[row, column] = seen[place["y"], place["x"]]
    return result


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "packed TIFF", "opened PNG", "opened TIFF"])
def test_every_orientation_is_made_upright(format_name, orientation, encode):
    seen = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    image = Image.fromarray(stored(seen, orientation))
    options = {"WEBP": {"lossless": True}, "packed TIFF": {"compression": "tiff_lzw"}}.get(format_name, {})
    data = encode(image, format_name.split()[-1], exif=exif_of(orientation), **options)
    source = Image.open(io.BytesIO(data)) if format_name.startswith("opened") else data
    assert np.asarray(load_image(source)).tolist() == seen.tolist()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_of_a_jpeg_is_made_upright(orientation, encode):
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]], [[0, 0, 0], [255, 255, 0]]])
    seen = corners.astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1)  # blocks of a JPEG stay apart
    data = encode(Image.fromarray(stored(seen, orientation)), "JPEG", exif=exif_of(orientation), quality=95)
    loaded = load_image(data)
    assert loaded.size == (32, 48)
    centres = np.asarray(loaded)[8::16, 8::16].astype(int)
    assert np.abs(centres - corners).max() < 16


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation, encode):
    assert load_image(encode(Image.new("RGB", (5, 3)), "PNG", exif=exif_of(orientation))).size == (5, 3)


def test_all_sources_give_the_same_picture(tmp_path, picture, encode):
    data = encode(picture, "PNG")
    path = tmp_path / "ünï code.png"
    path.write_bytes(data)
    wanted = np.asarray(picture)
    with path.open("rb") as opened:
        sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), opened, picture]
        for source in sources:
            assert np.array_equal(np.asarray(load_image(source)), wanted)
        assert not opened.closed


def test_a_pil_picture_is_copied_not_changed(picture):
    source = picture.copy()
    source.info["comment"] = "mine"
    loaded = load_image(source)
    loaded.paste((0, 0, 0), (0, 0, 80, 60))
    assert np.array_equal(np.asarray(source), np.asarray(picture))
    assert source.info == {"comment": "mine"}


def test_pil_pictures_without_pixels_are_refused(tmp_path, picture, encode):
    with pytest.raises(MediaError, match="0 x 5"):
        load_image(Image.new("RGB", (0, 5)))
    closed = Image.open(io.BytesIO(encode(picture, "PNG")))
    closed.close()
    with pytest.raises(MediaError, match="closed"):
        load_image(closed)
    path = tmp_path / "cut off.png"
    path.write_bytes(encode(picture, "PNG")[:-2000])
    with Image.open(path) as lazy, pytest.raises(MediaError, match=r"cut off\.png.*pixels cannot be read"):
        load_image(lazy)
    with pytest.raises(MediaError, match="max_pixels"):
        load_image(picture, limits=ImageLimits(max_pixels=100))


def test_the_callers_limits_hold(picture, encode):
    data = encode(picture, "PNG")
    for limits, word in (
        (ImageLimits(max_bytes=len(data) - 1), "max_bytes"),
        (ImageLimits(max_pixels=80 * 60 - 1), "max_pixels"),
        (ImageLimits(max_side=79), "max_side"),
        (ImageLimits(min_side=61), "at least 61"),
        (ImageLimits(max_ratio=1.3), "max_ratio"),
    ):
        with pytest.raises(MediaError, match=word):
            load_image(data, limits=limits)
    exact = ImageLimits(max_bytes=len(data), max_pixels=80 * 60, max_side=80, min_side=60, max_ratio=80 / 60)
    assert load_image(data, limits=exact).size == (80, 60)


def test_the_name_given_is_the_name_in_the_message():
    with pytest.raises(MediaError, match=r"Cannot use picture 'upload 7': it is empty\. Give"):
        load_image(b"", name="upload 7")


def test_a_hostile_name_cannot_write_to_the_terminal():
    name = "a\x1b[2J\n\u202egnp\ud800.jpg"
    with pytest.raises(MediaError) as caught:
        load_image(name)
    assert str(caught.value).isprintable()
    assert r"a\x1b[2J\n\u202egnp\ud800.jpg" in str(caught.value)


def test_errors_are_one_class_without_a_decoders_traceback(encode, picture):
    with pytest.raises(MediaError) as caught:
        load_image(encode(picture, "BMP")[:-500])
    assert isinstance(caught.value, BindLMError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__cause__ is None
    assert isinstance(caught.value.__context__, OSError)  # Pillow's, which is not shown:
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("source", [None, 3, 1.5, [], ["cat.jpg"], {"a": 1}, object(), lambda: b""])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(MediaError, match="Give a path, bytes, or a file opened with mode 'rb'"):
        load_image(source)


def test_a_picture_at_the_limit_of_pixels_is_read(encode):
    """The limits refuse bombs, not large pictures: 60 million pixels, as a good camera gives."""
    image = Image.effect_noise((300, 200), 60).resize((9500, 6300), Image.Resampling.NEAREST)
    assert load_image(encode(image, "JPEG", quality=30)).size == (9500, 6300)


def test_a_file_renamed_is_told_by_its_content(tmp_path, picture, encode):
    path = tmp_path / "really a png.jpg"
    path.write_bytes(encode(picture, "PNG"))
    assert load_image(path).size == (80, 60)
    path.write_text("this is not a picture at all")
    with pytest.raises(MediaError, match=r"really a png\.jpg': it holds text"):
        load_image(path)


def test_old_style_thumbnails_do_not_stand_for_the_picture(encode):
    """An MPO file, as 3D cameras and phones write it, holds several pictures: the first one counts."""
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    data = encode(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 2
    red, green, blue = load_image(data).getpixel((16, 16))
    assert red > 250
    assert max(green, blue) < 5


def test_a_working_directory_is_respected(tmp_path, monkeypatch, picture, encode):
    (tmp_path / "cat.png").write_bytes(encode(picture, "PNG"))
    monkeypatch.chdir(tmp_path)
    assert load_image("cat.png").size == load_image(Path("cat.png")).size == (80, 60)
    assert load_image(os.path.join(".", "cat.png")).size == (80, 60)


def test_truncation_that_leaves_a_valid_header_is_still_refused(encode, picture):
    """A size field in the file that promises more rows than there are."""
    data = bytearray(encode(picture, "BMP"))
    data[22:26] = struct.pack("<i", 61)
    with pytest.raises(MediaError, match="cut off"):
        load_image(bytes(data))
