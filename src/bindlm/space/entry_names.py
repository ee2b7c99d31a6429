"""Names of the entries of a mini's own visual cache: `cache_entries.json` beside its weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError

ENTRIES_FILE = "cache_entries.json"


class NamedEntry(NamedTuple):
    """What one row of a mini's visual cache shows."""

    name: str
    """What a person would call it: "German shepherd"."""
    kind: str
    """What kind of thing that is, or "" where saying so would sound odd: "dog"."""
    source: str
    """Where its picture comes from: "imagenet", "emoji" or "furniture"."""


def write_entry_names(folder: Path, entries: Iterable[NamedEntry]) -> None:
    """Write the names of a cache's entries, in its order.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    rows = [list(entry) for entry in entries]
    write_text_atomic(folder / ENTRIES_FILE, json.dumps(rows, ensure_ascii=False, indent=0) + "\n")


def read_entry_names(folder: Path) -> list[NamedEntry]:
    """The names of a cache's entries, in its order.

    Raises:
        CheckpointError: the folder has no such file, or it cannot be read.
    """
    file = folder / ENTRIES_FILE
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [NamedEntry(*row) for row in rows]
    except (OSError, ValueError, TypeError):
        raise CheckpointError(
            f"{file} cannot be read; expected the names of a mini's cache entries. Give the folder of a whole mini."
        ) from None
