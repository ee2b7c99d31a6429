"""Names of a model's cache entries."""

from pathlib import Path
from typing import Any

from bindlm.space.entry_names import ENTRIES_FILE, NamedEntry, read_entry_names


def cache_entries(bound: Any) -> list[NamedEntry]:
    """The entries of a model's cache in its order, as the file beside its weights lists them; [] without that file.

    Raises:
        CheckpointError: the file is damaged.
    """
    from bindlm.loading import MINI

    folder = MINI if bound.name == "mini" else Path(bound.name)
    return read_entry_names(folder) if (folder / ENTRIES_FILE).is_file() else []
