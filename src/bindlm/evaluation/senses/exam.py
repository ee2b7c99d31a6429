"""What a sense is measured on: held-out media, right names for each, and the pictures they are to find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bindlm.space.entry_names import NamedEntry

ALL = "all"
"""The group that every medium is in."""


@dataclass(frozen=True)
class Item:
    """One held-out medium."""

    id: str
    medium: Any
    """What the encoder takes: a path, or the text itself."""
    label: str
    """Its plain name."""
    acceptable: tuple[str, ...]
    """Names that are right (strict count)."""
    parents: tuple[str, ...] = ()
    """More general names, or members of the same family (lenient count)."""
    groups: tuple[str, ...] = ()
    """Which parts of the report it counts in, besides the whole."""
    pictures: tuple[Path, ...] = ()
    """Of this very object."""

    @property
    def key(self) -> str:
        """The name by which media and pictures belong together."""
        return self.label.casefold()


@dataclass(frozen=True)
class Exam:
    """The held-out media of one sense.

    Items without pictures are to find the prototype of their name among the visual cache's entries.
    """

    sense: str
    """As the encoder calls it."""
    items: tuple[Item, ...]
    groups: tuple[str, ...] = ()
    """Columns of the report besides the whole, in their order."""
    categories: tuple[str, ...] = ()
    """More groups, too many for columns."""
    training: tuple[tuple[Any, str], ...] = ()
    """Media that the tower may have seen, and their labels: what the nearest of them is called is a baseline."""
    own_sources: tuple[str, ...] = ()
    """Sources of cache entries that show the held-out objects themselves: an entry of one of them that carries the
    name of a held-out object is left out, for one way of answering."""
    entries_of: Callable[[Item, Sequence[NamedEntry]], list[int]] | None = field(default=None, compare=False)
    """Where items have no pictures: the cache entries that stand for an item's name; none where it has no such name.
    """

    def first(self, count: int | None) -> "Exam":
        """The same with only the first items."""
        return replace(self, items=self.items[:count])

    def numbers_of(self, group: str) -> list[int]:
        """Which items are in a group."""
        return [number for number, item in enumerate(self.items) if group == ALL or group in item.groups]
