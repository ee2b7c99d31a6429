"""Tables of pictures and their captions, whatever the columns are called; and MiniGPT-4's careful descriptions."""

from collections.abc import Callable, Iterator
from functools import partial

from bindlm.errors import ConfigError
from bindlm.media.names import printable
from bindlm.training.data.bad_rows import BadRow, BadRowError
from bindlm.training.data.fields import (
    CAPTION_COLUMNS,
    MEDIA_COLUMNS,
    captions_of,
    find_column,
    media_of,
    modality_of_name,
    text_of,
)
from bindlm.training.data.files import DataFile
from bindlm.training.data.rows import Outcome, Row, json_document, json_rows, samples_of
from bindlm.training.data.sample import Sample
from bindlm.training.data.tables import csv_rows, has_bytes, open_parquet, parquet_rows, tsv_rows
from bindlm.training.stage_recipe import SourceConfig

_ROWS_OF_SUFFIX: dict[str, Callable[[DataFile], Iterator[Row | BadRow]]] = {
    ".tsv": tsv_rows,
    ".csv": csv_rows,
    ".json": json_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
}
SUFFIXES = (*_ROWS_OF_SUFFIX, ".parquet")


def read_captions(file: DataFile, config: SourceConfig) -> Iterator[Outcome]:
    """A table with a column of media and one of captions, found by their usual names.

    Raises:
        ConfigError: The suffix is unknown, or the file is not what its suffix says.
    """
    suffix = file.path.suffix.lower()
    if suffix == ".parquet":
        yield from _read_parquet(file)
    elif rows := _ROWS_OF_SUFFIX.get(suffix):
        yield from samples_of(rows(file), _sample)
    else:
        raise ConfigError(f"{printable(str(file.path))} has no known suffix; expected one of {', '.join(SUFFIXES)}.")


def read_minigpt4(file: DataFile, config: SourceConfig) -> Iterator[Outcome]:
    """`filter_cap.json` of cc_sbu_align: `{"annotations": [{"image_id", "caption"}]}` beside `image/ID.jpg`.

    Raises:
        ConfigError: The file is another.
    """
    annotations = json_document(file).get("annotations")
    if not isinstance(annotations, list):
        raise ConfigError(
            f'{printable(str(file.path))} has no list "annotations", as filter_cap.json of MiniGPT-4 has.'
        )
    rows = (Row(file.label, number, content) for number, content in enumerate(annotations, start=1))
    yield from samples_of(rows, _description)


def _sample(row: Row) -> Iterator[Sample]:
    media, caption = find_column(row.content, MEDIA_COLUMNS), find_column(row.content, CAPTION_COLUMNS)
    if media is None:
        raise BadRowError(f"no column with media ({', '.join(MEDIA_COLUMNS)})")
    if caption is None:
        raise BadRowError(f"no column with captions ({', '.join(CAPTION_COLUMNS)})")
    name = media_of(row.content[media])
    yield Sample(row.id, captions=captions_of(row.content[caption]), media=name, modality=modality_of_name(name))


def _description(row: Row) -> Iterator[Sample]:
    if not isinstance(row.content, dict):
        raise BadRowError("not a JSON object")
    number = row.content.get("image_id")
    name = str(number) if type(number) is int else text_of(number, "image_id")
    yield Sample(row.id, captions=captions_of(row.content.get("caption")), media=media_of(f"image/{name}.jpg"))


def _read_parquet(file: DataFile) -> Iterator[Outcome]:
    kinds = {field.name: field.type for field in open_parquet(file).schema_arrow}
    media, caption = find_column(kinds, MEDIA_COLUMNS), find_column(kinds, CAPTION_COLUMNS)
    if media is None or caption is None:
        expected = f"one of {', '.join(MEDIA_COLUMNS)}, and one of {', '.join(CAPTION_COLUMNS)}"
        raise ConfigError(f"{printable(str(file.path))} has the columns {', '.join(kinds)}; expected {expected}.")
    make = partial(_embedded, caption=caption) if has_bytes(kinds[media]) else _sample
    yield from samples_of(parquet_rows(file, [media, caption]), make)


def _embedded(row: Row, caption: str) -> Iterator[Sample]:
    """A row that holds its picture; `row_media` reads it back by its number."""
    yield Sample(row.id, captions=captions_of(row.content.get(caption)), media=f"{row.file}::{row.number - 1}")
