"""What a sound is called, which family it belongs to, and which names the mini knows it by.

A sound has no picture of its own: it is bound through the prototypes of the names that stand for it in the mini's
cache. Some labels have no name there (clarinet, tuba, cymbal); those carry the nearest one and `exact` is False.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).parent / "sound_labels.tsv"


@dataclass(frozen=True)
class SoundLabel:
    """One row of `sound_labels.tsv`."""

    label: str
    """As in the tables of clips: "French horn"."""
    family: str
    """What a near miss still belongs to: "brass", "bird"."""
    exact: bool
    """Whether the names mean the same thing as the label, and are no mere neighbours."""
    names: tuple[str, ...]
    """`SOURCE:NAME` of entries of the mini's cache; `kind:NAME` is every ImageNet class of that kind."""

    def entries(self, cache_entries: Iterable[tuple[str, str, str]]) -> list[int]:
        """Places of the names among the cache's entries, given as (name, kind, source) in its order."""
        wanted = set(self.names)
        return [
            place
            for place, (name, kind, source) in enumerate(cache_entries)
            if f"{source}:{name}" in wanted or (source == "imagenet" and f"kind:{kind}" in wanted)
        ]


@cache
def load_sound_labels() -> dict[str, SoundLabel]:
    """Every label, by its name."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {
        row["label"]: SoundLabel(
            row["label"], row["family"], row["exact"] == "1", tuple(filter(None, row["names"].split("|")))
        )
        for row in rows
    }
