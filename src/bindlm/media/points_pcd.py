"""PCD, the Point Cloud Library's format: a text header, then text, records, or packed columns."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from bindlm.media.names import Medium
from bindlm.media.points_geometry import Geometry, PointLimits, damaged
from bindlm.media.points_text import columns, text_lines

_MAX_HEADER = 1 << 16
_KINDS = {"F": "f", "I": "i", "U": "u"}
_MAX_RECORD = 4096


def read_pcd(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """Fields x, y, z; all others are left out. `DATA` may be `ascii`, `binary` or `binary_compressed`."""
    header, begin = _read_header(data, medium)
    names = header["FIELDS"]
    counts = [int(word) for word in header.get("COUNT", ["1"] * len(names))]
    sizes = [int(word) for word in header["SIZE"]]
    kinds = [f"<{_KINDS[kind]}{size}" for kind, size in zip(header["TYPE"], sizes, strict=True)]
    num_points = int(header["WIDTH"][0]) * int(header.get("HEIGHT", ["1"])[0])
    if "POINTS" in header and int(header["POINTS"][0]) != num_points:
        raise damaged(medium, "PCD")
    record = sum(size * count for size, count in zip(sizes, counts, strict=True))
    if not {"x", "y", "z"} <= set(names) or any(counts[names.index(axis)] != 1 for axis in "xyz"):
        raise medium.error("it is a PCD file without fields x, y and z", "Save it anew, with positions")
    if min(counts) < 0 or min(sizes) < 1 or record > _MAX_RECORD or len(names) != len(kinds):
        raise damaged(medium, "PCD")
    limits.check_points(medium, num_points)
    body = data[begin:]
    encoding = header["DATA"][0].lower()
    if encoding == "ascii":
        starts = list(accumulate(counts, initial=0))
        lines = text_lines(body, medium, 2 * limits.max_points)
        if len(lines) != num_points:
            raise damaged(medium, "PCD")
        return Geometry(columns(lines, [starts[names.index(axis)] for axis in "xyz"]))
    starts = list(accumulate((size * count for size, count in zip(sizes, counts, strict=True)), initial=0))
    if encoding == "binary_compressed":
        body = _unpack(body, num_points * record, medium, limits)
        step, spread = 0, num_points  # one column after the other
    elif encoding == "binary":
        step, spread = record, 1  # one point after the other
    else:
        raise damaged(medium, "PCD")
    if len(body) < num_points * record:
        raise damaged(medium, "PCD")
    axes = []
    for axis in "xyz":
        place = names.index(axis)
        kind = np.dtype(kinds[place])
        column = np.ndarray((num_points,), kind, body, offset=starts[place] * spread, strides=(step or kind.itemsize,))
        axes.append(column.astype(np.float64))
    return Geometry(np.stack(axes, axis=-1))


def _read_header(data: bytes, medium: Medium) -> tuple[dict[str, list[str]], int]:
    """Words by keyword, and where the body begins."""
    header: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in header:
        end = data.find(b"\n", position, _MAX_HEADER)
        if end < 0:
            raise damaged(medium, "PCD")
        words = data[position:end].decode("latin1").partition("#")[0].split()
        position = end + 1
        if words:
            header[words[0].upper()] = words[1:]
    return header, position


def _unpack(body: bytes, size: int, medium: Medium, limits: PointLimits) -> bytes:
    """LZF, whose two leading numbers say how many bytes are packed and how many come out."""
    packed, unpacked = (int(number) for number in np.frombuffer(body, "<u4", 2))
    if unpacked != size or packed > len(body) - 8:
        raise damaged(medium, "PCD")
    if unpacked > limits.max_bytes:
        raise medium.error(
            f"it unpacks to {unpacked} bytes, and {limits.max_bytes} are allowed",
            "Save it as binary, or raise max_bytes of the limits",
        )
    source, out, position = memoryview(body)[8 : 8 + packed], bytearray(), 0
    while position < packed:
        control = source[position]
        position += 1
        if control < 32:  # that many bytes and one more as they are
            out += source[position : position + control + 1]
            position += control + 1
            continue
        length = control >> 5  # a copy of earlier output
        if length == 7:
            length += source[position]
            position += 1
        length += 2
        begin = len(out) - ((control & 31) << 8) - source[position] - 1
        position += 1
        if begin < 0 or len(out) + length > unpacked:
            raise damaged(medium, "PCD")
        piece = out[begin : begin + length]
        while len(piece) < length:  # the copy may overlap what it writes
            piece += piece[: length - len(piece)]
        out += piece
    if len(out) != unpacked:
        raise damaged(medium, "PCD")
    return bytes(out)
