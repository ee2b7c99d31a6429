"""Pictures whose pixels are measurements, in metres or degrees, and are wanted as they were stored."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from bindlm.media import npy
from bindlm.media.image import turn_upright
from bindlm.media.image_array import is_tensor
from bindlm.media.image_decode import _check_effort, decoder_errors
from bindlm.media.image_formats import sniff
from bindlm.media.image_structure import check_structure
from bindlm.media.limits import ImageLimits, UrlLimits
from bindlm.media.names import Medium
from bindlm.media.source import describe, read_bytes

MEASURED_LIMITS = ImageLimits(max_pixels=16_000_000)
"""Four times what the largest common depth or thermal cameras give; at 4 to 8 bytes a pixel, 64 to 128 MB a copy."""

_MEASURING_FORMATS = (b"\x89PNG\r\n\x1a\n", b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")
"""First bytes of PNG and TIFF; the other formats have 8 bits, or are not met with measurements."""
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


def describe_measured(source: Any, kind: str, name: str | None) -> Medium:
    """What messages call a measured picture."""
    if name is None and isinstance(source, Image.Image):
        return Medium(kind, f"<{source.mode} picture, {source.width} x {source.height}>")
    if name is None and (isinstance(source, np.ndarray) or is_tensor(source)):
        return Medium(kind, f"<{type(source).__name__}, shape {tuple(source.shape)}>")
    return describe(source, kind, name)


def load_measured(
    source: str | os.PathLike[Any] | bytes | Any, medium: Medium, limits: ImageLimits, allow_url: bool | UrlLimits
) -> np.ndarray | None:
    """The stored numbers `(H, W)` of one channel: uint8, uint16, int32, another whole type, or floats.

    Args:
        source: A PNG, TIFF or `.npy` file in any form that `bindlm.media.source.read_bytes` takes, or a Pillow
            picture, a numpy array or a torch tensor of shape `(H, W)`, `(H, W, 1)` or `(1, H, W)`.
        medium: What to call it in messages.
        limits: Bounds on bytes and pixels.
        allow_url: Whether addresses of the web are fetched.

    Returns:
        None where it is something else: a picture in colour or of another format, or no picture at all.

    Raises:
        MediaError: It cannot be read, is damaged, of another shape or type, or out of bounds.
    """
    if isinstance(source, Image.Image):
        limits.check(medium, *_positive(source.size, medium))
        unreadable = medium.error("its pixels cannot be read", "Open it anew: it is closed, or its file is damaged")
        with decoder_errors(medium, unreadable):
            return _from_image(source, medium, is_png=False)
    if isinstance(source, np.ndarray) or is_tensor(source):
        return _check_array(_as_array(source, medium), medium, limits)
    data = read_bytes(source, medium, max_bytes=limits.max_bytes, allow_url=allow_url)
    if data.startswith(npy.MAGIC):
        return _check_array(npy.read_npy(data, medium), medium, limits)
    if not data.startswith(_MEASURING_FORMATS):
        return None
    format_name = sniff(data, medium)
    check_structure(format_name, data, medium, limits)
    opener = PngImagePlugin.PngImageFile if format_name == "PNG" else TiffImagePlugin.TiffImageFile
    with decoder_errors(medium):
        image = opener(io.BytesIO(data))
        limits.check(medium, *image.size, len(data))
        _check_effort(image, data, medium)
        return _from_image(image, medium, is_png=format_name == "PNG")


def check_finite(numbers: np.ndarray, medium: Medium, cure: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        MediaError: With how many of the numbers are no numbers, and `cure`.
    """
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        count = int(numbers.size - np.isfinite(numbers).sum())
        raise medium.error(f"{count} of its {numbers.size} values are NaN or infinite", cure)


def _from_image(image: Image.Image, medium: Medium, *, is_png: bool) -> np.ndarray | None:
    if not (image.mode in ("L", "I", "F") or image.mode.startswith("I;16")):
        return None
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise medium.error("its numbers are stored inverted", "Save it with black as 0")
    image.load()
    numbers = np.asarray(turn_upright(image, image))
    # Older versions of Pillow open a PNG of 16 bits as whole numbers of 32.
    return numbers.astype(np.uint16) if image.mode.startswith("I;16") or (is_png and image.mode == "I") else numbers


def _positive(size: tuple[int, int], medium: Medium) -> tuple[int, int]:
    if 0 in size:
        raise medium.error(f"it is {size[0]} x {size[1]} pixels", "Give a picture of at least one pixel")
    return size


def _as_array(source: Any, medium: Medium) -> np.ndarray:
    if isinstance(source, np.ma.MaskedArray):
        raise medium.error("it is a masked array", "Fill the masked values: array.filled(0)")
    if isinstance(source, np.ndarray):
        return np.asarray(source)
    torch = sys.modules["torch"]
    try:
        tensor = source.detach().cpu()
        return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, meta, quantised
        raise medium.error("it is no plain tensor with values", "Give it as a numpy array") from None


def _check_array(array: np.ndarray, medium: Medium, limits: ImageLimits) -> np.ndarray:
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2:
        raise medium.error(
            f"its shape is {array.shape}, and (H, W), (H, W, 1) or (1, H, W) is expected",
            "Give one channel of one item",
        )
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise medium.error(f"its numbers are {array.dtype.name}, not whole or floats", "Convert it with astype")
    limits.check(medium, *_positive((array.shape[1], array.shape[0]), medium))
    return array.astype(array.dtype.newbyteorder("="))
