"""Sample rate conversion by a windowed sinc, number for number as the released encoders were trained with."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError

_ZERO_CROSSINGS = 6
"""Half width of the window, in zero crossings of the sinc."""
_ROLL_OFF = 0.99
"""Cut-off as a share of the lower of the two Nyquist frequencies."""
_MAX_DENSE_TAPS = 2_000_000
"""Above this many filter taps (8 MB) only those that are not zero are computed. Usual rates stay far below (44.1 to
16 kHz: 76 thousand); 44,101 to 16,000 Hz, which share no divisor, would need 700 million."""
_CHUNK = 2**22
"""Resampled (or, on the sparse way, gathered) numbers computed in one step."""


def num_resampled(num_samples: int, from_hz: int, to_hz: int) -> int:
    """How many samples `resample` gives for `num_samples`."""
    return -(-num_samples * to_hz // from_hz)


def resample(samples: Tensor, from_hz: int, to_hz: int, *, begin: int = 0, end: int | None = None) -> Tensor:
    """Bring a sound to another sample rate.

    With o and n the two rates divided by their greatest common divisor and base = 0.99 min(o, n), output number
    b n + j is the sum over input samples b o + k of sinc(t) cos(pi t / 12)^2 base / o, where t = (k / o - j / n) base
    and |t| <= 6: a Hann window over six zero crossings on each side. The sound is silent outside its bounds.

    Everything, the filter too, is computed in float32: a filter in float64 is nearer to the formula, yet at awkward
    ratios such as 11,025 to 16,000 Hz it moves the final features by up to 9e-3 away from what encoders have seen.

    Args:
        samples: float32 `(C, S)`.
        from_hz: Their sample rate.
        to_hz: The wanted sample rate.
        begin: First output sample to give.
        end: One past the last output sample to give; by default all. Only what is asked for is computed.

    Returns:
        float32 `(C, end - begin)` on the CPU; by default `(C, ceil(S to_hz / from_hz))`.

    Raises:
        ConfigError: A rate is no whole number of at least 1, or `samples` is not float32 `(C, S)`.

    Source:
        Band-limited interpolation after J. O. Smith, "Digital Audio Resampling Home Page", with the parameters of the
        released ImageBind.
    """
    for name, rate in (("from_hz", from_hz), ("to_hz", to_hz)):
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise ConfigError(f"resample: {name} must be a whole number of at least 1, got {rate!r}.")
    if samples.ndim != 2 or samples.dtype != torch.float32:
        raise ConfigError(
            f"resample: samples must be float32 of shape (C, S), got {samples.dtype} {tuple(samples.shape)}."
        )
    total = num_resampled(samples.shape[1], from_hz, to_hz)
    end = total if end is None else min(end, total)
    begin = min(max(begin, 0), end)
    if from_hz == to_hz or begin == end:
        return samples[:, begin:end]
    divisor = math.gcd(from_hz, to_hz)
    old, new = from_hz // divisor, to_hz // divisor
    width = _half_width(old, new)
    is_dense = new * (2 * width + old) <= _MAX_DENSE_TAPS
    result = torch.empty(samples.shape[0], end - begin, dtype=torch.float32)
    step = max(1, _CHUNK // (new if is_dense else new * 2 * (width + 1)))  # blocks of `old` samples in one step
    for block in range(begin // new, -(-end // new), step):
        num_blocks = min(step, -(-end // new) - block)
        convert = _convert_dense if is_dense else _convert_sparse
        part = convert(samples, old, new, block, num_blocks)  # (C, num_blocks * new)
        first, last = max(begin, block * new), min(end, (block + num_blocks) * new)
        result[:, first - begin : last - begin] = part[:, first - block * new : last - block * new]
    return result


def _half_width(old: int, new: int) -> int:
    """Input samples on each side that an output sample depends on."""
    return math.ceil(_ZERO_CROSSINGS * old / (min(old, new) * _ROLL_OFF))


def _taps(phases: Tensor, offsets: Tensor, old: int, new: int) -> Tensor:
    """Weights of the input samples at `offsets` for the output samples at `phases`; both broadcast, float32."""
    base = min(old, new) * _ROLL_OFF
    time = (-phases / new + offsets / old) * base
    time = time.clamp(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = torch.cos(time * math.pi / _ZERO_CROSSINGS / 2) ** 2
    angle = time * math.pi
    sinc = torch.where(angle == 0, torch.ones_like(angle), angle.sin() / angle)
    return sinc * (window * (base / old))


@lru_cache(maxsize=8)
def _dense_filter(old: int, new: int) -> Tensor:
    width = _half_width(old, new)
    phases = torch.arange(new, dtype=torch.float32, device="cpu")[:, None]
    offsets = torch.arange(-width, width + old, dtype=torch.float32, device="cpu")
    return _taps(phases, offsets, old, new)[:, None]  # (new, 1, taps)


@lru_cache(maxsize=2)
def _sparse_filter(old: int, new: int) -> tuple[Tensor, Tensor]:
    """Offset of the first input sample of each phase `(new,)`, and weights from there on `(new, 2 (width + 1))`."""
    width = _half_width(old, new)
    phases = torch.arange(new, device="cpu")
    first = phases * old // new - width  # whole numbers: exact
    offsets = first[:, None] + torch.arange(2 * (width + 1), device="cpu")
    return first, _taps(phases[:, None].float(), offsets.float(), old, new)


def _slice_padded(samples: Tensor, begin: int, end: int) -> Tensor:
    """`samples[:, begin:end]` with silence beyond both ends."""
    num_samples = samples.shape[1]
    inside = samples[:, min(max(begin, 0), num_samples) : max(min(end, num_samples), 0)]
    before = min(max(-begin, 0), end - begin)
    return F.pad(inside, (before, end - begin - before - inside.shape[1]))


def _convert_dense(samples: Tensor, old: int, new: int, block: int, num_blocks: int) -> Tensor:
    """One strided correlation, a row of the filter for each phase: the usual way."""
    width = _half_width(old, new)
    padded = _slice_padded(samples, block * old - width, (block + num_blocks) * old + width)
    phases = F.conv1d(padded[:, None], _dense_filter(old, new), stride=old)  # (C, new, num_blocks)
    return phases.transpose(1, 2).reshape(samples.shape[0], -1)


def _convert_sparse(samples: Tensor, old: int, new: int, block: int, num_blocks: int) -> Tensor:
    """The same sums without the taps that are zero, for rates that share no large divisor."""
    width = _half_width(old, new)
    first, taps = _sparse_filter(old, new)
    padded = _slice_padded(samples, block * old - width, (block + num_blocks) * old + 2 * (width + 1))
    windows = padded.unfold(1, taps.shape[1], 1)  # (C, positions, taps), a view
    starts = (torch.arange(num_blocks, device="cpu")[:, None] * old + first + width).flatten()
    converted = torch.empty(samples.shape[0], len(starts), dtype=torch.float32)
    step = max(1, _CHUNK // (taps.shape[1] * samples.shape[0]))
    for begin in range(0, len(starts), step):
        chosen = windows[:, starts[begin : begin + step]]  # (C, step, taps)
        rows = torch.arange(begin, begin + chosen.shape[1], device="cpu") % new
        converted[:, begin : begin + step] = (chosen * taps[rows]).sum(-1)
    return converted
