"""Tar shards as tables of bytes: members are found by walking over headers and read by offset, never unpacked.

A shard comes from strangers. Only plain files count; no name ever becomes a path on this disk.
"""

import functools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bindlm.training.data.fields import MAX_NAME

MAX_MEMBER = 64 << 20
"""Bytes of a member; the largest picture that `bindlm.media` takes."""
_MAX_HEADER = 1 << 20
"""Bytes that one read of a header may ask for: an extended header names its own size, and tarfile believes it."""
_KEPT_INDEXES = 16


@dataclass(frozen=True)
class Member:
    """One member of a shard, or the fault that stands in its place."""

    name: str
    offset: int = 0
    """Where its bytes begin in the shard."""
    size: int = 0
    """How many they are."""
    fault: str | None = None
    """Why it cannot be used; None for a sound one."""


class _Headers:
    """A file from which tarfile reads headers only: it skips over the members' bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("header of an impossible size")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if offset < 0:
            raise tarfile.ReadError("header with an impossible offset")
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def walk(stream: IO[bytes]) -> Iterator[Member]:
    """The members of a shard in their order; what follows a damaged header is one fault, and the end.

    Between two members the caller may read elsewhere in `stream`.
    """
    end = os.fstat(stream.fileno()).st_size
    name = ""
    try:
        with tarfile.open(fileobj=_Headers(stream), mode="r:", errorlevel=0) as tar:  # type: ignore[call-overload]
            last = -1
            while (info := tar.next()) is not None:
                tar.members.clear()  # else it keeps them all
                if info.offset <= last:
                    raise tarfile.ReadError("headers in a circle")
                last = info.offset
                name = info.name
                if not info.isdir():
                    yield Member(name, info.offset_data, info.size, _fault(info, end))
            stream.seek(tar.offset)
            if stream.read(512).strip(b"\0") or tar.offset >= end:
                raise tarfile.ReadError("no end mark")
    except (tarfile.TarError, OSError, ValueError, OverflowError):
        yield Member(name, fault="the shard is no whole tar file: it ends here" if name else "no tar file")


def _fault(info: tarfile.TarInfo, end: int) -> str | None:
    if not info.isreg() or info.sparse is not None:
        return "member that is no plain file"
    if len(info.name) > MAX_NAME or info.name.startswith("/") or ".." in info.name.split("/"):
        return "member with a name that leads elsewhere"
    if not info.name.isprintable():
        return "member whose name is not printable"
    if info.size < 0:
        return "member of a negative size"
    if info.size > MAX_MEMBER:
        return f"member larger than {MAX_MEMBER >> 20} MiB"
    if info.offset_data + info.size > end:
        return "member that the shard's end cuts off"
    return None


def read_member(path: Path, name: str) -> bytes | None:
    """The bytes of one member, or None where the shard has no such sound member.

    The first call walks over the shard's headers (1.6 s for 10,000 samples); the tables of 16 shards are kept.

    Raises:
        OSError: The shard cannot be read.
    """
    stat = path.stat()
    place = _index(path, stat.st_size, stat.st_mtime_ns).get(name)
    if place is None:
        return None
    with path.open("rb") as stream:
        stream.seek(place[0])
        return stream.read(place[1])


@functools.lru_cache(maxsize=_KEPT_INDEXES)
def _index(path: Path, size: int, mtime_ns: int) -> dict[str, tuple[int, int]]:
    """Name -> offset and size; of members with one name the first counts, as in `read_img2dataset`."""
    table: dict[str, tuple[int, int]] = {}
    with path.open("rb") as stream:
        for member in walk(stream):
            if member.fault is None:
                table.setdefault(member.name, (member.offset, member.size))
    return table
