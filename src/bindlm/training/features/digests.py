"""Names of media and of their content as 128 bits each, and a map of a hundred million of them that fits in memory."""

import hashlib
import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
ABSENT = -1
"""What a map gives for a digest that it does not hold; its values are 0 or more."""

_CHUNK = 1 << 20
_RECENT = 1 << 18
"""Entries that wait in a dictionary, at some 150 bytes each, until they are sorted into 24 bytes each."""


def key_digest(key: str) -> bytes:
    """16 bytes that stand for a media key."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def bytes_digest(content: bytes, modality: str) -> bytes:
    """16 bytes that stand for a medium: what it holds, and the sense that it is taken with."""
    return _hasher(modality, content).digest()


def file_digest(path: Path, modality: str) -> tuple[bytes, int, int]:
    """Digest, size and time of change (nanoseconds) of a file.

    Raises:
        OSError: it cannot be read, is no regular file, or changed while it was read.
    """
    hasher = _hasher(modality)
    # Without O_NONBLOCK a named pipe would be waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as stream:
        before = os.fstat(stream.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise OSError("no regular file")
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise OSError("changed while it was read")
    return hasher.digest(), after.st_size, after.st_mtime_ns


def _hasher(modality: str, content: bytes = b"") -> "hashlib.blake2b":
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES, person=modality.encode()[:16])


def as_words(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Digests `(N, 16)` as two whole numbers each, `(N, 2)`; the first is what they are sorted by."""
    return np.ascontiguousarray(digests).view(np.int64).reshape(-1, 2)  # (N, 2)


def as_rows(digests: list[bytes]) -> NDArray[np.uint8]:
    """Digests as an array `(N, 16)`."""
    return np.array(bytearray(b"".join(digests)), dtype=np.uint8).reshape(-1, DIGEST_BYTES)  # (N, 16)


class DigestMap:
    """Digests to numbers from 0, in 24 bytes an entry: a `dict` takes 150.

    New entries wait in a dictionary and move to sorted arrays, of which each is at least twice as long as the next;
    a look-up is a binary search in each of these few.
    """

    def __init__(self) -> None:
        self._recent: dict[bytes, int] = {}
        self._runs: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return len(self._recent) + sum(len(values) for _, _, values in self._runs)

    def __contains__(self, digest: bytes) -> bool:
        return self.get(digest) != ABSENT

    def get(self, digest: bytes) -> int:
        """The number of a digest, or `ABSENT`."""
        if (value := self._recent.get(digest)) is not None:
            return value
        wanted, rest = np.frombuffer(digest, dtype=np.int64)
        for first, second, values in self._runs:
            place = int(first.searchsorted(wanted))
            while place < len(first) and first[place] == wanted:
                if second[place] == rest:
                    return int(values[place])
                place += 1
        return ABSENT

    def add(self, digest: bytes, value: int) -> None:
        """Take in a digest that is not held yet."""
        self._recent[digest] = value
        if len(self._recent) >= _RECENT:
            self._sort_recent()

    def add_many(self, digests: NDArray[np.uint8], values: NDArray[np.int64]) -> None:
        """Take in digests `(N, 16)` of which none is held yet."""
        if len(digests) < 1024:
            for row, value in zip(digests, values.tolist(), strict=True):
                self.add(row.tobytes(), value)
        else:
            self._add_run(as_words(digests), values)

    def look_up(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The numbers of digests `(N, 16)`; `ABSENT` for those that are not held."""
        self._sort_recent()
        return self._search(as_words(digests))

    def _sort_recent(self) -> None:
        if self._recent:
            words = as_words(as_rows(list(self._recent)))
            self._add_run(words, np.fromiter(self._recent.values(), dtype=np.int64, count=len(self._recent)))
            self._recent = {}

    def _add_run(self, words: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        order = np.argsort(words[:, 0], kind="stable")
        run = (words[order, 0], words[order, 1], values[order])
        while self._runs and len(self._runs[-1][2]) < 2 * len(run[2]):
            first, second, numbers = (np.concatenate(pair) for pair in zip(self._runs.pop(), run, strict=True))
            order = np.argsort(first, kind="stable")
            run = (first[order], second[order], numbers[order])
        self._runs.append(run)

    def _search(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.full(len(words), ABSENT, dtype=np.int64)
        for first, second, values in self._runs:
            left = np.flatnonzero(found == ABSENT)
            place = np.searchsorted(first, words[left, 0])
            while len(left):  # once, but for digests that share their first half
                is_inside = place < len(first)
                left, place = left[is_inside], place[is_inside]
                is_like = first[place] == words[left, 0]
                left, place = left[is_like], place[is_like]
                is_same = second[place] == words[left, 1]
                found[left[is_same]] = values[place[is_same]]
                left, place = left[~is_same], place[~is_same] + 1
        return found
