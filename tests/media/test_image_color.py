"""Colours come out as they are meant, from every mode and through every profile."""

from __future__ import annotations

import colorsys
import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from bindlm.errors import MediaError
from bindlm.media import load_image


def first_pixel(image: Image.Image) -> tuple[int, ...]:
    return load_image(image).getpixel((0, 0))


def close(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 2) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("format_name", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I")])
def test_grey_of_sixteen_bits_is_scaled_not_clipped(format_name, mode, encode):
    values = np.array([[0, 128, 129, 257, 25_700, 32_768, 65_406, 65_407, 65_535]], dtype=np.uint16)
    data = encode(Image.frombytes(mode, (9, 1), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
                  if mode != "I" else Image.fromarray(values.astype(np.int32)), format_name)  # fmt: skip
    expected = np.rint(values[0] / 257).astype(int).tolist()
    assert expected == [0, 0, 1, 1, 100, 128, 254, 255, 255]
    assert np.asarray(load_image(data))[0].tolist() == [[grey] * 3 for grey in expected]


def test_all_65536_greys_are_rounded_to_the_nearest():
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(np.asarray(load_image(Image.fromarray(values)))[..., 0], np.rint(values / 257))


@pytest.mark.parametrize("value", [-1, 65_536])
def test_whole_numbers_beyond_sixteen_bits_are_refused(value):
    with pytest.raises(MediaError, match="0 to 65535"):
        load_image(Image.new("I", (2, 2), value))


def test_floats_from_0_to_1_are_scaled(encode):
    image = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    for source in (image, encode(image, "TIFF")):
        assert np.asarray(load_image(source))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, float("nan"), float("inf")])
def test_other_floats_are_refused(value, encode):
    image = Image.fromarray(np.array([[0, value]], dtype=np.float32))
    for source in (image, encode(image, "TIFF")):
        with pytest.raises(MediaError, match="0 to 1|NaN"):
            load_image(source)


def test_transparency_is_laid_over_white(encode):
    rgba = Image.new("RGBA", (2, 2), (200, 0, 100, 51))  # a fifth of the colour, four fifths of white
    mixed = (244, 204, 224)
    assert first_pixel(rgba) == first_pixel(encode(rgba, "PNG")) == first_pixel(rgba.convert("RGBa")) == mixed
    assert first_pixel(encode(rgba, "TIFF")) == first_pixel(encode(rgba, "WEBP", lossless=True)) == mixed
    for grey in (Image.new("LA", (2, 2), (100, 51)), Image.new("LA", (2, 2), (100, 51)).convert("La")):
        assert first_pixel(grey) == (224, 224, 224)
    assert first_pixel(Image.new("RGBA", (2, 2), (9, 9, 9, 0))) == (255, 255, 255)
    assert first_pixel(Image.new("RGBX", (2, 2), (9, 8, 7, 0))) == (9, 8, 7)  # X is padding, not opacity


def palette_picture(colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.new("P", (len(colours), 1))
    image.putpalette([channel for colour in colours for channel in colour])
    image.putdata(range(len(colours)))
    return image


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [
        (None, [[200, 0, 100], [10, 20, 30], [0, 0, 0]]),
        (1, [[200, 0, 100], [255, 255, 255], [0, 0, 0]]),
        (b"\x33\xff\x00", [[244, 204, 224], [10, 20, 30], [255, 255, 255]]),
    ],
)
def test_palettes_with_transparent_colours(transparency, expected, encode):
    image = palette_picture([(200, 0, 100), (10, 20, 30), (0, 0, 0)])
    options = {} if transparency is None else {"transparency": transparency}
    assert np.asarray(load_image(encode(image, "PNG", **options)))[0].tolist() == expected
    if not isinstance(transparency, bytes):
        assert np.asarray(load_image(encode(image, "GIF", **options)))[0].tolist() == expected
    given = image.copy()
    given.info.update(options)
    assert np.asarray(load_image(given))[0].tolist() == expected


def test_a_palette_with_an_alpha_band():
    image = palette_picture([(200, 0, 100)]).convert("PA")
    image.putalpha(51)
    assert first_pixel(image) == (244, 204, 224)
    rgba_palette = Image.new("P", (1, 1))
    rgba_palette.putpalette([200, 0, 100, 51], "RGBA")
    assert first_pixel(rgba_palette) == (244, 204, 224)


def test_modes_of_other_colour_spaces():
    assert np.asarray(load_image(Image.fromarray(np.array([[False, True]]))))[0].tolist() == [[0] * 3, [255] * 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(100 / 255, 0.5, 0.8))
    assert close(first_pixel(Image.new("HSV", (1, 1), (100, 128, 204))), (red, green, blue), 3)
    assert close(first_pixel(Image.new("RGB", (1, 1), (10, 200, 30)).convert("YCbCr")), (10, 200, 30))
    assert close(first_pixel(Image.new("LAB", (1, 1), (255, 128, 128))), (255, 255, 255))


def inks(c: int, m: int, y: int, k: int) -> tuple[int, ...]:
    return tuple(round((255 - ink) * (255 - k) / 255) for ink in (c, m, y))


INKS = [(255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0), (30, 90, 200, 40)]


@pytest.mark.parametrize("ink", INKS)
def test_cmyk_is_neither_inverted_nor_shifted(ink, encode):
    image = Image.new("CMYK", (16, 16), ink)
    jpeg = encode(image, "JPEG", quality=98)
    assert b"Adobe" in jpeg  # and so the numbers in the file are inverted
    for source in (image, encode(image, "TIFF"), jpeg):
        assert close(first_pixel(source), inks(*ink))


@pytest.mark.parametrize("ink", INKS)
def test_ycck_is_neither_inverted_nor_shifted(ink, encode):
    """YCCK stores the inverted inks C, M and Y as luminance and chrominance. Pillow cannot write it: the right numbers
    are written as CMYK, and then the file is told that they are YCCK."""
    luminance = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))
    stored = Image.new("CMYK", (16, 16), (*(255 - number for number in luminance), ink[3]))
    jpeg = bytearray(encode(stored, "JPEG", quality=98))
    jpeg[jpeg.index(b"Adobe") + 11] = 2
    assert close(first_pixel(bytes(jpeg)), inks(*ink), 4)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB with red and blue exchanged: whoever applies it sees at once that it was."""
    return srgb_profile().replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")


def build_profile(space: bytes, device: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile (version 2) of the given tags."""
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0" * 4, 0x02400000, device, space, connection)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + body


WHITE_POINT = b"XYZ \0\0\0\0" + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)


def coarse_srgb_profile() -> bytes:
    """sRGB as some devices write it: a curve of 256 points, and a red that is a trace off."""
    light = np.linspace(0, 1, 256)
    light = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    curve = b"curv" + struct.pack(">II", 0, 256) + np.rint(light * 65_535).astype(">u2").tobytes()
    tags = {b"wtpt": WHITE_POINT, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    for name, primary in ((b"rXYZ", (0.4366, 0.2225, 0.0139)), (b"gXYZ", (0.3851, 0.7169, 0.0971)),
                          (b"bXYZ", (0.1431, 0.0606, 0.7142))):  # fmt: skip
        tags[name] = b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(number * 65_536) for number in primary))
    return build_profile(b"RGB ", b"mntr", b"XYZ ", tags)


def linear_grey_profile() -> bytes:
    return build_profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": WHITE_POINT, b"kTRC": b"curv" + bytes(8)})


def green_ink_profile() -> bytes:
    """For CMYK: whatever the inks, the print is the same green (Lab 50, -60, 40)."""
    ramp = bytes(range(256))
    colour = bytes([round(50 * 2.55), 128 - 60, 128 + 40])
    identity = struct.pack(">9i", 65_536, 0, 0, 0, 65_536, 0, 0, 0, 65_536)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + colour * 16 + ramp * 3
    return build_profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": WHITE_POINT, b"A2B0": table, b"A2B1": table})


def test_a_profile_other_than_srgb_is_applied(encode):
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for format_name in ("JPEG", "PNG", "TIFF", "WEBP"):
        options = {"quality": 100, "subsampling": 0} if format_name == "JPEG" else {"lossless": True}
        found = first_pixel(encode(red, format_name, icc_profile=swapped_profile(), **options))
        assert close(found, (0, 0, 255), 4), format_name
    red.info["icc_profile"] = swapped_profile()
    assert close(first_pixel(red), (0, 0, 255))


def test_a_profile_is_applied_beneath_transparency_and_palettes(encode):
    half = encode(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG", icc_profile=swapped_profile())
    assert close(first_pixel(half), (127, 127, 255))
    indexed = encode(palette_picture([(255, 0, 0)]), "PNG", icc_profile=swapped_profile())
    assert close(first_pixel(indexed), (0, 0, 255))


def test_srgb_itself_changes_no_pixel(encode, picture):
    for profile in (srgb_profile(), coarse_srgb_profile()):
        data = encode(picture, "PNG", icc_profile=profile)
        assert np.array_equal(np.asarray(load_image(data)), np.asarray(picture))
    profiles = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, *profiles)
    assert not np.array_equal(np.asarray(converted), np.asarray(picture))  # it would have been rounded


def test_a_grey_profile_is_applied(encode):
    data = encode(Image.new("L", (4, 4), 128), "PNG", icc_profile=linear_grey_profile())
    assert close(first_pixel(data), (188, 188, 188))  # 0.5 of the light is 188 in sRGB


def test_a_profile_of_inks_is_applied(encode):
    jpeg = encode(Image.new("CMYK", (16, 16), (10, 20, 30, 40)), "JPEG", icc_profile=green_ink_profile())
    red, green, blue = first_pixel(jpeg)
    assert red < 40
    assert 120 < green < 160
    assert blue < 80


def test_broken_and_unfitting_profiles_are_ignored(encode):
    swapped, ink, grey = swapped_profile(), green_ink_profile(), linear_grey_profile()
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for profile in (b"no profile", swapped[:200], swapped[:130] + bytes(300), ink, grey):
        assert first_pixel(encode(red, "PNG", icc_profile=profile)) == (255, 0, 0)
    assert first_pixel(encode(Image.new("L", (4, 4), 90), "PNG", icc_profile=swapped)) == (90, 90, 90)
    assert close(first_pixel(encode(Image.new("CMYK", (4, 4)), "JPEG", icc_profile=swapped)), (255, 255, 255))
    red.info["icc_profile"] = "text, not bytes"
    assert first_pixel(red) == (255, 0, 0)


@pytest.mark.parametrize("profile", [b"", swapped_profile()])
@pytest.mark.parametrize("orientation", [2, 6])
def test_loading_twice_is_loading_once(profile, orientation, encode, picture):
    exif = Image.Exif()
    exif[0x0112] = orientation
    once = load_image(encode(picture, "PNG", icc_profile=profile, exif=exif))
    twice = load_image(once)
    assert twice.size == once.size
    assert np.array_equal(np.asarray(twice), np.asarray(once))


def test_an_unknown_mode_is_refused():
    class Strange(Image.Image):
        mode = "XYZ"

    image = Strange()
    image._size = (1, 1)
    image.im = Image.new("RGB", (1, 1)).im
    with pytest.raises(MediaError, match="mode XYZ"):
        load_image(image)
