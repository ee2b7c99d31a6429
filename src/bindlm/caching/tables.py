"""Parquet, read a batch at a time: names of rows, and embeddings in a column of their own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching.chunks import CHUNK_ROWS
from bindlm.errors import ConfigError

ID_COLUMNS = ("id", "key", "image_path", "path", "url", "URL")
"""What names a row, the first that is there: `key` of img2dataset, `image_path` of clip-retrieval."""
CAPTION_COLUMNS = ("caption", "text", "TEXT", "title")
SOURCE_COLUMNS = ("source", "url", "URL", "image_path", "path")
EMBEDDING_COLUMNS = ("embedding", "image_embedding", "img_emb", "image_emb", "vector", "emb")


def parquet() -> Any:
    """`pyarrow.parquet`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ConfigError(
            "a cache keeps its ids and captions as Parquet, and pyarrow is not installed: pip install 'bindlm[cache]'"
        ) from None
    return pyarrow.parquet


class Table:
    """A Parquet file, of which only some columns are read, a batch at a time.

    Raises:
        ConfigError: it is missing, cut off, or no Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = parquet()
        try:
            # Without pre-buffering a row group is read as it is used: one may hold all of the file.
            self._file = reader.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        except Exception as error:  # pyarrow's own, and OSError
            raise ConfigError(f"{path} is missing, cut off, or no Parquet file; make it again") from error
        self.num_rows: int = self._file.metadata.num_rows
        self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)

    def pick(self, given: str | None, usual: Sequence[str], what: str) -> str | None:
        """The column that is asked for, else the first usual one.

        Raises:
            ConfigError: there is none of the name that was given.
        """
        if given is not None and given not in self.columns:
            raise ConfigError(f"{self.path} has no column {given!r} for {what}; it has {', '.join(self.columns)}")
        return given or next((name for name in usual if name in self.columns), None)

    def list_width(self, column: str) -> int | None:
        """The width of a column of fixed-size lists, None of another list.

        Raises:
            ConfigError: a column without lists of numbers.
        """
        import pyarrow as pa

        kind = self._file.schema_arrow.field(column).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
            raise ConfigError(f"the column {column!r} of {self.path} holds {kind}; expected lists of numbers")
        return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None

    def batches(self, columns: Sequence[str], start: int = 0, rows: int = CHUNK_ROWS) -> Iterator[Any]:
        """`pyarrow.RecordBatch`es of some columns from a row on; row groups before it are not read.

        Raises:
            ConfigError: the file is damaged.
        """
        groups: list[int] = []
        first = 0
        for number in range(self._file.num_row_groups):
            end = first + self._file.metadata.row_group(number).num_rows
            if end > start:
                if not groups:
                    start -= first  # from here on counted from the first group that is read
                    end, first = end - first, 0
                groups.append(number)
            first = end
        try:
            for batch in self._file.iter_batches(
                batch_size=rows, row_groups=groups, columns=list(dict.fromkeys(columns))
            ):
                if start >= batch.num_rows:
                    start -= batch.num_rows
                    continue
                yield batch.slice(start)
                start = 0
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path} is damaged; make it again") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def as_texts(batch: Any, column: str | None) -> list[str | None]:
    """A column as texts; numbers are written out."""
    if column is None:
        return [None] * int(batch.num_rows)
    return [None if value is None else str(value) for value in batch.column(column).to_pylist()]


def as_vectors(batch: Any, column: str, width: int, path: Path, first: int) -> NDArray[Any]:
    """A column of lists as `(n, width)`.

    Raises:
        ConfigError: a row that has none, or one of another width.
    """
    import pyarrow.compute as compute

    lists = batch.column(column)
    lengths = compute.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
    if (lengths != width).any():
        row = int(np.argmax(lengths != width))
        held = "no embedding" if lengths[row] < 0 else f"an embedding of {lengths[row]} numbers"
        raise ConfigError(f"row {first + row} of {path} has {held}, expected {width}")
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(len(lengths), width)  # (n, D)
