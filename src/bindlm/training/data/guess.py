"""Which layout a file has, by its name and its first rows."""

import contextlib
import os
from itertools import islice
from typing import Any

from bindlm.errors import ConfigError
from bindlm.training.data import captions
from bindlm.training.data.fields import CAPTION_COLUMNS, MEDIA_COLUMNS, find_column
from bindlm.training.data.files import DataFile, find_files, find_folders
from bindlm.training.data.img2dataset import PICTURES
from bindlm.training.data.rows import Row, json_rows
from bindlm.training.data.tables import has_bytes, open_parquet

_ROWS = 50
"""Rows that are looked at: LLaVA's mixtures begin with text-only ones."""
_HEAD = 1 << 16
"""Bytes that are looked at of a file that is one JSON object."""


def guess_format(path: str) -> str | None:
    """The name in `FORMATS` of what is at a path, or None where nothing fits.

    GPT4Tools and Alpaca have one shape, and are called alpaca.
    """
    try:
        if _is_img2dataset(path):
            return "img2dataset"
        return _guess(find_files(path, captions.SUFFIXES)[1][0])
    except (ConfigError, OSError):
        return None


def _guess(file: DataFile) -> str | None:
    suffix = file.path.suffix.lower()
    if suffix in (".tsv", ".csv"):
        return "captions"
    if suffix == ".parquet":
        return _of_table(file)
    return _of_document(file) or _of_rows(
        [row.content for row in islice(json_rows(file), _ROWS) if isinstance(row, Row)]
    )


def _of_table(file: DataFile) -> str | None:
    """Shards of img2dataset have the key of each picture, other tables of captions have not."""
    kinds = {field.name: field.type for field in open_parquet(file).schema_arrow}
    if "key" in kinds and any(has_bytes(kind) for kind in kinds.values()):
        return "img2dataset"
    return "captions" if _has_captions(kinds) else None


def _of_document(file: DataFile) -> str | None:
    """The layout of a file that is one object with lists in it."""
    with file.open() as stream:
        head = stream.read(_HEAD).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head.startswith(b"{"):
        return None
    if b'"annotations"' in head and b'"image_id"' in head and b'"images"' not in head and b'"caption"' in head:
        return "minigpt4"
    return "coco" if b'"images"' in head and (b'"file_name"' in head or b'"annotations"' in head) else None


def _of_rows(rows: list[dict[str, Any]]) -> str | None:
    if not rows:
        return None
    if any("image_info" in row and "text_list" in row for row in rows):
        return "mmc4"
    if any("instruction" in row and "output" in row for row in rows):
        return "alpaca"
    if any({"conversations", "messages", "conversation", "items"} & row.keys() for row in rows):
        return "llava" if any(row.get("image") for row in rows) else "sharegpt"
    return "captions" if any(_has_captions(row) for row in rows) else None


def _has_captions(columns: dict[str, Any]) -> bool:
    return find_column(columns, MEDIA_COLUMNS) is not None and find_column(columns, CAPTION_COLUMNS) is not None


def _is_img2dataset(path: str) -> bool:
    """Whether there are shards, or pictures that each have a text beside them."""
    with contextlib.suppress(ConfigError):
        if any(file.path.suffix.lower() == ".tar" for file in find_files(path, (".tar",))[1]):
            return True
    for folder in find_folders(path, PICTURES)[1]:
        names = set(os.listdir(folder.path))
        return any(f"{os.path.splitext(name)[0]}.txt" in names for name in names if name.lower().endswith(PICTURES))
    return False
