"""A file of JSON lines that grows while a model trains, and goes on where a resumed run does."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.state import write_text_atomic


class Journal:
    """Rows `{"step": …, …}`, one a line; whoever reads, and whenever the writer was killed, finds whole lines.

    Args:
        path: the file; its folder is made where absent.

    Example:
        >>> journal = Journal("run/metrics.jsonl")
        >>> journal.keep_until(200)  # a run that resumes at step 200 will do the later steps again
        >>> journal.append({"step": 210, "loss": 2.31})
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def rows(self) -> list[dict[str, Any]]:
        """The whole lines that are there, in order; none where there is no file."""
        return read_journal(self.path)

    def keep_until(self, step: int) -> list[dict[str, Any]]:
        """Drop the rows of later steps, and what a kill left of a line; step 0 is a new run, which keeps none.

        Returns:
            The rows kept.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        rows = [row for row in self.rows() if 0 < step and row.get("step", 0) <= step]
        text = "".join(_line(row) for row in rows)
        with disk_errors(self.path.parent):
            is_as_it_should_be = self.path.exists() and self.path.read_bytes() == text.encode()
        if not is_as_it_should_be:
            write_text_atomic(self.path, text)
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row.

        Raises:
            CheckpointError: the disk is full or not writable; the file ends with the row before.
        """
        line = _line(row).encode()
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One write of the whole line: a kill falls before it or after it. Only a full disk writes less.
            with self.path.open("ab", buffering=0) as stream:
                end = stream.seek(0, os.SEEK_END)
                written = 0
                try:
                    written = stream.write(line) or 0
                    if written < len(line):
                        stream.write(line[written:])  # says why
                except OSError:
                    stream.truncate(end)
                    raise


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a journal; lines that are no JSON object, such as half a last one, are left out."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """`value` with null for what JSON cannot say: NaN and the infinities of a loss that blew up."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
