"""The inverted lists of a FAISS index, written to its file a few at a time: an index needs little memory.

FAISS writes what it holds, and so would need all of it in memory. Here rows are coded in parts, each sorted by list
and kept in a file; the index is then the header that FAISS writes for an empty one, and after it each list from all
parts. A row of an older index is taken over as it is, so adding and removing cost no training either.

Layout of FAISS's "ilar" section, the last of every inverted-file index (faiss/impl/index_write.cpp, 1.11 to 1.15):
`ilar`, number of lists (u64), bytes of a code (u64), `full`, number of sizes (u64), sizes (u64 each), and then for
each list its codes and its ids (i64).
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bindlm.errors import CheckpointError

BLOCK_BYTES = 16 << 20
"""Of codes and ids that are in memory while lists are put together."""
_SECTION = struct.Struct("<4sQQ4sQ")
"""`ilar`, lists, bytes of a code, `full` or `sprs`, numbers that follow."""
_ROWS_AT = 8
"""Where an index's header has its number of rows: after a name of 4 bytes and the width as 4 bytes."""


class Lists(Protocol):
    """Coded rows, sorted by list."""

    sizes: NDArray[np.int64]
    """`(L,)` rows of each list."""

    def read(self, first: int, end: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Codes `(n, code_size)` and ids `(n,)` of the lists ``first`` to ``end`` - 1, list after list."""


def encode_rows(index: Any, vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The list of each row and its code, as `index.add` would make them.

    Args:
        index: a trained inverted-file index of FAISS, with a transform in front or not.
        vectors: `(n, D_joint)`.

    Returns:
        `(n,)` and `(n, code_size)`.
    """
    import faiss

    outer: Any = faiss.downcast_index(index)
    inner: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    if isinstance(outer, faiss.IndexPreTransform):
        chain: Any = outer.chain
        for number in range(chain.size()):
            vectors = faiss.downcast_VectorTransform(chain.at(number)).apply(vectors)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lists = inner.quantizer.search(vectors, 1)[1].reshape(-1)  # (n,)
    codes = np.empty((len(vectors), inner.code_size), dtype=np.uint8)
    pointers = (faiss.swig_ptr(array) for array in (vectors, lists, codes))
    inner.encode_vectors(len(vectors), *pointers)
    return lists, codes


class Part:
    """Coded rows in a file of our own: sizes of the lists, then all ids, then all codes. It is a `Lists`."""

    def __init__(self, path: Path, num_lists: int, code_size: int) -> None:
        self._path, self._code_size = path, code_size
        self.sizes = np.fromfile(path, np.int64, num_lists)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        rows = int(self._starts[-1])
        self._ids_at = 8 * num_lists
        self._codes_at = self._ids_at + 8 * rows
        if len(self.sizes) != num_lists or path.stat().st_size != self._codes_at + rows * code_size:
            raise CheckpointError(f"{path} is cut off; begin again with --fresh")

    @staticmethod
    def write(
        path: Path, lists: NDArray[np.int64], codes: NDArray[np.uint8], ids: NDArray[np.int64], num: int
    ) -> None:
        """Write rows `(n,)` with codes `(n, code_size)` to an open place.

        Args:
            num: how many lists there are.
        """
        order = np.argsort(lists, kind="stable")
        with path.open("wb") as stream:
            stream.write(np.bincount(lists, minlength=num).astype(np.int64).data)
            stream.write(np.ascontiguousarray(ids[order]).data)
            for start in range(0, len(order), 1 << 14):
                stream.write(np.ascontiguousarray(codes[order[start : start + (1 << 14)]]).data)

    def read(self, first: int, end: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """See `Lists.read`."""
        start, count = int(self._starts[first]), int(self._starts[end] - self._starts[first])
        ids = np.fromfile(self._path, np.int64, count, offset=self._ids_at + 8 * start)
        offset = self._codes_at + self._code_size * start
        codes = np.fromfile(self._path, np.uint8, count * self._code_size, offset=offset)
        return codes.reshape(count, self._code_size), ids


class IndexLists:
    """The lists of an inverted-file index that FAISS or `write_lists` wrote, less some rows. It is a `Lists`.

    Args:
        path: the index.
        empty: the same index without rows, as `empty_bytes` gives it.
        num_lists: of the index.
        code_size: bytes of a code.
        without: rows to leave out, rising.

    Raises:
        CheckpointError: the file is not laid out as FAISS lays it out.
    """

    def __init__(
        self, path: Path, empty: bytes, num_lists: int, code_size: int, without: NDArray[np.int64] | None = None
    ) -> None:
        self._path, self._code_size = path, code_size
        begin = len(empty) - _SECTION.size
        with path.open("rb") as stream:
            stream.seek(begin)
            head = stream.read(_SECTION.size)
            damaged = CheckpointError(f"{path} is not laid out as FAISS writes an index; build the cache anew")
            if len(head) < _SECTION.size:
                raise damaged
            name, lists, size, form, count = _SECTION.unpack(head)
            if (name, lists, size) != (b"ilar", num_lists, code_size) or count > 2 * num_lists:
                raise damaged
            numbers = np.fromfile(stream, np.int64, count)
        self._sizes = np.zeros(num_lists, dtype=np.int64)  # (L,) as the file has them
        if form == b"full":
            self._sizes[:] = numbers
        else:
            self._sizes[numbers[::2]] = numbers[1::2]
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)]) * (code_size + 8)
        self._data_at = begin + _SECTION.size + 8 * count
        if path.stat().st_size != self._data_at + self._starts[-1]:
            raise damaged
        self._without = np.zeros(0, dtype=np.int64) if without is None else without
        self.sizes = self._sizes if without is None else self._count_kept()

    def read(self, first: int, end: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """See `Lists.read`."""
        codes, ids = self._read(first, end)
        if len(self._without):
            is_kept = ~np.isin(ids, self._without)
            return codes[is_kept], ids[is_kept]
        return codes, ids

    def _read(self, first: int, end: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        begin, size = int(self._starts[first]), int(self._starts[end] - self._starts[first])
        raw = np.fromfile(self._path, np.uint8, size, offset=self._data_at + begin)
        sizes = self._sizes[first:end]
        rows = int(sizes.sum())
        codes = np.empty((rows, self._code_size), dtype=np.uint8)
        ids = np.empty(rows, dtype=np.int64)
        at = row = 0
        for count in sizes[sizes > 0].tolist():
            middle, stop = at + count * self._code_size, at + count * (self._code_size + 8)
            codes[row : row + count] = raw[at:middle].reshape(count, self._code_size)
            ids[row : row + count] = raw[middle:stop].view(np.int64)
            at, row = stop, row + count
        return codes, ids

    def _count_kept(self) -> NDArray[np.int64]:
        kept = self._sizes.copy()
        for first, end in blocks(self._sizes, self._code_size):
            ids = self._read(first, end)[1]
            lists = np.repeat(np.arange(first, end), self._sizes[first:end])
            kept -= np.bincount(lists[np.isin(ids, self._without)], minlength=len(kept))
        return kept

    def ids(self) -> Iterator[NDArray[np.int64]]:
        """All ids, some at a time."""
        for first, end in blocks(self._sizes, self._code_size):
            yield self.read(first, end)[1]


def blocks(sizes: NDArray[np.int64], code_size: int) -> Iterator[tuple[int, int]]:
    """Ranges of lists that hold about `BLOCK_BYTES` each."""
    ends = np.cumsum(sizes) * (code_size + 8)
    first = 0
    while first < len(sizes):
        before = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + BLOCK_BYTES, side="right")))
        yield first, end
        first = end


def empty_bytes(index: Any) -> bytes:
    """A trained index without its rows, as FAISS writes it. The index is emptied."""
    import faiss

    inner = faiss.extract_index_ivf(index)
    lists: Any = faiss.ArrayInvertedLists(inner.nlist, inner.code_size)
    lists.this.disown()  # the index frees it
    inner.replace_invlists(lists, True)
    index.ntotal = inner.ntotal = 0
    return bytes(faiss.serialize_index(index).tobytes())


def write_lists(path: Path, empty: bytes, index: Any, parts: Sequence[Lists]) -> int:
    """Write an inverted-file index of the rows of all parts.

    Args:
        path: where to.
        empty: what `empty_bytes` gave of ``index``.
        index: trained.
        parts: rows; within a list in the order of the parts.

    Returns:
        How many rows it has.
    """
    import faiss

    inner = faiss.extract_index_ivf(index)
    num_lists, code_size = int(inner.nlist), int(inner.code_size)
    sizes = np.zeros(num_lists, dtype=np.int64)  # (L,)
    for part in parts:
        sizes += part.sizes
    rows = int(sizes.sum())
    header = bytearray(empty[: -_SECTION.size])
    assert empty[-_SECTION.size :] == _SECTION.pack(b"ilar", num_lists, code_size, b"sprs", 0), "FAISS's layout is new"
    for start in {0, len(empty) - len(faiss.serialize_index(inner))}:
        place = slice(start + _ROWS_AT, start + _ROWS_AT + 8)
        assert bytes(header[place]) == bytes(8), "FAISS's layout is new"
        header[place] = rows.to_bytes(8, "little")
    with path.open("wb") as stream:
        stream.write(header)
        stream.write(_SECTION.pack(b"ilar", num_lists, code_size, b"full", num_lists))
        stream.write(sizes.data)
        for first, end in blocks(sizes, code_size):
            _write_block(stream, parts, first, end)
    return rows


def _write_block(stream: Any, parts: Sequence[Lists], first: int, end: int) -> None:
    found = [part.read(first, end) for part in parts]
    of_list = np.concatenate([np.repeat(np.arange(first, end), part.sizes[first:end]) for part in parts])
    order = np.argsort(of_list, kind="stable")
    codes = np.concatenate([codes for codes, _ in found])[order]
    ids = np.concatenate([ids for _, ids in found])[order]
    ends = np.cumsum(np.bincount(of_list - first, minlength=end - first))
    start = 0
    for stop in ends.tolist():
        if stop > start:
            stream.write(codes[start:stop].data)
            stream.write(ids[start:stop].data)
        start = stop


def write_flat(
    path: Path, dim: int, chunks: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]], rows: int
) -> None:
    """Write FAISS's `IDMap2,Flat` index of rows that come a chunk at a time.

    Args:
        path: where to.
        dim: D_joint.
        chunks: ids `(n,)` and vectors `(n, D_joint)`.
        rows: how many come.
    """
    import faiss

    empty = bytearray(faiss.serialize_index(faiss.index_factory(dim, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)))
    header = len(empty) - 16  # less the counts of numbers and of ids
    assert bytes(empty[header:]) == bytes(16), "FAISS's layout is new"
    for start in (0, header // 2):
        empty[start + _ROWS_AT : start + _ROWS_AT + 8] = rows.to_bytes(8, "little")
    ids = []
    with path.open("wb") as stream:
        stream.write(empty[:header])
        stream.write((rows * dim).to_bytes(8, "little"))
        for numbers, vectors in chunks:
            ids.append(numbers)
            stream.write(np.ascontiguousarray(vectors, dtype="<f4").data)
        stream.write(rows.to_bytes(8, "little"))
        stream.write(np.concatenate(ids).astype("<i8").data)


def open_index(path: Path) -> Any:
    """A FAISS index, its lists mapped and not read.

    Raises:
        CheckpointError: FAISS cannot read it.
    """
    import faiss

    try:
        return faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP)
    except RuntimeError:
        raise CheckpointError(f"{path} is damaged: FAISS cannot read it; build the cache anew") from None
