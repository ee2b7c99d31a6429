"""From any kind of Pillow picture to plain RGB, without clipping, inverting or losing colours on the way."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

from bindlm.media.names import Medium

_WHITE = (255, 255, 255)
_SRGB_TOLERANCE = 2
"""Levels of 255. A profile that moves no colour by more is sRGB, give or take rounding, and left alone. In 10,000
picture files on one machine, the profiles of sRGB moved colours by at most 1 level, all others by 45 and more."""


def to_rgb(image: Image.Image, medium: Medium, *, is_alpha_dropped: bool = False) -> Image.Image:
    """A new RGB picture, transparency laid over white, colours brought from the picture's ICC profile to sRGB.

    With `is_alpha_dropped` the colours that lie under transparency are shown instead, whatever they are.

    Modes: `1`, `L`, `P`, `RGB`, `RGBX`, `CMYK`, `YCbCr`, `HSV`, `LAB`, those with alpha, grey of 16 bits (`I;16`, and
    `I` with values 0..65535; 65535 is white) and grey of floats (`F`; 1.0 is white).

    A profile that is broken, or is for another kind of picture, is ignored, as viewers do. The gamma and cICP chunks
    of PNG are not read.

    Raises:
        MediaError: An unknown mode, or numbers out of range.
    """
    colour, alpha = _split_alpha(image, medium)
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and (transform := _transform(profile, colour.mode)) is not None:
        colour = transform.apply(colour)
    if colour.mode != "RGB":
        colour = colour.convert("RGB")
    if alpha is None or is_alpha_dropped or alpha.getextrema() == (255, 255):
        return colour.copy() if colour is image else colour
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(colour, mask=alpha)
    return canvas


def scale_to_bytes(grey: np.ndarray, white: int) -> np.ndarray:
    """Whole numbers from 0 to `white` (at most 65535) as bytes: `value * 255 / white`, to the nearest."""
    return _byte_table(white)[grey]


@cache
def _byte_table(white: int) -> np.ndarray:
    values = np.minimum(np.arange(65_536), white)
    return ((values * 510 + white) // (2 * white)).astype(np.uint8)  # nearest, in whole numbers


def _split_alpha(image: Image.Image, medium: Medium) -> tuple[Image.Image, Image.Image | None]:
    """The colours (mode L, RGB or CMYK) and the opacity (mode L), if any."""
    mode = image.mode
    alpha: Image.Image | None = None
    if mode in ("1", "L", "P", "RGB") and "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
    elif mode.startswith("I") and "transparency" in image.info:
        is_opaque = np.asarray(image) != image.info["transparency"]
        alpha = Image.fromarray(is_opaque.astype(np.uint8) * np.uint8(255))
    elif mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        alpha = image.convert("RGBA").getchannel("A")
    elif mode in ("La", "RGBa"):
        return _split_alpha(image.convert(mode.replace("a", "A")), medium)
    elif mode in ("LA", "PA", "RGBA"):
        alpha = image.getchannel("A")
    if mode in ("L", "RGB", "CMYK"):
        return image, alpha
    if mode == "LA":
        return image.getchannel("L"), alpha
    if mode == "1":
        return image.convert("L"), alpha
    if mode in ("RGBA", "RGBX", "P", "PA", "YCbCr", "HSV", "LAB"):
        return image.convert("RGB"), alpha
    if mode.startswith("I;16") or mode == "I":
        return _from_whole_numbers(image, medium), alpha
    if mode == "F":
        return _from_floats(image, medium), alpha
    raise medium.error(f"a picture of Pillow mode {mode} is not read", 'Convert it with image.convert("RGB")')


def _from_whole_numbers(image: Image.Image, medium: Medium) -> Image.Image:
    grey = np.asarray(image)
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65_535:
        raise medium.error(f"its greys go from {low} to {high}, and 0 to 65535 is expected", "Scale it to 16 bits")
    return Image.fromarray(scale_to_bytes(grey, 65_535))


def _from_floats(image: Image.Image, medium: Medium) -> Image.Image:
    return Image.fromarray(floats_to_bytes(np.asarray(image), medium))


def floats_to_bytes(array: np.ndarray, medium: Medium) -> np.ndarray:
    """Floats from 0 to 1 as bytes: `value * 255`, to the nearest.

    Raises:
        MediaError: NaN, infinity, or values beyond 0 and 1 by more than a rounding error of 1e-6.
    """
    low, high = float(array.min()), float(array.max())  # NaN if any value is
    if not np.isfinite([low, high]).all():
        raise medium.error("its values hold NaN or infinity", "Replace them with numbers from 0 to 1")
    if low < -1e-6 or high > 1 + 1e-6:
        raise medium.error(
            f"its float values go from {low:.4g} to {high:.4g}, and 0 to 1 is expected",
            "Divide by the value of white (255 for bytes), and undo a normalisation by mean and deviation",
        )
    result = np.empty(array.shape, dtype=np.uint8)
    for row in range(len(array)):  # row by row: a whole copy of floats would be four to eight times the picture
        result[row] = np.rint(np.clip(array[row].astype(np.float32), 0, 1) * 255)
    return result


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from `profile` to sRGB, or None if the profile is broken, of another kind, or sRGB itself."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            _srgb(),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if mode != "CMYK" and _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
        return None


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether colours come out as they went in. Converting through sRGB's own profile would only add rounding."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        probe = Image.fromarray(steps[None])
    else:
        probe = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3))
    before = np.asarray(probe.convert("RGB"), dtype=np.int16)
    after = np.asarray(transform.apply(probe), dtype=np.int16)
    return bool(np.abs(after - before).max() <= _SRGB_TOLERANCE)
