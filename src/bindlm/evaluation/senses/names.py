"""Right names for the held-out objects of a source, from a table written by hand: `data/furniture.tsv`, `emoji.tsv`.

`data/NAMES.md` says how they were made.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bindlm.errors import ConfigError

FOLDER = Path(__file__).parent.parent / "data"
COLUMNS = ("label", "acceptable", "parents")


@dataclass(frozen=True)
class Names:
    """What an object may be called."""

    acceptable: tuple[str, ...]
    """Right names: the noun, the label, synonyms."""
    parents: tuple[str, ...]
    """More general names, and close neighbours where the drawing leaves open which it is."""


def names_of(source: str, label: str) -> Names:
    """The names of an object by its label; of one that the table lacks, just the label and its last word."""
    known = read_names(FOLDER / f"{source}.tsv").get(label.casefold())
    return known or Names(tuple(dict.fromkeys((label, label.split()[-1]))), ())


@cache
def read_names(table: Path) -> dict[str, Names]:
    """Every row of a table, by its label in small letters.

    Raises:
        ConfigError: the table is malformed; the message names the line.
    """
    header, *lines = table.read_text(encoding="utf-8").splitlines()
    if tuple(header.split("\t")) != COLUMNS:
        raise ConfigError(f"{table} has the columns {header.split(chr(9))}, expected {list(COLUMNS)}")
    names: dict[str, Names] = {}
    for number, line in enumerate(lines, start=2):
        label, acceptable, parents = _cells(line, f"{table}, line {number}")
        if label.casefold() in names:
            raise ConfigError(f"{table}, line {number}: {label!r} was there before")
        names[label.casefold()] = Names(acceptable, parents)
    return names


def _cells(line: str, where: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    cells = line.split("\t")
    if len(cells) != len(COLUMNS):
        raise ConfigError(f"{where} has {len(cells)} columns, expected {len(COLUMNS)}")
    acceptable, parents = (tuple(filter(None, cell.split("|"))) for cell in cells[1:])
    if not cells[0] or not acceptable:
        raise ConfigError(f"{where}: expected a label and at least one acceptable name")
    return cells[0], acceptable, parents
