"""What img2dataset writes when it fetches CC3M, CC12M, SBU, LAION or COYO: tar shards, folders, or Parquet."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from bindlm.errors import ConfigError
from bindlm.media.names import printable
from bindlm.training.data.bad_rows import BadRow, BadRowError, LeftOut
from bindlm.training.data.fields import CAPTION_COLUMNS, captions_of, find_column, media_of, text_of
from bindlm.training.data.files import DataFile, find_files, find_folders
from bindlm.training.data.rows import Outcome, Row, samples_of
from bindlm.training.data.sample import Sample
from bindlm.training.data.tables import has_bytes, open_parquet, parquet_rows
from bindlm.training.data.tars import Member, walk
from bindlm.training.stage_recipe import SourceConfig

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_MAX_WORDS = 1 << 20
"""Bytes of a caption or of its JSON."""
_SUCCESS = "success"


def find_img2dataset(path: str) -> tuple[Path, list[DataFile]]:
    """Shards at a path: tars, else folders with pictures, else Parquet that holds pictures.

    Beside its tars and folders img2dataset writes Parquet without pictures, which is no data of its own.

    Raises:
        ConfigError: There are none.
    """
    try:
        return find_files(path, (".tar",))
    except ConfigError as error:
        root, folders = find_folders(path, PICTURES)
        if folders:
            return root, folders
        try:
            root, tables = find_files(path, (".parquet",))
        except ConfigError:
            raise error from None
        return root, tables


def read_img2dataset(file: DataFile, config: SourceConfig) -> Iterator[Outcome]:
    """One shard; rows whose download failed are left out.

    Raises:
        ConfigError: The file is of no layout of img2dataset.
    """
    if file.path.is_dir():
        yield from _read_folder(file)
    elif file.path.suffix.lower() == ".parquet":
        yield from _read_parquet(file)
    elif file.path.suffix.lower() == ".tar":
        yield from _read_tar(file)
    else:
        raise ConfigError(
            f"{printable(str(file.path))} is no shard of img2dataset; expected .tar, .parquet or a folder."
        )


def _read_tar(file: DataFile) -> Iterator[Outcome]:
    """Members with one name up to the first dot belong together, and stand together."""
    with file.open() as stream:
        seen: set[str] = set()
        group: dict[str, Member] = {}
        key, number = "", 0
        for member in walk(stream):
            if member.fault is not None:
                yield BadRow(file.label, number + 1, member.fault, member.name[:200])
                continue
            base, suffix = _split(member.name)
            if base != key:
                yield from _tar_sample(file, stream, key, number, group)
                key, group, number = base, {}, number + 1
                if key in seen:
                    yield BadRow(file.label, number, "key that the shard has twice", key[:200])
            if key not in seen or group:
                seen.add(key)
                group.setdefault(suffix, member)
        yield from _tar_sample(file, stream, key, number, group)


def _tar_sample(
    file: DataFile, stream: IO[bytes], key: str, number: int, group: dict[str, Member]
) -> Iterator[Outcome]:
    if not group:
        return
    picture = next((group[suffix] for suffix in PICTURES if suffix in group), None)
    words: dict[str, bytes | None] = {
        suffix: _read(stream, group[suffix]) for suffix in (".txt", ".json") if suffix in group
    }
    name = None if picture is None else f"{file.label}::{picture.name}"
    yield from samples_of([Row(file.label, number, key)], partial(_sample, media=name, words=words))


def _read_folder(file: DataFile) -> Iterator[Outcome]:
    names = sorted(os.listdir(file.path))
    present = set(names)
    pictures = [name for name in names if name.lower().endswith(PICTURES) and not name.startswith(".")]
    for number, picture in enumerate(pictures, start=1):
        key = picture[: picture.rfind(".")]
        words: dict[str, bytes | None] = {}
        for suffix in (".txt", ".json"):
            if f"{key}{suffix}" in present:
                words[suffix] = _read_words(file.path / f"{key}{suffix}")
        media = picture if file.label == "." else f"{file.label}/{picture}"
        yield from samples_of([Row(file.label, number, key)], partial(_sample, media=media, words=words))


def _sample(row: Row, media: str | None, words: dict[str, bytes | None]) -> Iterator[Sample | LeftOut]:
    details = _details(words.get(".json"))
    status = details.get("status", _SUCCESS)
    if status != _SUCCESS:
        yield LeftOut("download that failed")
        return
    if media is None:
        raise BadRowError("no picture")
    caption: Any = details.get("caption")
    if ".txt" in words:
        text = words[".txt"]
        if text is None:
            raise BadRowError(f"caption longer than {_MAX_WORDS >> 20} MiB")
        caption = text.decode("utf-8", "surrogateescape")
    yield Sample(f"{row.file}:{text_of(row.content, 'key')}", captions=captions_of(caption), media=media_of(media))


def _details(data: bytes | None) -> dict[str, Any]:
    """What img2dataset knows of a picture; nothing where that cannot be read, since the caption stands elsewhere."""
    try:
        details = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return details if isinstance(details, dict) else {}


def _read_parquet(file: DataFile) -> Iterator[Outcome]:
    kinds = {field.name: field.type for field in open_parquet(file).schema_arrow}
    caption = find_column(kinds, CAPTION_COLUMNS)
    if caption is None or not any(has_bytes(kind) for kind in kinds.values()):
        raise ConfigError(
            f"{printable(str(file.path))} holds no pictures with captions; its columns are {', '.join(kinds)}. "
            "If it lists the pictures of shards, name the shards; if it lists addresses, fetch them with img2dataset."
        )
    columns = [name for name in (caption, "status") if name in kinds]
    yield from samples_of(parquet_rows(file, columns), partial(_table_sample, caption=caption))


def _table_sample(row: Row, caption: str) -> Iterator[Sample | LeftOut]:
    if row.content.get("status", _SUCCESS) != _SUCCESS:
        yield LeftOut("download that failed")
        return
    yield Sample(row.id, captions=captions_of(row.content.get(caption)), media=f"{row.file}::{row.number - 1}")


def _read(stream: IO[bytes], member: Member) -> bytes | None:
    """The bytes of a member, or None where they are too many."""
    if member.size > _MAX_WORDS:
        return None
    stream.seek(member.offset)
    return stream.read(member.size)


def _read_words(path: Path) -> bytes | None:
    """The bytes of a small file, or None where they are too many, or it is no plain file."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_WORDS:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _split(name: str) -> tuple[str, str]:
    """`("a/000012", ".jpg")` for `a/000012.jpg`; the first dot counts, as in webdataset."""
    folder, slash, base = name.rpartition("/")
    key, dot, suffix = base.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()
