"""Look at the bytes of a picture before any decoder does: for what Pillow does not check, or checks too late."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bindlm.errors import MediaError
from bindlm.media.image_jpeg import find_end
from bindlm.media.limits import ImageLimits
from bindlm.media.names import Medium

_MAX_PNG_CHUNKS = 100_000
_PNG_COLOUR_TYPE, _PNG_INDEXED = 25, 3


def damaged(medium: Medium) -> MediaError:
    """The error for a file that is cut off, altered, or written wrongly."""
    return medium.error("the file is damaged or cut off", "Copy or download it again, or save it anew as PNG or JPEG")


def check_structure(format_name: str, data: bytes, medium: Medium, limits: ImageLimits) -> None:
    """Refuse bytes that Pillow would decode to something wrong, or only after using much time or memory.

    Raises:
        MediaError: Damaged, or out of bounds.
    """
    if check := _CHECKS.get(format_name):
        check(data, medium, limits)


def _check_png(data: bytes, medium: Medium, limits: ImageLimits) -> None:
    """All chunks are there, not too many, and a picture of palette indices has a palette: without one, Pillow would
    take the indices for greys."""
    position, has_palette, num_chunks = 8, False, 0
    while True:
        header = data[position : position + 8]
        end = position + 12 + int.from_bytes(header[:4], "big")
        num_chunks += 1
        if len(header) < 8 or end > len(data) or num_chunks > _MAX_PNG_CHUNKS:
            raise damaged(medium)
        kind = header[4:]
        if num_chunks == 1 and (kind != b"IHDR" or end - position != 25):
            raise damaged(medium)
        if kind == b"IEND":
            return
        if kind == b"PLTE":
            has_palette = True
        elif kind == b"IDAT" and data[_PNG_COLOUR_TYPE] == _PNG_INDEXED and not has_palette:
            raise damaged(medium)
        position = end


def _check_jpeg(data: bytes, medium: Medium, limits: ImageLimits) -> None:
    if find_end(data) is None:
        raise damaged(medium)


def _check_webp(data: bytes, medium: Medium, limits: ImageLimits) -> None:
    """The size of the canvas: the decoder reserves memory for it when it is made, before its size can be asked."""
    kind, body = data[12:16], data[20:30]
    if len(data) < 30:
        raise damaged(medium)
    if kind == b"VP8X":
        width, height = (int.from_bytes(body[i : i + 3], "little") + 1 for i in (4, 7))
    elif kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", body[6:10]))
    else:
        raise damaged(medium)
    limits.check(medium, width, height, len(data))


_CHECKS: dict[str, Callable[[bytes, Medium, ImageLimits], None]] = {
    "JPEG": _check_jpeg,
    "PNG": _check_png,
    "WEBP": _check_webp,
}
