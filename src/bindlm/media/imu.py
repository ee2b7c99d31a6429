"""Recordings of inertial measurement units: acceleration and rotation over time, at an even rate."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from bindlm.errors import ConfigError
from bindlm.media import npy
from bindlm.media.image_array import is_tensor
from bindlm.media.imu_table import read_table
from bindlm.media.limits import UrlLimits, _check_finite, _check_positive_ints
from bindlm.media.names import Medium
from bindlm.media.source import describe, read_bytes

NUM_CHANNELS = 6
_MIN_RATE_HZ, _MAX_RATE_HZ = 1.0, 100_000.0
_RATE_TOLERANCE = 0.02
"""Given and recorded rate may differ by this share: clocks drift, and headers are rounded."""
_MAX_GAP_STEPS = 20
"""Longest pause between two samples, in usual steps. More is a break, not jitter, and is not bridged."""


@dataclass(frozen=True)
class ImuLimits:
    """How large a recording may be."""

    max_bytes: int = 64 * 1024 * 1024
    """Size of the file, of the bytes given, or of the body of a web answer."""
    max_samples: int = 500_000
    """Points in time: 41 minutes at 200 Hz, about 1.5 s to parse."""
    max_seconds: float = 24 * 3600.0
    """Length of the recording."""

    def __post_init__(self) -> None:
        _check_positive_ints(self, ("max_bytes", "max_samples"))
        _check_finite(self, "max_seconds", 0.001)


@dataclass(frozen=True, eq=False)
class Imu:
    """One recording."""

    samples: np.ndarray
    """float32 `(6, N)`: acceleration along x, y, z in m/s^2, then rotation about x, y, z in rad/s."""
    sample_rate_hz: float
    """Samples a second, evenly spaced."""

    @property
    def duration_seconds(self) -> float:
        """N divided by the rate."""
        return self.samples.shape[1] / self.sample_rate_hz


def load_imu(
    source: str | os.PathLike[Any] | bytes | IO[bytes] | np.ndarray | Any,
    *,
    sample_rate_hz: float | None = None,
    limits: ImuLimits = ImuLimits(),
    allow_url: bool | UrlLimits = False,
    name: str | None = None,
) -> Imu:
    """Read a recording of acceleration and rotation.

    A text file has one row a point in time and six columns: acceleration x, y, z, rotation x, y, z; or seven, time
    first. Columns stand apart by commas, semicolons, tabs or blanks. Lines that start with `#` come first, one of them
    may say `sample_rate_hz = 200`; then a row of names may follow. Where that names all six (`acc_x`, `accl_x`,
    `accel_x`, `gyro_x`, `gyr_x` ...), columns are found by name, in any order and among others, as in Ego4D; so is
    the first one named for time. Time is in seconds, unless its name ends in `_ms`, `_us` or `_ns`. Samples that are
    unevenly spaced are brought to their mean rate by linear interpolation.

    Numbers stay as they are: a file in g or degrees a second must be converted first (1 g = 9.80665 m/s^2).

    Args:
        source: A text or `.npy` file (its path, its bytes, the open file, or an address), or a numpy array or torch
            tensor; arrays are `(N, 6)` or `(6, N)`, not both at once.
        sample_rate_hz: Samples a second, 1 to 100,000; needed where the file has neither times nor a rate.
        limits: Bounds on bytes, samples and seconds.
        allow_url: Whether addresses of the web are fetched; `UrlLimits` says within which bounds.
        name: What to call it in messages, in place of its path or a description.

    Returns:
        The recording, float32 `(6, N)`, with at least two samples.

    Raises:
        MediaError: It cannot be read, is out of bounds, has no rate or two that disagree, holds NaN, infinity or text
            among the numbers, or its times go back or pause.
        ConfigError: An impossible rate.

    Source:
        ImageBind (arXiv 2305.05665), section 4 (IMU of Ego4D); the order of channels is not published, this one is
        the order in which the paper names them ("accelerometer, gyroscope").
    """
    if sample_rate_hz is not None and not _is_rate(sample_rate_hz):
        raise ConfigError(f"sample_rate_hz must be a number from 1 to 100000, got {sample_rate_hz!r}.")
    times_s: np.ndarray | None = None
    medium = _describe(source, name)
    if isinstance(source, np.ndarray) or is_tensor(source):
        samples = _from_array(_as_array(source, medium), medium)
    else:
        data = read_bytes(source, medium, max_bytes=limits.max_bytes, allow_url=allow_url)
        if data.startswith(npy.MAGIC):
            samples = _from_array(npy.read_npy(data, medium), medium)
        else:
            table = read_table(data, medium, max_rows=limits.max_samples)
            samples, times_s = table.samples, table.times_s
            sample_rate_hz = _agree(sample_rate_hz, table.sample_rate_hz, medium)
    _check_samples(samples, medium, limits)
    if times_s is not None:
        samples, recorded_rate_hz = _evenly(samples, times_s, medium, limits)
        sample_rate_hz = _agree(recorded_rate_hz, sample_rate_hz, medium)
    if sample_rate_hz is None:
        raise medium.error(
            "it does not say how many samples a second it has",
            "Give sample_rate_hz=..., or a first column of times in seconds",
        )
    if samples.shape[1] / sample_rate_hz > limits.max_seconds:
        raise medium.error(
            f"it lasts {samples.shape[1] / sample_rate_hz:.6g} s, and {limits.max_seconds:g} s is allowed",
            "Give a part of it, or raise ImuLimits(max_seconds=...)",
        )
    return Imu(np.ascontiguousarray(samples, dtype=np.float32), float(sample_rate_hz))


def _describe(source: Any, name: str | None) -> Medium:
    if name is None and (isinstance(source, np.ndarray) or is_tensor(source)):
        return Medium("IMU recording", f"<{type(source).__name__}, shape {tuple(source.shape)}>")
    return describe(source, "IMU recording", name)


def _is_rate(rate_hz: Any) -> bool:
    is_number = isinstance(rate_hz, (int, float)) and not isinstance(rate_hz, bool)
    return is_number and _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ


def _as_array(source: Any, medium: Medium) -> np.ndarray:
    if isinstance(source, np.ma.MaskedArray):
        raise medium.error("it is a masked array", "Cut out the part without masked values")
    if isinstance(source, np.ndarray):
        return np.asarray(source)
    try:
        return np.asarray(source.detach().cpu().float().numpy())
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, meta, quantised
        raise medium.error("it is no plain tensor with values", "Give it as a numpy array") from None


def _from_array(array: np.ndarray, medium: Medium) -> np.ndarray:
    """`(6, N)` from either order."""
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise medium.error(f"its numbers are {array.dtype.name}, not whole or floats", "Convert it with astype")
    is_channel = [side == NUM_CHANNELS for side in array.shape]
    if array.ndim != 2 or not any(is_channel):
        raise medium.error(f"its shape is {array.shape}, and (N, 6) or (6, N) is expected", "Give one recording")
    if all(is_channel):
        raise medium.error("its shape is (6, 6), and which axis is time is unclear", "Give a longer recording")
    return array if is_channel[0] else array.T


def _check_samples(samples: np.ndarray, medium: Medium, limits: ImuLimits) -> None:
    num_samples = samples.shape[1]
    if num_samples < 2:
        raise medium.error(f"it has {num_samples} samples, and at least 2 are needed", "Give a longer recording")
    if num_samples > limits.max_samples:
        raise medium.error(
            f"it has {num_samples} samples, and {limits.max_samples} are allowed",
            "Give a part of it, or raise ImuLimits(max_samples=...)",
        )
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise medium.error("its values hold NaN or infinity", "Cut out the part without them")
    if max(abs(float(samples.min())), abs(float(samples.max()))) > 1e9:
        raise medium.error("its values go beyond 1e9", "Give acceleration in m/s^2 and rotation in rad/s")


def _agree(first: float | None, second: float | None, medium: Medium) -> float | None:
    """The first of two rates that is there, if the other does not contradict it."""
    for rate_hz in (first, second):
        if rate_hz is not None and not _is_rate(rate_hz):
            raise medium.error(f"it has {rate_hz:.6g} samples a second, and 1 to 100000 is expected", _TIME_CURE)
    if first is not None and second is not None and abs(first - second) > _RATE_TOLERANCE * first:
        raise medium.error(
            f"it has {first:.6g} samples a second by one account and {second:.6g} by another", _TIME_CURE
        )
    return second if first is None else first


_TIME_CURE = "Check the rate, and that times are in seconds or their name ends in _ms, _us or _ns"


def _evenly(samples: np.ndarray, times_s: np.ndarray, medium: Medium, limits: ImuLimits) -> tuple[np.ndarray, float]:
    """The samples at even steps from the first to the last time, and their mean rate."""
    steps_s = np.diff(times_s)
    if not np.isfinite(times_s).all() or steps_s.min() <= 0:
        raise medium.error("its times do not rise from row to row", "Sort the rows and drop repeated ones")
    if steps_s.max() > _MAX_GAP_STEPS * np.median(steps_s):
        row = int(steps_s.argmax())
        raise medium.error(f"it pauses for {steps_s.max():.6g} s after sample {row + 1}", "Give a part without pauses")
    duration_s = float(times_s[-1] - times_s[0])
    even_s = np.linspace(times_s[0], times_s[-1], len(times_s))
    rows = np.stack([np.interp(even_s, times_s, channel) for channel in samples])  # (6, N)
    return rows, (len(times_s) - 1) / duration_s
