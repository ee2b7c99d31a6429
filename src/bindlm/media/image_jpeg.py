"""What a JPEG file can hide from its decoder: too much work, and an end that comes too early."""

from __future__ import annotations

import io
import re

from PIL import Image, ImageChops, JpegImagePlugin

_MAX_SEGMENTS = 4_096
"""A profile and metadata of several megabytes take about a hundred; each one costs Pillow some microseconds."""
_MAX_SCANS = 100
"""Encoders write about ten. Each scan goes over the whole picture: a small file of many keeps a core busy for long."""

_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # not stuffing, fill bytes, restarts, nor start of picture
_END, _PROGRESSIVE, _SCAN = 0xD9, 0xC2, 0xDA

_PADDING = bytes(range(255)) * 16  # no 0xFF, which starts a marker; 0 first, since 0xFF may stand before it


def find_end(data: bytes) -> int | None:
    """Where the end marker of the first picture stands, or None: the file is cut off, or has more parts than encoders
    write. A progressive file is whole when every bit of every coefficient has been sent by one of its scans."""
    position = num_segments = num_scans = 0
    missing: dict[int, set[int]] = {}  # component of a progressive file -> coefficients with bits to come
    while marker := _MARKER.search(data, position):
        code, position = marker[1][0], marker.end()
        if code == _END:
            return None if any(missing.values()) else marker.start()
        length = int.from_bytes(data[position : position + 2], "big")
        body = data[position + 2 : position + length]
        position += length
        num_segments += 1
        num_scans += code == _SCAN
        if num_segments > _MAX_SEGMENTS or num_scans > _MAX_SCANS:
            return None
        if code == _PROGRESSIVE:
            missing = {component: set(range(64)) for component in body[6::3]}
        elif code == _SCAN and missing:
            _strike_out(missing, body)
    return None


def _strike_out(missing: dict[int, set[int]], scan: bytes) -> None:
    """Note what the scan with this header sends: a band of coefficients of some components, down to some bit."""
    num_components = scan[0] if scan else 0
    components, rest = scan[1 : 1 + 2 * num_components : 2], scan[1 + 2 * num_components :]
    if len(rest) >= 3 and rest[2] & 0x0F == 0:  # down to the lowest bit
        for component in components:
            missing.get(component, set()).difference_update(range(rest[0], rest[1] + 1))


def ends_too_early(image: Image.Image, data: bytes) -> bool:
    """Whether the file has its end marker before the last pixel, as a broken download closed by force has.

    libjpeg then fills the rest with grey and tells nobody. A picture may rightly end in the same grey; so where the
    last pixel is of that grey, padding goes before the end marker and the file is decoded once more. A decoder that
    has all its pixels skips the padding; one that is short of them takes it for pixels. Not noticed: an end within the
    very last block of 8 or 16 pixels, or within the last scan of a progressive file, which only adds detail.
    """
    grey = 127 if image.mode == "CMYK" else 128  # Pillow inverts inks
    last = image.crop((image.width - 1, image.height - 1, *image.size))
    if last.tobytes() != bytes([grey] * len(image.getbands())):
        return False
    end = find_end(data)
    padded = JpegImagePlugin.JpegImageFile(io.BytesIO(data[:end] + _PADDING + data[end:]))
    return ImageChops.difference(image, padded).getbbox(alpha_only=False) is not None
