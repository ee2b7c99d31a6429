"""Files out of OpenClonk's groups (`.ocg`): a folder packed into one file, with folders of the same form inside."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from bindlm.errors import MediaError

_HEADER_BYTES, _ENTRY_BYTES = 204, 316
_MAX_BYTES = 1 << 28


def read_group(data: bytes) -> dict[str, bytes]:
    """Every file of a group, by its path inside (`Environment.ocg/WindLoop.ogg`).

    A group is a gzip stream whose two magic bytes were changed. Its header is hidden (the first and the third of every
    three bytes swapped, all of them xor 237); entries of 316 bytes follow (name, flags, size, place), then the files.

    Raises:
        MediaError: this is no group, or it is cut off.
    """
    try:
        stream = zlib.decompressobj(31)
        unpacked = stream.decompress(b"\x1f\x8b" + data[2:], _MAX_BYTES)
        if not stream.eof:
            raise ValueError("cut off, or too large")
        return dict(_files(unpacked, ""))
    except (zlib.error, struct.error, ValueError) as error:
        raise MediaError("an OpenClonk group (.ocg) is damaged or of another format; get its package again") from error


def _files(group: bytes, parent: str) -> Iterator[tuple[str, bytes]]:
    if len(group) < _HEADER_BYTES:
        raise ValueError("no header")
    header = bytearray(group[:_HEADER_BYTES])
    for place in range(0, _HEADER_BYTES - 2, 3):
        header[place], header[place + 2] = header[place + 2], header[place]
    header = bytearray(byte ^ 237 for byte in header)
    (count,) = struct.unpack_from("<i", header, 36)
    start = _HEADER_BYTES + _ENTRY_BYTES * count
    if not header.startswith(b"RedWolf") or not 0 <= count or start > len(group):
        raise ValueError("no group")
    for number in range(count):
        entry = group[_HEADER_BYTES + _ENTRY_BYTES * number :][:_ENTRY_BYTES]
        name = entry[:260].partition(b"\0")[0].decode("latin-1")
        _packed, is_group, size, _unused, offset = struct.unpack_from("<5i", entry, 260)
        content = group[start + offset : start + offset + size]
        if offset < 0 or size != len(content):
            raise ValueError("cut off")
        if is_group:
            yield from _files(content, f"{parent}{name}/")
        else:
            yield parent + name, content
