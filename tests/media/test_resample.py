"""Resampling gives the released numbers, keeps tones where they are, and is bounded at every ratio."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError
from bindlm.media import resample as module
from bindlm.media.audio import load_audio
from bindlm.media.resample import num_resampled, resample

from ..golden import GOLDEN, golden

NAMES = ("mono_16000_1s.wav", "mono_8000_2.5s.wav", "stereo_44100_3.3s.wav")


@pytest.mark.parametrize("name", NAMES)
def test_released_numbers(name):
    expected = golden("imagebind/preprocess/audio_resampled_16k.safetensors")[name]
    audio = load_audio(GOLDEN / "imagebind/preprocess/media" / name)
    found = resample(torch.from_numpy(audio.samples), audio.sample_rate_hz, 16_000)
    assert found.shape == expected.shape
    # Equal, or (8 kHz) one unit in the last place, 6e-8, apart: sums in another order on another processor.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)


def tone(rate: int, seconds: float = 0.25, frequency_hz: float = 440.0) -> torch.Tensor:
    time = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
    return torch.sin(2 * math.pi * frequency_hz * time).float()[None]


@pytest.mark.parametrize(
    "rate", [4_000, 8_000, 11_025, 15_999, 22_050, 44_100, 44_101, 48_000, 96_000, 192_000, 383_999]
)
def test_a_tone_stays_the_same_tone(rate):
    found = resample(tone(rate), rate, 16_000)[0, 200:-200]  # the ends fade into the silence around
    expected = tone(16_000)[0, 200 : 200 + len(found)]
    assert (found - expected).abs().max() < 4e-3  # ripple of a filter of six zero crossings


def test_what_the_new_rate_cannot_hold_is_gone():
    assert resample(tone(48_000, frequency_hz=12_000.0), 48_000, 16_000)[0, 100:-100].abs().max() < 2e-3


@pytest.mark.parametrize(("old", "new"), [(11_025, 16_000), (44_100, 16_000), (8_000, 16_000), (3, 16_000)])
def test_leaving_out_the_zero_taps_changes_nothing(old, new, monkeypatch):
    samples = torch.rand(2, 2_000, generator=torch.Generator().manual_seed(0)) - 0.5
    end = min(9_000, num_resampled(2_000, old, new))
    dense = resample(samples, old, new, end=end)
    monkeypatch.setattr(module, "_MAX_DENSE_TAPS", 0)
    sparse = resample(samples, old, new, end=end)
    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 300), st.data())
def test_any_part_equals_the_part_of_the_whole(old, new, num_samples, data):
    samples = torch.rand(1, num_samples, generator=torch.Generator().manual_seed(num_samples)) - 0.5
    whole = resample(samples, old, new)
    assert whole.shape == (1, math.ceil(num_samples * new / old)) == (1, num_resampled(num_samples, old, new))
    begin = data.draw(st.integers(0, whole.shape[1]))
    end = data.draw(st.integers(begin, whole.shape[1]))
    part = resample(samples, old, new, begin=begin, end=end)
    torch.testing.assert_close(part, whole[:, begin:end], rtol=0, atol=1e-6)


def test_chunks_make_no_seam(monkeypatch):
    samples = torch.rand(2, 5_000, generator=torch.Generator().manual_seed(0)) - 0.5
    for taps in (module._MAX_DENSE_TAPS, 0):
        monkeypatch.setattr(module, "_MAX_DENSE_TAPS", taps)
        whole = resample(samples, 44_100, 16_000)
        with monkeypatch.context() as patch:
            patch.setattr(module, "_CHUNK", 1_000)
            torch.testing.assert_close(resample(samples, 44_100, 16_000), whole, rtol=0, atol=1e-6)


def test_rates_without_a_common_divisor_need_no_giant_filter():
    """Phases times the samples of a block would be 16,000 x 383,999 numbers, 24 GB."""
    largest = max(module._sparse_filter(383_999, 16_000)[1].numel(), module._sparse_filter(1_009, 384_000)[1].numel())
    assert largest < 10_000_000
    assert resample(torch.zeros(1, 383_999), 383_999, 16_000).shape == (1, 16_000)


def test_the_same_rate_gives_the_same_numbers():
    samples = torch.rand(2, 100)
    assert torch.equal(resample(samples, 48_000, 48_000), samples)


@pytest.mark.parametrize("rates", [(0, 16_000), (16_000, 0), (-1, 1), (16_000.0, 8_000), (True, 2)])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        resample(torch.zeros(1, 10), *rates)


@pytest.mark.parametrize("samples", [torch.zeros(10), torch.zeros(1, 10, dtype=torch.float64)])
def test_other_shapes_and_types_are_refused(samples):
    with pytest.raises(ConfigError, match="float32 of shape"):
        resample(samples, 1, 2)


def test_a_default_type_of_the_host_changes_nothing():
    samples = tone(44_100)
    expected = resample(samples, 44_100, 16_000)
    module._dense_filter.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(resample(samples, 44_100, 16_000), expected)
    finally:
        torch.set_default_dtype(torch.float32)
