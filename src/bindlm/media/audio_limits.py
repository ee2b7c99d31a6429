"""Bounds on sounds: plain numbers, checked at birth, asked before and while a file is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from bindlm.errors import ConfigError
from bindlm.media.limits import _check_finite, _check_positive_ints
from bindlm.media.names import Medium

_MEBIBYTE = 1024 * 1024

_RATIO_FREE_SAMPLES = 8_000_000
"""Below this many decoded numbers no sound is called a bomb: silence compresses well and 32 MB harm nobody."""


@dataclass(frozen=True)
class AudioLimits:
    """What a sound may measure. A sound at all the limits needs about 0.4 GB while it is decoded."""

    max_bytes: int = 128 * _MEBIBYTE
    """Size of the file, of the bytes given, or of the body of a web answer."""
    max_seconds: float = 3_600.0
    """Length in time."""
    max_samples: int = 64_000_000
    """Numbers decoded, all channels together: 12 minutes of stereo at 44,100 Hz, an hour of mono at 16,000."""
    max_channels: int = 16
    """Channels."""
    min_sample_rate_hz: int = 1_000
    """Samples a second; resampling to a usual rate multiplies what is below it."""
    max_sample_rate_hz: int = 384_000
    """Samples a second."""
    max_amplitude: float = 16.0
    """Largest absolute value, where full scale is 1. Lossy decoders overshoot 1 a little and loud recordings in floats
    by more; far above it, the numbers are on another scale, such as that of 16-bit integers."""
    max_decompression_ratio: float = 5_000.0
    """Bytes of the decoded sound (4 a number) for each byte of the file; asked only above 8 million numbers. Digital
    silence in FLAC reaches about 2,300."""

    def __post_init__(self) -> None:
        names = ("max_bytes", "max_samples", "max_channels", "min_sample_rate_hz", "max_sample_rate_hz")
        _check_positive_ints(self, names)
        _check_finite(self, "max_seconds", 0.001)
        _check_finite(self, "max_amplitude", 1)
        _check_finite(self, "max_decompression_ratio", 1)
        if self.min_sample_rate_hz > self.max_sample_rate_hz:
            raise ConfigError(
                "AudioLimits.min_sample_rate_hz must not exceed max_sample_rate_hz, "
                f"got {self.min_sample_rate_hz!r} and {self.max_sample_rate_hz!r}."
            )

    def check_form(self, medium: Medium, num_channels: int, sample_rate_hz: int) -> None:
        """Refuse a sound whose channels or rate are out of bounds, before any of it is decoded.

        Raises:
            MediaError: With the number and the limit that it breaks.
        """
        if num_channels < 1:
            raise medium.error("it has no channel", "Give a sound of at least one")
        if num_channels > self.max_channels:
            raise medium.error(
                f"it has {num_channels} channels, and at most {self.max_channels} are allowed",
                "Mix it down, or raise AudioLimits(max_channels=...); arrays are (channels, samples)",
            )
        if sample_rate_hz < self.min_sample_rate_hz or sample_rate_hz > self.max_sample_rate_hz:
            raise medium.error(
                f"its sample rate is {sample_rate_hz} Hz, and {self.min_sample_rate_hz} to "
                f"{self.max_sample_rate_hz} Hz are allowed",
                "Convert it to 16000 Hz, or change AudioLimits(min_sample_rate_hz=..., max_sample_rate_hz=...)",
            )

    def check_length(
        self,
        medium: Medium,
        num_channels: int,
        num_samples: int,
        sample_rate_hz: int,
        num_bytes: int | None = None,
    ) -> None:
        """Refuse a sound of `num_samples` a channel (so far), from a file of `num_bytes`, that is out of bounds.

        Raises:
            MediaError: With the length and the limit that it breaks.
        """
        if num_samples > self.max_seconds * sample_rate_hz:
            raise medium.error(
                f"it lasts more than the {self.max_seconds:g} seconds allowed",
                "Cut out a part, or raise AudioLimits(max_seconds=...)",
            )
        total = num_channels * num_samples
        if total > self.max_samples:
            raise medium.error(
                f"it has more than the {self.max_samples} samples allowed, all channels together",
                "Cut out a part or lower its sample rate, or raise AudioLimits(max_samples=...)",
            )
        if num_bytes is not None and total > _RATIO_FREE_SAMPLES:
            if 4 * total > self.max_decompression_ratio * num_bytes:
                raise medium.error(
                    f"it holds at least {total / 1e6:.0f} million samples in only {num_bytes} bytes, as in a "
                    "decompression bomb",
                    "Cut out a part, or raise AudioLimits(max_decompression_ratio=...)",
                )
