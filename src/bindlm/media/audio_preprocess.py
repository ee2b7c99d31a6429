"""From a sound to the log-mel pictures that audio encoders read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.media.audio import Audio
from bindlm.media.log_mel import frame_samples, hop_samples, log_mel, num_frames
from bindlm.media.names import Medium
from bindlm.media.resample import num_resampled, resample


class _Checked:
    """What the two configs check alike."""

    def _check_whole(self, name: str, least: int, most: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._error(name, f"a whole number from {least} to {most}")

    def _check_number(self, name: str, *, is_positive: bool) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or (is_positive and value <= 0):
            raise self._error(name, "a finite number above 0" if is_positive else "a finite number")

    def _error(self, name: str, expected: str) -> ConfigError:
        return ConfigError(f"{type(self).__name__}.{name} must be {expected}, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class AudioPreprocessConfig(_Checked):
    """How sounds become input of an encoder that averages several short clips. Defaults: ImageBind's."""

    sample_rate_hz: int = 16_000
    """Rate to which sounds are resampled."""
    num_mel_bins: int = 128
    """Mel bands, the height of the result."""
    target_length: int = 204
    """Frames of 10 ms, the width of the result; a clip with fewer is filled up, one with more is cut."""
    clip_seconds: float = 2.0
    """Length of a clip; a shorter sound gives shorter clips, all alike."""
    num_clips: int = 3
    """Clips, spread evenly from the start to the end of the sound."""
    mean: float = -4.268
    """Subtracted from the logarithms, and from the filler, which is 0."""
    std: float = 9.138
    """Divides them after that (once; not twice as in AST)."""
    is_mean_shared: bool = True
    """As released: each clip's mean is taken off the sound itself, so that where clips overlap (below 6 s) a later one
    finds what the earlier ones left; single values move by up to 1.0. False: each clip as if it stood alone."""

    def __post_init__(self) -> None:
        self._check_whole("sample_rate_hz", 1_000, 384_000)
        self._check_whole("num_mel_bins", 1, 1_024)
        self._check_whole("target_length", 1, 100_000)
        self._check_whole("num_clips", 1, 1_000)
        self._check_number("clip_seconds", is_positive=True)
        self._check_number("mean", is_positive=False)
        self._check_number("std", is_positive=True)
        if self.clip_seconds > 3_600:
            raise self._error("clip_seconds", "at most 3600")
        if not isinstance(self.is_mean_shared, bool):
            raise self._error("is_mean_shared", "True or False")


@dataclass(frozen=True)
class AudioCropsConfig(_Checked):
    """How sounds become input of an encoder that sees three crops as three channels. Defaults: LanguageBind's."""

    sample_rate_hz: int = 16_000
    """Rate to which sounds are resampled."""
    num_mel_bins: int = 112
    """Mel bands, the height of the result."""
    target_length: int = 1_036
    """Frames of 10 ms in each crop, the width of the result."""
    mean: float = -4.2677393
    """Subtracted from the logarithms."""
    std: float = 4.5689974
    """Twice this divides them after that."""

    def __post_init__(self) -> None:
        self._check_whole("sample_rate_hz", 1_000, 384_000)
        self._check_whole("num_mel_bins", 1, 1_024)
        self._check_whole("target_length", 1, 100_000)
        self._check_number("mean", is_positive=False)
        self._check_number("std", is_positive=True)


def clip_ranges(num_samples: int, config: AudioPreprocessConfig) -> list[tuple[int, int]]:
    """First sample and one past the last of each clip, of a sound of `num_samples` at the config's rate.

    The latest start is the length in seconds, a float, less `clip_seconds`; starts are exact fractions of that float,
    and products with the rate are cut to whole numbers. So 3.3 s give starts of 0, 10399 and 20799, not of 10400 and
    20800: rounding errors of the released sampler, which the frames depend on.
    """
    latest = Fraction(max(num_samples / config.sample_rate_hz - config.clip_seconds, 0))
    ranges = []
    for clip in range(config.num_clips):
        start = latest * clip / max(config.num_clips - 1, 1)
        begin = int(start * config.sample_rate_hz)
        end = int((start + Fraction(config.clip_seconds)) * config.sample_rate_hz)
        ranges.append((begin, min(end, num_samples)))
    return ranges


def preprocess_audio(audio: Audio, config: AudioPreprocessConfig = AudioPreprocessConfig()) -> Tensor:
    """Resample, cut into clips, and turn each into a normalised log-mel picture.

    The mean of a clip is taken over all its channels; the picture is that of the first channel alone, the others are
    not mixed in. A clip of fewer than `target_length` frames is filled up at the end with 0 before normalisation, so
    the filler is `-mean / std`.

    Args:
        audio: As `load_audio` gives it; 25 ms at least.
        config: Rate, clips, bands and normalisation.

    Returns:
        float32 `(num_clips, 1, num_mel_bins, target_length)`.

    Raises:
        MediaError: The sound, or a clip of it, is shorter than a frame of 25 ms.

    Source:
        ImageBind (arXiv 2305.05665), section 3.2 and the released loader, which departs from the text in the shared
        mean (see `is_mean_shared`).
    """
    rate = config.sample_rate_hz
    num_samples = num_resampled(audio.samples.shape[1], audio.sample_rate_hz, rate)
    ranges = clip_ranges(num_samples, config)
    _check_length(min(end - begin for begin, end in ranges), rate)
    samples = torch.from_numpy(audio.samples)
    is_overlapping = any(later[0] < earlier[1] for earlier, later in zip(ranges, ranges[1:], strict=False))
    whole = None
    if is_overlapping:
        whole = resample(samples, audio.sample_rate_hz, rate).clone()  # the caller's numbers stay as they are
    pictures = []
    for begin, end in ranges:
        if whole is None:  # of an hour, only the seconds that are looked at
            clip = resample(samples, audio.sample_rate_hz, rate, begin=begin, end=end)
            clip = clip - clip.mean()
        else:
            clip = whole[:, begin:end]
            clip = clip.sub_(clip.mean()) if config.is_mean_shared else clip - clip.mean()
        features = log_mel(clip[0], sample_rate_hz=rate, num_mel_bins=config.num_mel_bins).T  # (F, T)
        features = F.pad(features, (0, max(0, config.target_length - features.shape[1])))
        pictures.append(features[:, : config.target_length])
    return (torch.stack(pictures)[:, None] - config.mean) / config.std  # (num_clips, 1, F, target_length)


def preprocess_audio_crops(audio: Audio, config: AudioCropsConfig = AudioCropsConfig()) -> Tensor:
    """Resample and turn the front, middle and back of a sound into the three channels of one log-mel picture.

    Of the possible starts of a crop, from the first frame to the last that leaves `target_length` frames, the released
    loader makes three equal ranges and draws one start at random from each. Here it is the first of each range, so
    that a sound always gives the same numbers; an empty range (fewer than three starts) gives start 0. A sound of
    fewer frames is repeated in time, and the three channels are alike.

    Args:
        audio: As `load_audio` gives it; 25 ms at least. Its mean over all channels is taken off; the picture is that
            of the first channel.
        config: Rate, bands, length and normalisation.

    Returns:
        float32 `(3, num_mel_bins, target_length)`.

    Raises:
        MediaError: The sound is shorter than a frame of 25 ms.

    Source:
        LanguageBind (arXiv 2310.01852), section 4.1 and the released loader.
    """
    rate, length = config.sample_rate_hz, config.target_length
    samples = torch.from_numpy(audio.samples)
    _check_length(num_resampled(samples.shape[1], audio.sample_rate_hz, rate), rate)
    # Channel by channel, so that an hour of many channels is never held resampled as a whole.
    first = resample(samples[:1], audio.sample_rate_hz, rate)[0]  # (S,)
    means = [first.mean()]
    for channel in range(1, samples.shape[0]):
        means.append(resample(samples[channel : channel + 1], audio.sample_rate_hz, rate).mean())
    first = first - torch.stack(means).mean()
    total = num_frames(first.shape[0], rate)
    crops = []
    for start in _crop_starts(total, length):
        begin = start * hop_samples(rate)
        end = begin + (length - 1) * hop_samples(rate) + frame_samples(rate)
        features = log_mel(first[begin:end], sample_rate_hz=rate, num_mel_bins=config.num_mel_bins)  # (T, F)
        repeated = features.repeat(-(-length // features.shape[0]), 1)[:length]  # (target_length, F)
        crops.append(repeated.T)
    return (torch.stack(crops) - config.mean) / (2 * config.std)  # (3, F, target_length)


def _crop_starts(total: int, length: int) -> tuple[int, int, int]:
    """First frame of the front, middle and back crop of `length` frames out of `total`."""
    share, rest = divmod(max(total - length, 0) + 1, 3)
    sizes = [share + (index < rest) for index in range(3)]
    return 0, sizes[0] if sizes[1] else 0, sizes[0] + sizes[1] if sizes[2] else 0


def _check_length(num_samples: int, rate: int) -> None:
    least = frame_samples(rate)
    if num_samples < least:
        label = f"<{num_samples} samples at {rate} Hz>"
        raise Medium("sound", label).error(f"it is shorter than a frame of {least} samples", "Give at least 25 ms")
