"""From a medium's name within a source to its file or its bytes."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindlm.errors import ConfigError
from bindlm.media.names import Medium, printable
from bindlm.training.data.fields import is_url
from bindlm.training.data.files import DataFile
from bindlm.training.data.tables import has_bytes, open_parquet
from bindlm.training.data.tars import MAX_MEMBER, read_member

MARK = "::"
"""Between a shard's name and what of it is meant: `00000.tar::000000012.jpg`, `00000.parquet::12`."""
_MAX_GROUP = 1 << 30
"""Bytes of a row group of Parquet, which is read as a whole; img2dataset's have 100 pictures."""


@dataclass(frozen=True)
class MediaRoots:
    """Where a source's media lie."""

    media: Path
    """Names of files are relative to this."""
    shards: Path
    """Names of shards are relative to this: the folder of the data."""

    def read(self, name: str) -> Path | bytes:
        """The file of a medium, or its bytes where it lies in a shard.

        Raises:
            MediaError: There is no such medium.
        """
        shard, inner = split_name(name)
        medium = Medium("medium", repr(printable(name)))
        if is_url(name):
            raise medium.error("it is an address", "Fetch the data with img2dataset, and train on what it writes")
        path = self._path(name if inner is None else shard, inner, medium)
        if inner is None:
            return path
        try:
            data = read_member(path, inner) if path.suffix.lower() == ".tar" else _read_cell(path, inner)
        except (OSError, ConfigError):
            data = None
        if data is None:
            raise medium.error("the shard has no such medium, or is damaged", "Get the shard again")
        return data

    def has(self, name: str) -> bool:
        """Whether a medium is there, as far as a look at the disk tells; of a shard, whether the shard is there."""
        shard, inner = split_name(name)
        root = self.media if inner is None else self.shards
        return not is_url(name) and os.path.isfile(root / shard)

    def _path(self, name: str, inner: str | None, medium: Medium) -> Path:
        path = (self.media if inner is None else self.shards) / name
        if inner is not None and (os.path.isabs(name) or ".." in Path(name).parts):
            raise medium.error("its shard is outside the data's folder", "Read the data again")
        if not path.is_file():  # neither a folder nor a pipe, whose reading might never end
            raise medium.error(f"there is no file in {printable(str(path.parent))!r}", "Set media_root")
        return path


def split_name(name: str) -> tuple[str, str | None]:
    """`("00000.tar", "12.jpg")` for `00000.tar::12.jpg`; the name itself and None for a file of its own."""
    shard, mark, inner = name.partition(MARK)
    return (shard, inner) if mark and shard.lower().endswith((".tar", ".parquet")) else (name, None)


def _read_cell(path: Path, number: str) -> bytes | None:
    """The bytes in the row of a number."""
    stat = path.stat()
    starts, column = _layout(path, stat.st_size, stat.st_mtime_ns)
    row = int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else -1
    if column is None or not 0 <= row < starts[-1]:
        return None
    group = next(index for index, start in enumerate(starts[1:]) if row < start)
    value = _group(path, stat.st_size, stat.st_mtime_ns, group, column)[row - starts[group]].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if value is not None and len(value) <= MAX_MEMBER else None


@functools.lru_cache(maxsize=64)
def _layout(path: Path, size: int, mtime_ns: int) -> tuple[list[int], str | None]:
    """The first row of each row group and, last, the number of rows; and the column that holds media."""
    parquet = open_parquet(DataFile(path, path.name))
    starts = [0]
    for index in range(parquet.metadata.num_row_groups):
        starts.append(starts[-1] + parquet.metadata.row_group(index).num_rows)
    column = next((field.name for field in parquet.schema_arrow if has_bytes(field.type)), None)
    return starts, column


@functools.lru_cache(maxsize=2)
def _group(path: Path, size: int, mtime_ns: int, group: int, column: str) -> Any:
    parquet = open_parquet(DataFile(path, path.name))
    if parquet.metadata.row_group(group).total_byte_size > _MAX_GROUP:
        raise ConfigError(f"{path} has row groups above 1 GiB; write it with smaller ones.")
    return parquet.read_row_group(group, columns=[column]).column(column)
