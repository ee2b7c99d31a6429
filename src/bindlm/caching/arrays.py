"""Embeddings that somebody else made: `.npy` files with Parquet beside them (clip-retrieval's layout), or Parquet."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching.chunks import CHUNK_ROWS, Chunk, unit_rows
from bindlm.caching.tables import (
    CAPTION_COLUMNS,
    EMBEDDING_COLUMNS,
    ID_COLUMNS,
    SOURCE_COLUMNS,
    Table,
    as_texts,
    as_vectors,
)
from bindlm.errors import ConfigError

Columns = tuple[str | None, str | None, str | None]
"""Names of the columns of ids, captions and sources; None takes the usual ones."""


class ArrayFile:
    """A `.npy` file of vectors, of which a piece at a time is in memory. A mapping would count as memory in use.

    Raises:
        ConfigError: it is missing, cut off, or holds no matrix of numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(
                f"{path} is missing, cut off, or no .npy file of numbers; write it with numpy.save"
            ) from (error)
        is_plain = isinstance(mapped, np.memmap) and mapped.ndim == 2 and mapped.flags.c_contiguous
        if not is_plain or mapped.dtype.kind not in "fiu" or 0 in mapped.shape:
            raise ConfigError(f"{path} must hold vectors (N, D) of numbers, row after row, got {_described(mapped)}")
        self.num_rows, self.dim = (int(side) for side in mapped.shape)
        self._dtype, self._offset = mapped.dtype, int(mapped.offset)

    def read(self, start: int, rows: int) -> NDArray[Any]:
        """``rows`` rows from ``start`` on, `(n, D_joint)`.

        Raises:
            ConfigError: the file has become shorter, or cannot be read.
        """
        width = self._dtype.itemsize * self.dim
        try:
            found = np.fromfile(self.path, self._dtype, rows * self.dim, offset=self._offset + start * width)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read; check its permissions and the disk") from error
        if len(found) != rows * self.dim:
            raise ConfigError(
                f"{self.path} has become shorter while it was read; start again once nobody writes to it"
            )
        return found.reshape(rows, self.dim)  # (n, D)


def _described(array: Any) -> str:
    return f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}".strip()


class ArraySource:
    """`.npy` files with a Parquet file each for the names of their rows, or none. It is a `CacheSource`.

    Rows without names are called by their file and number, `img_emb_0:17`.

    Args:
        vectors: files of `(N, D_joint)`, in order.
        metadata: one for each, with as many rows; empty for none.
        columns: of ids, captions and sources in them.

    Raises:
        ConfigError: files that do not fit together.
    """

    def __init__(self, vectors: Sequence[Path], metadata: Sequence[Path] = (), columns: Columns = (None, None, None)):
        self.name = _common_name(vectors)
        self.notes: Sequence[str] = ()
        self._arrays = [ArrayFile(path) for path in vectors]
        self._paths = [*vectors, *metadata]
        self._columns = columns
        self.dim = self._arrays[0].dim
        for array in self._arrays:
            if array.dim != self.dim:
                raise ConfigError(
                    f"{array.path} holds vectors of {array.dim} numbers and {self._arrays[0].path} of {self.dim}; "
                    "one cache takes one encoder's"
                )
        self.num_rows = sum(array.num_rows for array in self._arrays)
        self._tables: list[Path | None] = list(metadata) or [None] * len(self._arrays)
        if len(self._tables) != len(self._arrays):
            raise ConfigError(
                f"{len(self._arrays)} files of vectors and {len(metadata)} of metadata: one each is needed"
            )
        for array, path in zip(self._arrays, self._tables, strict=True):
            if path is not None and (rows := Table(path).num_rows) != array.num_rows:
                raise ConfigError(f"{array.path} has {array.num_rows} rows and {path} has {rows}; they must be alike")

    def digest(self) -> str:
        """Of names, sizes and times of change."""
        return files_digest(self._paths, repr(self._columns))

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """See `CacheSource.chunks`."""
        for array, table in zip(self._arrays, self._tables, strict=True):
            if start < array.num_rows:
                yield from self._of_file(array, table, start)
            start = max(0, start - array.num_rows)

    def _of_file(self, array: ArrayFile, path: Path | None, start: int) -> Iterator[Chunk]:
        if path is None:
            for first in range(start, array.num_rows, CHUNK_ROWS):
                rows = min(CHUNK_ROWS, array.num_rows - first)
                vectors = unit_rows(array.read(first, rows), str(array.path), first)
                ids = [f"{array.path.stem}:{row}" for row in range(first, first + rows)]
                yield Chunk(vectors, ids, [None] * rows, [None] * rows)
            return
        table = Table(path)
        picked = pick_columns(table, self._columns)
        for batch in table.batches([name for name in picked if name] or table.columns[:1], start):
            vectors = unit_rows(array.read(start, batch.num_rows), str(array.path), start)
            yield named_chunk(vectors, batch, picked, table.path, array.path.stem, start)
            start += batch.num_rows
        table.close()


class ParquetSource:
    """Parquet files with a column of embeddings, as img2dataset's users and most pipelines keep them.

    Args:
        paths: files, in order.
        embedding: name of the column; None takes a usual one.
        columns: of ids, captions and sources.

    Raises:
        ConfigError: a file without such a column, or embeddings of different widths.
    """

    def __init__(
        self, paths: Sequence[Path], embedding: str | None = None, columns: Columns = (None, None, None)
    ) -> None:
        self.name = _common_name(paths)
        self.notes: Sequence[str] = ()
        self._paths, self._columns = list(paths), columns
        tables = [Table(path) for path in paths]
        self._embedding = [self._column(table, embedding) for table in tables]
        self._rows = [table.num_rows for table in tables]
        self.num_rows = sum(self._rows)
        self.dim = self._width(tables)
        for table in tables:
            table.close()

    def digest(self) -> str:
        """Of names, sizes and times of change."""
        return files_digest(self._paths, repr((self._embedding, self._columns)))

    def chunks(self, start: int = 0) -> Iterator[Chunk]:
        """See `CacheSource.chunks`."""
        for path, rows, column in zip(self._paths, self._rows, self._embedding, strict=True):
            if start < rows:
                yield from self._of_file(Table(path), column, start)
            start = max(0, start - rows)

    def _of_file(self, table: Table, column: str, start: int) -> Iterator[Chunk]:
        picked = pick_columns(table, self._columns)
        for batch in table.batches([column, *(name for name in picked if name)], start):
            vectors = unit_rows(as_vectors(batch, column, self.dim, table.path, start), str(table.path), start)
            yield named_chunk(vectors, batch, picked, table.path, table.path.stem, start)
            start += batch.num_rows
        table.close()

    def _column(self, table: Table, given: str | None) -> str:
        if (column := table.pick(given, EMBEDDING_COLUMNS, "embeddings")) is None:
            raise ConfigError(
                f"which column of {table.path} holds the embeddings? it has {', '.join(table.columns)}; name it with "
                "--embedding-column"
            )
        return column

    def _width(self, tables: Sequence[Table]) -> int:
        for table, column in zip(tables, self._embedding, strict=True):
            width = table.list_width(column)
            if width is None:
                first = next(table.batches([column], rows=1), None)
                width = len(first.column(column)[0].as_py() or ()) if first is not None else None
            if width:
                return width
        raise ConfigError(f"{self.name} holds no embeddings")


def pick_columns(table: Table, columns: Columns) -> Columns:
    """Names of the columns of ids, captions and sources.

    Raises:
        ConfigError: one that was named is not there.
    """
    return (
        table.pick(columns[0], ID_COLUMNS, "ids"),
        table.pick(columns[1], CAPTION_COLUMNS, "captions"),
        table.pick(columns[2], SOURCE_COLUMNS, "sources"),
    )


def named_chunk(vectors: Any, batch: Any, columns: Columns, path: Path, stem: str, first: int) -> Chunk:
    """Vectors with the names that a batch of a table has for them; without ids by file and number.

    Raises:
        ConfigError: a row without an id in a column of ids.
    """
    ids = as_texts(batch, columns[0])
    if columns[0] is None:
        ids = [f"{stem}:{row}" for row in range(first, first + len(ids))]
    elif None in ids or "" in ids:
        row = next(number for number, each in enumerate(ids) if not each)
        raise ConfigError(f"row {first + row} of {path} has no id in column {columns[0]!r}; name another --id-column")
    return Chunk(vectors, [str(each) for each in ids], as_texts(batch, columns[1]), as_texts(batch, columns[2]))


def numbered_files(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder with a suffix, in the order of the numbers in their names: `img_emb_10` after `img_emb_9`.

    Raises:
        ConfigError: there are none.
    """
    try:
        found = [path for path in folder.iterdir() if path.suffix == suffix and not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{folder} is no folder that can be looked into; check the path") from error
    if not found:
        raise ConfigError(f"{folder} holds no {suffix} files; check the path")
    return sorted(found, key=lambda path: _number_key(path.name))


def _number_key(name: str) -> list[tuple[int, int, str]]:
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def files_digest(paths: Sequence[Path], settings: str) -> str:
    """A digest of files by name, size and time of change: their content is not read.

    Raises:
        ConfigError: one is gone.
    """
    digest = hashlib.sha256(settings.encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise ConfigError(f"{path} cannot be reached; check the path") from error
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _common_name(paths: Sequence[Path]) -> str:
    if not paths:
        raise ConfigError("no files of embeddings are given")
    return str(paths[0]) if len(paths) == 1 else os.path.commonpath([path.parent for path in paths])
