"""Log-mel filter banks as Kaldi defines them, in plain torch float32: all frames at once, no loop."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_FRAME_SECONDS = 0.025
_HOP_SECONDS = 0.010
_PRE_EMPHASIS = 0.97
_LOW_HZ = 20.0
_FLOOR = 1.1920928955078125e-07
"""Least energy before the logarithm: the float32 epsilon."""


def frame_samples(sample_rate_hz: int) -> int:
    """Samples in a frame of 25 ms."""
    return int(sample_rate_hz * _FRAME_SECONDS)


def hop_samples(sample_rate_hz: int) -> int:
    """Samples from the start of a frame to that of the next, 10 ms."""
    return int(sample_rate_hz * _HOP_SECONDS)


def num_frames(num_samples: int, sample_rate_hz: int) -> int:
    """Whole frames in `num_samples`; what remains at the end is left out."""
    return max(0, 1 + (num_samples - frame_samples(sample_rate_hz)) // hop_samples(sample_rate_hz))


def log_mel(samples: Tensor, *, sample_rate_hz: int, num_mel_bins: int) -> Tensor:
    """Natural logarithms of the energies of one channel in bands equally wide on the mel scale.

    A frame loses its mean, is differenced (x[i] - 0.97 x[i-1], the first sample its own predecessor), weighed with a
    symmetric Hann window and padded to a power of two. Of the power spectrum, triangles that are linear in
    mel = 1127 ln(1 + f / 700), from 20 Hz to half the sample rate, give one energy each, at least 1.19e-7. No dither.

    Args:
        samples: float32 `(S,)` in [-1, 1], not multiplied by 32,768.
        sample_rate_hz: Their rate.
        num_mel_bins: Bands, F.

    Returns:
        float32 `(T, F)` with T = 1 + (S - 25 ms) // 10 ms; `(0, F)` for fewer than 25 ms.

    Source:
        Kaldi's `compute-fbank-feats` with --window-type=hanning --htk-compat --dither=0 --use-energy=false.
    """
    length, hop = frame_samples(sample_rate_hz), hop_samples(sample_rate_hz)
    if samples.shape[0] < length:
        return torch.empty(0, num_mel_bins, dtype=torch.float32)
    frames = samples.unfold(0, length, hop)  # (T, length)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = F.pad(frames[None], (1, 0), mode="replicate")[0, :, :-1]
    frames = frames - _PRE_EMPHASIS * previous
    frames = frames * _window(length)
    padded = 2 ** math.ceil(math.log2(length))
    power = torch.fft.rfft(frames, n=padded).abs().pow(2.0)  # (T, padded / 2 + 1)
    energies = power @ _mel_filters(sample_rate_hz, padded, num_mel_bins).T  # (T, F)
    return energies.clamp(min=_FLOOR).log()


@lru_cache(maxsize=8)
def _window(length: int) -> Tensor:
    return torch.hann_window(length, periodic=False, dtype=torch.float32, device="cpu")


@lru_cache(maxsize=8)
def _mel_filters(sample_rate_hz: int, num_points: int, num_mel_bins: int) -> Tensor:
    """Triangles `(F, num_points / 2 + 1)`; the bin at half the sample rate weighs nothing."""
    low, high = _mel(_LOW_HZ), _mel(sample_rate_hz / 2)
    step = (high - low) / (num_mel_bins + 1)
    bands = torch.arange(num_mel_bins, dtype=torch.float32, device="cpu")[:, None]
    bins = torch.arange(num_points // 2, dtype=torch.float32, device="cpu") * (sample_rate_hz / num_points)
    mels = 1127.0 * (1.0 + bins / 700.0).log()
    left, center, right = low + bands * step, low + (bands + 1.0) * step, low + (bands + 2.0) * step
    rising = (mels - left) / (center - left)
    falling = (right - mels) / (right - center)
    return F.pad(torch.minimum(rising, falling).clamp(min=0.0), (0, 1))


def _mel(frequency_hz: float) -> float:
    return 1127.0 * math.log(1.0 + frequency_hz / 700.0)
