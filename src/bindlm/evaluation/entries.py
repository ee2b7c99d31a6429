"""Names of a mini's cache entries."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CacheEntry:
    """One row of a visual cache."""

    name: str
    """What a person would call it."""
    kind: str
    """What kind of thing that is, or ""."""
    source: str
    """Where its picture comes from: "imagenet", "emoji" or "furniture"."""


def cache_entries(bound: Any) -> list[CacheEntry]:
    """The entries of a model's cache in its order, as the file beside its weights lists them; [] without that file."""
    from bindlm.loading import MINI

    folder = MINI if bound.name == "mini" else Path(bound.name)
    path = folder / "cache_entries.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [CacheEntry(name, kind, source) for name, kind, source in rows]
