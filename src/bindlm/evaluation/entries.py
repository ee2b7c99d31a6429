"""Names of a model's cache entries."""

from pathlib import Path
from typing import Any

from bindlm.training.mini.entries import ENTRIES_FILE, CacheEntry, read_entries

__all__ = ["CacheEntry", "cache_entries"]


def cache_entries(bound: Any) -> list[CacheEntry]:
    """The entries of a model's cache in its order, as the file beside its weights lists them; [] without that file.

    Raises:
        CheckpointError: the file is damaged.
    """
    from bindlm.loading import MINI

    folder = MINI if bound.name == "mini" else Path(bound.name)
    return read_entries(folder) if (folder / ENTRIES_FILE).is_file() else []
