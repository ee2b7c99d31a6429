"""Rows that cannot be learned from: counted, kept aside with their reason, never fatal."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FIRST = 5
"""Bad rows that messages show."""
_MOST_KEPT = 10_000
"""Bad rows that are written aside; a file of another format would else be copied whole."""
_MOST_REASONS = 50
"""Distinct reasons that are counted apart."""
_CONTENT = 500
"""Characters of a bad row that are kept."""
_OTHER = "other reasons"


class BadRowError(ValueError):
    """A reader cannot make a sample of a row; the text is the reason, the same for all rows with that fault."""


@dataclass(frozen=True)
class BadRow:
    """One row that is no sample."""

    file: str
    """Name of the data file."""
    number: int
    """Line of a text file, else place of the row in its file, counted from 1; 0 for the file as a whole."""
    reason: str
    """What is wrong, in words that are the same for every row with that fault."""
    content: str = ""
    """The row's beginning."""


@dataclass(frozen=True)
class LeftOut:
    """A row that is sound but not wanted: a failed download, a pair that is not similar enough."""

    reason: str
    """Why it is not wanted."""


@dataclass
class BadRows:
    """The bad rows of a source: those of the last pass over its files."""

    kept_aside: Path | None = None
    """JSONL file with file, number, reason and content of each (the first 10,000); None where nothing is written."""
    count: int = 0
    """How many there are."""
    reasons: Counter[str] = field(default_factory=Counter)
    """How many have which fault."""
    first: list[BadRow] = field(default_factory=list)
    """The first five."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Sound rows that are not wanted, by reason; they do not count as bad."""

    def start(self) -> None:
        """Forget the pass before, and empty the file."""
        self.count = 0
        self.reasons.clear()
        self.first.clear()
        self.left_out.clear()
        if self.kept_aside is not None:
            self.kept_aside.parent.mkdir(parents=True, exist_ok=True)
            self.kept_aside.write_text("", encoding="utf-8")

    def add(self, row: BadRow | LeftOut) -> None:
        """Count a row, and write it aside where it is bad."""
        if isinstance(row, LeftOut):
            self.left_out[_bounded(self.left_out, row.reason)] += 1
            return
        self.count += 1
        self.reasons[_bounded(self.reasons, row.reason)] += 1
        if len(self.first) < _FIRST:
            self.first.append(row)
        if self.kept_aside is not None and self.count <= _MOST_KEPT:
            # Opened anew each time: an open file would not survive the way into a worker process.
            with self.kept_aside.open("a", encoding="ascii") as file:
                file.write(json.dumps(vars(row)) + "\n")

    def summary(self) -> str:
        """The reasons in one line, the most frequent first."""
        return "; ".join(f"{reason} ({count})" for reason, count in self.reasons.most_common(3))

    def to_dict(self) -> dict[str, Any]:
        """The counts, as JSON can hold them."""
        first = [vars(row) for row in self.first]
        return {"count": self.count, "reasons": self.reasons, "first": first, "left_out": self.left_out}

    @classmethod
    def from_dict(cls, counts: dict[str, Any], kept_aside: Path | None) -> "BadRows":
        """What `to_dict` gave."""
        first = [BadRow(**row) for row in counts["first"]]
        return cls(kept_aside, counts["count"], Counter(counts["reasons"]), first, Counter(counts["left_out"]))


def shown(content: Any) -> str:
    """The beginning of a row, for the file of bad rows; of bytes as they are, the rest escaped."""
    text = content if isinstance(content, str) else repr(content)
    return text[:_CONTENT].encode("utf-8", "backslashreplace").decode()


def _bounded(reasons: Counter[str], reason: str) -> str:
    return reason if reason in reasons or len(reasons) < _MOST_REASONS else _OTHER
