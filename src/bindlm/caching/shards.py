"""The rows of a cache on disk: written from a source, read back for the index, and told apart by their ids."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching.arrays import ArrayFile
from bindlm.caching.chunks import CHUNK_ROWS, Chunk
from bindlm.caching.tables import Table, parquet
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.state import replacing_file, sha256_of
from bindlm.errors import ConfigError
from bindlm.media.names import printable
from bindlm.space.cache_folder import removed_rows as removed_rows
from bindlm.space.cache_format import CacheFile, entries_name, values_name
from bindlm.space.cache_writing import ROWS_IN_GROUP, write_values

ROWS_A_FILE = 1 << 17
"""Rows of a file of values, 268 MB at 1024 numbers each; what a killed build has to do again at most."""
NAMED = ("id", "caption", "source")


class Ids:
    """The ids of a cache as digests, 24 bytes each: two entries of one id would be one picture counted twice."""

    def __init__(self) -> None:
        from bindlm.training.features.digests import DigestMap

        self._rows = DigestMap()

    def add(self, ids: Sequence[str], rows: NDArray[np.int64], where: str) -> None:
        """Take in the ids of some rows.

        Args:
            ids: n of them.
            rows: their numbers in the cache, `(n,)`.
            where: they come from, for the message.

        Raises:
            ConfigError: one is there already, or twice among them.
        """
        from bindlm.training.features.digests import ABSENT, as_rows, key_digest

        digests = as_rows([key_digest(each) for each in ids])  # (n, 16)
        held = self._rows.look_up(digests)
        _, firsts = np.unique(digests.view("V16").reshape(-1), return_index=True)
        is_repeated = np.ones(len(ids), dtype=bool)
        is_repeated[firsts] = False
        is_repeated |= held != ABSENT
        if is_repeated.any():
            place = int(np.argmax(is_repeated))
            before = int(held[place]) if held[place] != ABSENT else int(rows[list(ids).index(ids[place])])
            raise ConfigError(
                f"the id {printable(ids[place])!r} is there twice: as row {before} of the cache, and again as row "
                f"{int(rows[place])}, from {where}; ids must differ (--id-column names another column)"
            )
        self._rows.add_many(digests, rows)


class EntryWriter:
    """A Parquet file of ids, captions and sources that is written a chunk at a time."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._schema = pa.schema([(name, pa.string()) for name in NAMED])
        # Through a file of Python's, whose errors of the disk are those that we know.
        self._stream = path.open("wb")
        self._writer = parquet().ParquetWriter(self._stream, self._schema, compression="zstd")

    def write(self, chunk: Chunk) -> None:
        """Add the names of a chunk."""
        import pyarrow as pa

        columns = [_encodable(names) for names in (chunk.ids, chunk.captions, chunk.sources)]
        table = pa.table([pa.array(names, pa.string()) for names in columns], schema=self._schema)
        self._writer.write_table(table, row_group_size=ROWS_IN_GROUP)

    def close(self) -> None:
        """End the file."""
        try:
            self._writer.close()
        finally:
            self._stream.close()


def write_shard(
    folder: Path, number: int, chunks: Iterator[Chunk], rows: int, dim: int
) -> tuple[CacheFile, CacheFile]:
    """Write the values and the names of some rows.

    Args:
        folder: of the cache.
        number: of the files.
        chunks: together ``rows`` rows.
        rows: how many.
        dim: D_joint.

    Returns:
        Records of the file of values and of that of entries.

    Raises:
        CheckpointError: the disk refuses; files that are there are as they were.
    """
    path = folder / entries_name(number)
    with disk_errors(folder), replacing_file(path) as temporary:
        writer = EntryWriter(temporary)
        try:
            values = write_values(folder / values_name(number), _noting(chunks, writer), rows, dim)
        finally:
            writer.close()
    return values, CacheFile(path.name, rows, path.stat().st_size, sha256_of(path))


def _noting(chunks: Iterator[Chunk], writer: EntryWriter) -> Iterator[NDArray[np.float32]]:
    for chunk in chunks:
        writer.write(chunk)
        yield chunk.vectors


def _encodable(names: Sequence[str | None]) -> Sequence[str | None]:
    """Names as UTF-8 can carry them: that of a file may hold halves of surrogate pairs."""
    return [None if name is None else name.encode("utf-8", "backslashreplace").decode() for name in names]


class ValueFiles:
    """The values of a cache, read a piece at a time.

    Args:
        folder: of the cache.
        files: in order.
        removed: rows that are gone, rising.
    """

    def __init__(self, folder: Path, files: Sequence[CacheFile], removed: NDArray[np.int64] | None = None) -> None:
        self._files = [ArrayFile(folder / file.file) for file in files]
        self._starts = np.cumsum([0, *(file.num_rows for file in self._files)])
        self.num_rows = int(self._starts[-1])
        self.dim = self._files[0].dim
        self.removed = np.zeros(0, dtype=np.int64) if removed is None else removed

    @property
    def num_kept(self) -> int:
        """Rows that are not removed."""
        return self.num_rows - len(self.removed)

    def chunks(
        self, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Rows that are not removed: numbers `(n,)` and vectors `(n, D_joint)`, at most `CHUNK_ROWS` at a time."""
        end = self.num_rows if end is None else end
        while start < end:
            stop = min(start + CHUNK_ROWS, end)
            rows, vectors = np.arange(start, stop), self.read(start, stop - start).astype(np.float32)
            is_kept = ~np.isin(rows, self.removed)
            yield rows[is_kept], vectors[is_kept]
            start = stop

    def read(self, start: int, count: int) -> NDArray[np.float16]:
        """Rows one after the other, `(n, D_joint)`, removed ones too."""
        pieces = []
        while count > 0:
            number = int(np.searchsorted(self._starts, start, side="right")) - 1
            here = min(count, int(self._starts[number + 1]) - start)
            pieces.append(self._files[number].read(start - int(self._starts[number]), here))
            start, count = start + here, count - here
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)  # (n, D)

    def pick(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Rows here and there, `(n, D_joint)`, in the order given."""
        picked = np.empty((len(rows), self.dim), dtype=np.float16)  # (n, D)
        for place, row in enumerate(rows.tolist()):
            picked[place] = self.read(row, 1)[0]
        return picked


def id_batches(folder: Path, files: Sequence[CacheFile], *columns: str) -> Iterator[tuple[int, list[list[Any]]]]:
    """Columns of the entries of a cache, `id` if none is named: the first row's number, and texts by column."""
    first = 0
    for file in files:
        table = Table(Path(os.path.join(folder, file.file)))
        for batch in table.batches(columns or ("id",)):
            yield first, [batch.column(name).to_pylist() for name in columns or ("id",)]
            first += batch.num_rows
        table.close()


def known_ids(folder: Path, files: Sequence[CacheFile], removed: NDArray[np.int64]) -> Ids:
    """The ids of rows that are not removed.

    Raises:
        ConfigError: one is there twice, or a file is damaged.
    """
    ids = Ids()
    for first, (texts,) in id_batches(folder, files):
        rows = np.arange(first, first + len(texts))
        is_kept = ~np.isin(rows, removed)
        ids.add([text for text, is_here in zip(texts, is_kept, strict=True) if is_here], rows[is_kept], str(folder))
    return ids
