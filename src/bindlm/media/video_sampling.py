"""Which frames of a film an encoder looks at: arithmetic on presentation times, in exact fractions."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from bindlm.errors import ConfigError


@dataclass(frozen=True)
class Timeline:
    """When the frames of a film are shown."""

    ticks: Sequence[int]
    """One number a frame, strictly ascending from 0; at least one frame."""
    tick_s: Fraction
    """Seconds a tick."""
    duration_ticks: int
    """When the last frame ends."""

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.duration_ticks * self.tick_s)


@dataclass(frozen=True)
class VideoSampling:
    """Which frames are picked. Defaults: those of ImageBind (arXiv 2305.05665); `num_frames=8` is LanguageBind's.

    Either short clips spread over the film, of which each gives some frames, or, with `num_frames`, frames spread over
    the whole film.
    """

    clip_seconds: float = 2.0
    """Length of a clip in seconds. A film that is shorter is every clip."""
    num_clips: int = 5
    """Clips, whose starts are spread evenly from 0 to where the last one ends with the film."""
    frames_per_clip: int = 2
    """Frames of each clip, spread evenly from its first to its last; one is its first."""
    num_frames: int | None = None
    """Frames spread evenly from the first of the film to its last, in place of clips; None takes clips."""

    def __post_init__(self) -> None:
        for name, most in (("num_clips", 1000), ("frames_per_clip", 1000), ("num_frames", 1000)):
            value = getattr(self, name)
            if value is None and name == "num_frames":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"VideoSampling.{name} must be a whole number from 1 to {most}, got {value!r}.")
        seconds = self.clip_seconds
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not is_number or not math.isfinite(seconds) or not 0.001 <= seconds <= 86_400:
            raise ConfigError(f"VideoSampling.clip_seconds must be a number from 0.001 to 86400, got {seconds!r}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Clips, and frames a clip, of what `pick` gives."""
        return (1, self.num_frames) if self.num_frames is not None else (self.num_clips, self.frames_per_clip)

    def pick(self, timeline: Timeline) -> np.ndarray:
        """Numbers of the frames, counted from 0, int64 of `shape`.

        With D seconds of film, clip i starts at `i * max(D - clip_seconds, 0) / (num_clips - 1)` and holds the frames
        shown from its start to before its end; of its t frames those numbered `floor(j (t - 1) / (n - 1))` are picked.
        A clip in which no frame begins gives the frame that is on the screen when it starts.

        Source: the video loader that ImageBind (arXiv 2305.05665) was released with.
        """
        if self.num_frames is not None:
            return np.array([_spread(0, len(timeline.ticks), self.num_frames)], dtype=np.int64)
        length = Fraction(str(self.clip_seconds)) / timeline.tick_s  # as written: 0.1 is one tenth
        latest = max(timeline.duration_ticks - length, Fraction(0))
        rows = []
        for clip in range(self.num_clips):
            start = latest * clip / max(self.num_clips - 1, 1)
            first = bisect_left(timeline.ticks, math.ceil(start))
            end = bisect_left(timeline.ticks, math.ceil(start + length))
            if first == end:
                first, end = max(first - 1, 0), max(first, 1)
            rows.append(_spread(first, end, self.frames_per_clip))
        return np.array(rows, dtype=np.int64)


def _spread(first: int, end: int, count: int) -> list[int]:
    """`count` numbers from `first` to `end - 1`: linspace, cut to whole numbers, without its rounding errors."""
    return [first + step * (end - 1 - first) // max(count - 1, 1) for step in range(count)]
