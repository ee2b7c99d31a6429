"""Rows of TSV, CSV and Parquet."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from bindlm.errors import ConfigError
from bindlm.media.names import printable
from bindlm.training.data.bad_rows import BadRow
from bindlm.training.data.fields import CAPTION_COLUMNS, MEDIA_COLUMNS, find_column, is_url
from bindlm.training.data.files import DataFile
from bindlm.training.data.rows import MAX_ROW, Row, lines_of

BATCH_ROWS = 512
"""Rows of Parquet that are in memory at once."""


def tsv_rows(file: DataFile) -> Iterator[Row | BadRow]:
    """Lines with tabs between the cells, as objects.

    A line is a row whatever quotes are in it: captions of the web have odd ones, and a reader that lets a quoted cell
    run over lines loses all rows up to the next quote. A cell in quotes loses them, as a CSV writer put them there.
    """
    header: list[str] | None = None
    for row in lines_of(file):
        if isinstance(row, BadRow):
            yield row
            continue
        cells = [_unquoted(cell) for cell in row.content.split("\t")]
        if header is None:
            header = _header(cells)
            if header == cells:
                continue
        yield _as_object(row, header, cells)


def csv_rows(file: DataFile) -> Iterator[Row | BadRow]:
    """Rows of a CSV file, as objects; a row whose quotes do not close is bad."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    too_long: list[BadRow] = []
    lines = _Lines(file, too_long)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        start = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            yield from too_long
            return
        except csv.Error:
            yield BadRow(file.label, start, "quotes that do not close or stand in mid-cell")
            continue
        if not cells:
            continue
        if header is None:
            header = _header(cells)
            if header == cells:
                continue
        yield _as_object(Row(file.label, lines.number, ",".join(cells)), header, cells)


def parquet_rows(file: DataFile, columns: Sequence[str] | None = None) -> Iterator[Row | BadRow]:
    """Rows of a Parquet file, as objects with the columns asked for; the bytes of media are never among them.

    Raises:
        ConfigError: The file is no Parquet, or damaged.
    """
    import pyarrow as pa

    parquet = open_parquet(file)
    kinds = {field.name: field.type for field in parquet.schema_arrow}
    wanted = [name for name in columns or kinds if name in kinds and not has_bytes(kinds[name])]
    number = 0
    try:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
            for content in batch.to_pylist():
                number += 1
                yield Row(file.label, number, content)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        yield BadRow(file.label, number + 1, "damaged Parquet, so that the rest of the file cannot be read")


def open_parquet(file: DataFile) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        ConfigError: The file is no Parquet, or damaged.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file.path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{printable(str(file.path))} is no Parquet file, or not whole; get it again.") from error


def has_bytes(kind: Any) -> bool:
    """Whether a column holds media: bytes, or the struct of bytes and path of `datasets.Image`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and has_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


class _Lines:
    """The lines that `csv.reader` takes, with the number of the one it took last."""

    def __init__(self, file: DataFile, too_long: list[BadRow]) -> None:
        self.number = 0
        self._rows = lines_of(file, keeps_blank=True)  # a cell in quotes may hold some
        self._too_long = too_long

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        for row in self._rows:
            if isinstance(row, Row):
                self.number = row.number
                return f"{row.content}\n"
            self._too_long.append(row)
        raise StopIteration


def _header(cells: list[str]) -> list[str]:
    """The cells themselves where they are names of columns; else what the columns of CC3M's bare file are."""
    if find_column(cells, MEDIA_COLUMNS) is not None and find_column(cells, CAPTION_COLUMNS) is not None:
        return cells
    if len(cells) == 2 and is_url(cells[0]) != is_url(cells[1]):
        return ["url", "caption"] if is_url(cells[0]) else ["caption", "url"]
    return cells


def _as_object(row: Row, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        return row.bad("another number of cells than the header has")
    return Row(row.file, row.number, dict(zip(header, cells, strict=True)))


def _unquoted(cell: str) -> str:
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in (inner := cell[1:-1]).replace('""', ""):
        return inner.replace('""', '"')
    return cell
