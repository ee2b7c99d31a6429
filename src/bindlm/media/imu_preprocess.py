"""From an IMU recording to the numbers that ImageBind's IMU tower reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bindlm.errors import ConfigError, MediaError
from bindlm.media.imu import Imu
from bindlm.media.limits import _check_finite, _check_positive_ints


@dataclass(frozen=True)
class ImuPreprocessConfig:
    """How recordings become input of ImageBind's IMU tower."""

    num_samples: int = 2000
    """Steps of the result."""
    clip_seconds: float = 5.0
    """Length of the part that they cover; with 2000 steps, 400 Hz."""

    def __post_init__(self) -> None:
        _check_positive_ints(self, ("num_samples",))
        _check_finite(self, "clip_seconds", 0.001)
        if self.num_samples > 1_000_000:
            raise ConfigError(f"ImuPreprocessConfig.num_samples must be at most 1000000, got {self.num_samples!r}.")


def preprocess_imu(imu: Imu, config: ImuPreprocessConfig = ImuPreprocessConfig()) -> np.ndarray:
    """The middle `clip_seconds` of a recording, linearly interpolated to `num_samples` even steps.

    The clip starts at a whole sample (the earlier one where the middle lies between two) and step k stands
    `k * clip_seconds / num_samples` after it; past the last sample, which is under one sample's time, it holds. A
    recording that is shorter is refused: what motion would fill it is anyone's guess. Nothing is subtracted or
    divided, for no normalisation is published, and values keep their units: m/s^2, gravity included, and rad/s.

    Args:
        imu: Samples `(6, N)` and their rate, as `load_imu` gives them.
        config: Number of steps and seconds.

    Returns:
        float32 `(6, num_samples)`: acceleration x, y, z, rotation x, y, z.

    Raises:
        MediaError: The recording is shorter than the clip by more than one sample.

    Source:
        ImageBind (arXiv 2305.05665), section 4 and appendix: clips of 5 s of Ego4D, 2000 steps of accelerometer and
        gyroscope. How they are resampled is not stated there.
    """
    num_held = imu.samples.shape[1]
    span = config.clip_seconds * imu.sample_rate_hz  # samples in one clip, not always whole
    if num_held < span - 1:
        raise MediaError(
            f"Cannot preprocess an IMU recording of {imu.duration_seconds:.4g} s: at least {config.clip_seconds:g} s "
            "are needed. Give a longer one, or set ImuPreprocessConfig(clip_seconds=...)."
        )
    start = max(int((num_held - span) // 2), 0)
    places = start + np.arange(config.num_samples) * (span / config.num_samples)
    known = np.arange(num_held)
    rows = [np.interp(places, known, channel) for channel in imu.samples]
    return np.stack(rows).astype(np.float32)  # (6, num_samples)
