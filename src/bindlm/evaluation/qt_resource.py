"""Files out of a compiled Qt resource (.rcc), in which programs ship their pictures and sounds."""

import struct
import zlib
from collections.abc import Collection

from bindlm.errors import CheckpointError

MARK = ".rcc!/"
"""Parts the path of a resource file from the path inside it."""
_MAX_FILE_BYTES = 1 << 27
"""Of one file, unpacked: a picture or a sound has a few MB."""


def resource_files(data: bytes, wanted: Collection[str]) -> dict[str, bytes]:
    """Those of ``wanted`` that the resource holds, by their path inside it.

    The format is that of Qt's `rcc`, big-endian: a header with the offsets of tree, data and names; a node of the tree
    is (name offset, flags, then for a folder: number and index of its children, else: locale and data offset), with a
    time of change at its end from version 2 on; names are counted UTF-16 after a hash; data is counted bytes, behind a
    length of its own where zlib has packed it.

    Raises:
        CheckpointError: the resource is damaged or of a newer format.
    """
    found: dict[str, bytes] = {}
    try:
        magic, version, tree, blobs, names = struct.unpack_from(">4s4I", data)
        if magic != b"qres":
            raise ValueError("no Qt resource")
        node_bytes = 22 if version >= 2 else 14
        nodes, seen = [(0, "")], 0
        while nodes:
            index, parent = nodes.pop()
            # A tree has as many nodes as its bytes hold; a file whose children point back at it has no end.
            if (seen := seen + 1) > len(data) // node_bytes:
                raise ValueError("the tree is a circle")
            name_at, flags = struct.unpack_from(">IH", data, tree + index * node_bytes)
            path = parent
            if index:
                name = _name(data, names + name_at)
                path = f"{parent}/{name}" if parent else name
            if flags & 2:
                count, first = struct.unpack_from(">2I", data, tree + index * node_bytes + 6)
                if count > len(data):
                    raise ValueError("more children than bytes")
                nodes.extend((child, path) for child in range(first, first + count))
            elif path in wanted:
                (blob_at,) = struct.unpack_from(">I", data, tree + index * node_bytes + 10)
                (length,) = struct.unpack_from(">I", data, blobs + blob_at)
                found[path] = _unpacked(data[blobs + blob_at + 4 : blobs + blob_at + 4 + length], flags)
    except (struct.error, UnicodeDecodeError, ValueError, zlib.error) as error:
        raise CheckpointError("a Qt resource file of the package is damaged or of a newer format") from error
    return found


def _name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _unpacked(blob: bytes, flags: int) -> bytes:
    if flags & 4:
        raise ValueError("packed with zstd")
    if not flags & 1:
        return blob
    data = zlib.decompressobj().decompress(blob[4:], _MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise ValueError("too big")
    return data
