"""From the bytes of a picture file to a loaded `PIL.Image.Image`, whatever the file tries."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from bindlm.errors import MediaError
from bindlm.media.image_color import scale_to_bytes
from bindlm.media.image_formats import sniff
from bindlm.media.image_jpeg import ends_too_early
from bindlm.media.image_structure import check_structure, damaged
from bindlm.media.limits import ImageLimits
from bindlm.media.names import Medium

# The classes themselves, not `Image.open`: it would warn of sizes before our limits are asked, import every other
# decoder when one fails, and follow the list of further pictures in an MPO file.
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}

_SLOW_DECODERS = frozenset({"bmp_rle", "ppm"})  # written in Python: about 2 s for a million pixels
_SLOW_MAX_PIXELS = 1_000_000
_SLOW_MAX_BYTES = 16_000_000

_TIFF_MAX_TILE_PIXELS = 16_000_000

_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _DNG_VERSION = (
    254, 258, 262, 322, 323, 50706,
)  # fmt: skip
_WHITE_IS_ZERO = 0


def decode_image(data: bytes, medium: Medium, limits: ImageLimits) -> Image.Image:
    """Decode a picture file: its first frame, all pixels loaded, not yet turned upright or brought to RGB.

    Raises:
        MediaError: Not a picture, damaged, or out of bounds. Never an error or a warning of the decoder.
    """
    format_name = sniff(data, medium)
    check_structure(format_name, data, medium, limits)
    with decoder_errors(medium):
        image = _OPENERS[format_name](io.BytesIO(data))
        limits.check(medium, *image.size, len(data))
        _check_effort(image, data, medium)
        tiles = [tile.extents for tile in image.tile]  # emptied by load
        image.load()
        loaded: Image.Image = image
        if format_name == "JPEG" and ends_too_early(image, data):
            raise damaged(medium)
        if format_name == "PNG":
            _correct_png_transparency(image, bit_depth=data[24])
        if format_name == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
            loaded = image.convert(
                "RGB"
            )  # its writer meant the fourth byte as padding; nobody stores an empty picture
        elif format_name == "TIFF":
            loaded = _with_known_white(image, medium)
        elif format_name in ("GIF", "PNG") and len(tiles) == 1 and tiles[0] not in (None, (0, 0, *image.size)):
            loaded = _clear_outside(image, tiles[0])
    return loaded


@contextmanager
def decoder_errors(medium: Medium, otherwise: MediaError | None = None) -> Iterator[None]:
    """Drop Pillow's warnings, and turn whatever it raises into a `MediaError`: `otherwise`, or that it is damaged."""
    with _pillow_warnings_ignored():
        try:
            yield
        except MediaError:
            raise
        except MemoryError:
            raise medium.error("there is not enough memory to decode it", "Shrink the picture") from None
        except Image.DecompressionBombError:  # a frame or a tile larger than the size in the header
            raise medium.error("it claims more pixels than it should", "Save it anew as PNG or JPEG") from None
        except Exception:  # decoders raise almost every class there is: SyntaxError, KeyError, struct.error ...
            raise (otherwise or damaged(medium)) from None


_filter_lock = threading.Lock()


@contextmanager
def _pillow_warnings_ignored() -> Iterator[None]:
    """Ignore the warnings of Pillow's modules while at least one thread is inside.

    `warnings.catch_warnings` is no help: it puts an old copy of the filters back, so two threads that leave in the
    wrong order lose each other's; and it makes every warning that is shown once be shown once more, in a training loop
    with each picture. Here a filter of our own comes and the same one goes, for each thread one.
    """
    filters = cast("list[Any]", warnings.filters)
    ours = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    with _filter_lock:
        filters.insert(0, ours)
    try:
        yield
    finally:
        with _filter_lock:
            if ours in filters:
                filters.remove(ours)


def _check_effort(image: ImageFile.ImageFile, data: bytes, medium: Medium) -> None:
    """Refuse what the size alone does not show: slow decoders, giant tiles, and files that start with a preview."""
    slow = any(tile.codec_name in _SLOW_DECODERS for tile in image.tile)
    if slow and (image.width * image.height > _SLOW_MAX_PIXELS or len(data) > _SLOW_MAX_BYTES):
        raise medium.error("it is too large for this rare way of storing pictures", "Save it anew as PNG or JPEG")
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    if _DNG_VERSION in tags or tags.get(_NEW_SUBFILE_TYPE, 0) & 1:
        raise medium.error("its first picture is only a preview, as in camera raw files", "Convert it to PNG or JPEG")
    if tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0) > max(_TIFF_MAX_TILE_PIXELS, image.width * image.height):
        raise medium.error("its tiles are larger than the picture", "Save it anew as PNG or JPEG")


def _correct_png_transparency(image: Image.Image, bit_depth: int) -> None:
    """Bring the transparent colour to the scale of the pixels; Pillow gives the number in the file.

    Pixels of 1, 2 and 4 bits are spread over 0..255, and colours of 16 bits are cut to their upper 8. (So two colours
    that differ in the lower 8 bits only are both transparent.)
    """
    value = image.info.get("transparency")
    if image.mode == "L" and isinstance(value, int):
        image.info["transparency"] = value * 255 // (2**bit_depth - 1) & 0xFF
    elif image.mode == "RGB" and isinstance(value, tuple) and bit_depth == 16:
        image.info["transparency"] = tuple(channel >> 8 for channel in value)


def _with_known_white(image: ImageFile.ImageFile, medium: Medium) -> Image.Image:
    """A TIFF whose numbers need its tags to be read: 9 to 16 bits a pixel, whole numbers of 32, or inverted."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    is_inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode == "I":
        raise medium.error(
            "its numbers are signed or of 32 bits, and which of them is white is unknown", "Save it with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        num_bits = max(np.atleast_1d(image.tag_v2.get(_BITS_PER_SAMPLE, 16)))
        grey = scale_to_bytes(np.asarray(image), 2 ** int(num_bits) - 1)
        return _with_info(Image.fromarray(255 - grey if is_inverted else grey), image)
    if image.mode == "F" and is_inverted:
        return _with_info(Image.fromarray(1.0 - np.asarray(image)), image)
    return image


def _clear_outside(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A first frame that covers only `box` of the picture: the rest is transparent, where Pillow fills in colour 0."""
    rgba = image.convert("RGBA")
    cleared = Image.new("RGBA", image.size)
    cleared.paste(rgba.crop(box), box)
    return _with_info(cleared, image, without="transparency")


def _with_info(image: Image.Image, original: Image.Image, without: str = "") -> Image.Image:
    image.info = {key: value for key, value in original.info.items() if key != without}
    return image
