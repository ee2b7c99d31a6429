"""Text files of IMU samples: rows of numbers, with or without times, names and comments."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from bindlm.errors import MediaError
from bindlm.media.names import Medium, printable

_NUM_CHANNELS = 6
_MAX_LINE = 2_000
"""Characters a line; 7 numbers need 200 at most."""
_MAX_COLUMNS = 64
_MAX_COMMENTS = 100
_MAX_BLANK = 100
_RATE = re.compile(r"sample_rate_hz\s*[:=]\s*([0-9]{1,7}(?:\.[0-9]{0,9})?)\b", re.IGNORECASE)
_CHANNEL = re.compile(r"(?:.*[^a-z])?(acc|accl|accel|accelerometer|acceleration|gyr|gyro|gyroscope)[ ._-]?([xyz])")
_TIME = re.compile(r"(?:.*_)?(?:t|time|timestamp|seconds)(?:[ _]?\(?(s|ms|us|ns)\)?)?")
_TIME_UNITS_S = {None: 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_CURE = "Write one row a sample: acceleration x, y, z, rotation x, y, z, with the time in seconds before them or none"


@dataclass(frozen=True, eq=False)
class ImuTable:
    """What a text file says."""

    samples: np.ndarray
    """float64 `(6, N)`: acceleration x, y, z, rotation x, y, z."""
    times_s: np.ndarray | None
    """float64 `(N,)`, where it has a column of times."""
    sample_rate_hz: float | None
    """Where a comment gives it."""


def read_table(data: bytes, medium: Medium, *, max_rows: int) -> ImuTable:
    """Parse the bytes of a text file, in UTF-8.

    Raises:
        MediaError: It is no such text, has too many rows, or a row differs from the others; the message says which.
    """
    if b"\0" in data[:_MAX_LINE]:
        raise medium.error("it is a binary file, neither text nor .npy", _CURE)
    if max(data.count(b"\n"), data.count(b"\r")) > max_rows + _MAX_COMMENTS + _MAX_BLANK:
        raise _too_many_rows(medium, max_rows)  # parsing takes 3 s a million
    stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", errors="strict", newline=None)
    try:
        lines = _Lines(stream, medium, max_rows)
        columns = _Columns.of(lines.names, lines.num_columns, medium)
        numbers = np.loadtxt(lines, dtype=np.float64, delimiter=lines.delimiter, comments=None, ndmin=2)
    except MediaError:
        raise
    except UnicodeDecodeError:
        raise medium.error("it is neither text in UTF-8 nor .npy", _CURE) from None
    except Exception:  # of numpy's parser: a row of another length, or something that is no number
        line = f"line {lines.line} or one before it" if lines.line > lines.first_line + 1 else f"line {lines.line}"
        raise medium.error(f"{line} does not hold {lines.num_columns} numbers like the first row", _CURE) from None
    times_s = None if columns.time is None else numbers[:, columns.time] * columns.time_unit_s
    return ImuTable(np.ascontiguousarray(numbers[:, columns.channels].T), times_s, lines.sample_rate_hz)


class _Lines:
    """The rows of numbers, one by one, once comments and names have been taken off the top."""

    def __init__(self, stream: TextIO, medium: Medium, max_rows: int) -> None:
        self._stream, self._medium, self._max_rows = stream, medium, max_rows
        self.line = 0
        self.sample_rate_hz: float | None = None
        self.names: list[str] | None = None
        first = self._skip_comments()
        self.delimiter = next((mark for mark in (",", ";", "\t") if mark in first), None)
        if not _are_numbers(first.split(self.delimiter)):
            self.names = [field.strip().strip("\"'").lower() for field in first.split(self.delimiter)]
            first = self._read()
        self._first, self.first_line = first, self.line
        self.num_columns = len(first.split(self.delimiter))
        if not _are_numbers(first.split(self.delimiter)) or self.num_columns > _MAX_COLUMNS:
            shown = (
                f"no row of numbers: '{printable(first.strip()[:60])}'" if first else "where it ends, without numbers"
            )
            raise medium.error(f"line {self.line} is {shown}", _CURE)

    def __iter__(self) -> Iterator[str]:
        num_rows, num_blank, line = 0, 0, self._first
        while line:
            if line.strip():
                num_rows += 1
                yield line
            else:
                num_blank += 1
            if num_rows > self._max_rows:
                raise _too_many_rows(self._medium, self._max_rows)
            if num_blank > _MAX_BLANK:
                raise self._medium.error("it has many blank lines", "Remove them")
            line = self._read()

    def _read(self) -> str:
        line = self._stream.readline(_MAX_LINE + 1)
        self.line += 1
        if len(line) > _MAX_LINE:
            raise self._medium.error(f"line {self.line} is longer than {_MAX_LINE} characters", _CURE)
        return line

    def _skip_comments(self) -> str:
        for _ in range(_MAX_COMMENTS):
            line = self._read()
            if not line.lstrip().startswith("#") and (line.strip() or not line):
                return line
            if (match := _RATE.search(line)) is not None:
                self.sample_rate_hz = float(match[1])
        raise self._medium.error(f"it starts with more than {_MAX_COMMENTS} comments or blank lines", _CURE)


@dataclass(frozen=True)
class _Columns:
    """Which column is what."""

    channels: list[int]
    time: int | None = None
    time_unit_s: float = 1.0

    @classmethod
    def of(cls, names: list[str] | None, num_columns: int, medium: Medium) -> _Columns:
        """By name where the six are named, else by place."""
        times = [match and match[1] for match in map(_TIME.fullmatch, names or [])]
        time = next((i for i, name in enumerate(names or []) if _TIME.fullmatch(name)), None)
        unit_s = 1.0 if time is None else _TIME_UNITS_S[times[time]]
        if names is not None and len(names) != num_columns:
            raise medium.error(f"it names {len(names)} columns and has {num_columns}", _CURE)
        if (by_name := _named_channels(names or [])) is not None:
            return cls(by_name, time, unit_s)
        if num_columns == _NUM_CHANNELS and time is None:
            return cls(list(range(_NUM_CHANNELS)))
        if num_columns == _NUM_CHANNELS + 1 and time in (None, 0):
            return cls(list(range(1, _NUM_CHANNELS + 1)), 0, unit_s)
        raise medium.error(f"it has {num_columns} columns, and six, or seven with the time first, are expected", _CURE)


def _named_channels(names: list[str]) -> list[int] | None:
    """The columns of acceleration x, y, z and rotation x, y, z, if the names tell each of them once."""
    found: dict[str, int] = {}
    for i, name in enumerate(names):
        if (match := _CHANNEL.fullmatch(name)) is not None:
            found.setdefault(match[1][0] + match[2], i)
    wanted = ["ax", "ay", "az", "gx", "gy", "gz"]
    return [found[channel] for channel in wanted] if set(wanted) <= set(found) else None


def _too_many_rows(medium: Medium, max_rows: int) -> MediaError:
    return medium.error(f"it has more than {max_rows} rows", "Give a part of it, or raise ImuLimits(max_samples=...)")


def _are_numbers(fields: list[str]) -> bool:
    try:
        return bool([float(field) for field in fields])
    except ValueError:
        return False
