"""What every source of a cache gives: vectors of unit length with their names, a chunk at a time, in a fixed order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bindlm.errors import ConfigError

CHUNK_ROWS = 4096
"""Rows that are in memory at once: 16 MB at 1024 numbers each. A file of entries is read in groups as large."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of a source."""

    vectors: NDArray[np.float32]
    """`(n, D_joint)`, unit length."""
    ids: Sequence[str]
    """What each is called; no two rows of a cache are called alike."""
    captions: Sequence[str | None]
    sources: Sequence[str | None]
    """Where each came from: a path or an address."""


class CacheSource(Protocol):
    """Vectors of pictures that a cache is made of."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def dim(self) -> int:
        """D_joint."""

    @property
    def num_rows(self) -> int:
        """How many rows it has."""

    @property
    def notes(self) -> Sequence[str]:
        """What its reader must be told, such as pictures that cannot be used."""

    def digest(self) -> str:
        """Changes whenever the rows or their order could have."""

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """Rows from ``start`` on, at most `CHUNK_ROWS` at a time.

        Raises:
            ConfigError: a row that no cache can hold; says which.
        """


def unit_rows(vectors: NDArray[Any], file: str, first: int) -> NDArray[np.float32]:
    """Rows at unit length.

    Args:
        vectors: `(n, D_joint)`, of any type of number.
        file: where they come from, for the message.
        first: number of the first row there, for the message.

    Raises:
        ConfigError: a row that is not finite, or has no direction.
    """
    # Squares of fp16 are beyond fp16, and those of a tiny fp32 vanish.
    length = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))  # (n,)
    is_bad = ~(np.isfinite(length) & (length > 0))
    if is_bad.any():
        row = int(np.argmax(is_bad))
        what = "is all zeros" if length[row] == 0 else "holds NaN or infinity"
        raise ConfigError(
            f"row {first + row} of {file} {what}, so it points nowhere; embed that picture again, or leave the row out"
        )
    return np.divide(vectors, length[:, None], dtype=np.float64).astype(np.float32)


def exactly(chunks: Iterator[Chunk], rows: int) -> Iterator[Chunk]:
    """The next ``rows`` rows of a stream of chunks, cut into chunks of `CHUNK_ROWS` wherever theirs end.

    So a file of the cache does not depend on where the files of its source end. What is left of the last chunk stays
    with the stream, if that is a `Rest`.
    """
    waiting: list[Chunk] = []
    held = 0
    while rows > 0:
        wanted = min(rows, CHUNK_ROWS)
        while held < wanted:
            if (chunk := next(chunks, None)) is None:
                raise ConfigError("a source ended before its last row; it has changed while it was read: start again")
            waiting.append(chunk)
            held += len(chunk.ids)
        joined = joined_chunks(waiting)
        yield cut(joined, 0, wanted)
        rows -= wanted
        held -= wanted
        waiting = [cut(joined, wanted, wanted + held)] if held else []
    if waiting and isinstance(chunks, Rest):
        chunks.put_back(waiting[0])


class Rest(Iterator[Chunk]):
    """A stream of chunks that takes back what was not used."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks = chunks
        self._back: list[Chunk] = []

    def __next__(self) -> Chunk:
        return self._back.pop() if self._back else next(self._chunks)

    def put_back(self, chunk: Chunk) -> None:
        """Have a chunk come next."""
        self._back.append(chunk)

    def close(self) -> None:
        """Close the stream underneath, whatever waits in it."""
        if (close := getattr(self._chunks, "close", None)) is not None:
            close()


def cut(chunk: Chunk, start: int, end: int) -> Chunk:
    """Some rows of a chunk."""
    rows = slice(start, end)
    return Chunk(chunk.vectors[rows], chunk.ids[rows], chunk.captions[rows], chunk.sources[rows])


def joined_chunks(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks one after the other, as one."""
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        np.concatenate([each.vectors for each in chunks]),
        [id for each in chunks for id in each.ids],
        [caption for each in chunks for caption in each.captions],
        [source for each in chunks for source in each.sources],
    )
