"""Log-mel pictures: the released numbers, the quirks behind them, and their bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from bindlm.errors import ConfigError, MediaError
from bindlm.media.audio import Audio, load_audio
from bindlm.media.audio_preprocess import (
    AudioCropsConfig,
    AudioPreprocessConfig,
    _crop_starts,
    clip_ranges,
    preprocess_audio,
    preprocess_audio_crops,
)
from bindlm.media.log_mel import log_mel, num_frames
from bindlm.media.resample import resample

from ..golden import GOLDEN, golden

NAMES = ("mono_16000_1s.wav", "mono_8000_2.5s.wav", "stereo_44100_3.3s.wav")
FOLDER = "imagebind/preprocess"
DEFAULT = AudioPreprocessConfig()


def noise(seconds: float, rate: int = 16_000, num_channels: int = 1) -> Audio:
    rng = np.random.default_rng(int(seconds * 1000))
    return Audio(rng.uniform(-0.5, 0.5, (num_channels, int(seconds * rate))).astype(np.float32), rate)


@pytest.mark.parametrize("name", NAMES)
def test_released_numbers(name):
    expected = golden(f"{FOLDER}/audio.safetensors")[name]
    found = preprocess_audio(load_audio(GOLDEN / FOLDER / "media" / name))
    assert found.shape == expected.shape == (3, 1, 128, 204)
    assert found.dtype == torch.float32
    # Measured 3e-5, 5.9e-4 and 3.5e-4, all in bins next to silence, where roundings of another processor show; the
    # mean error is at most 2.9e-6. A mean that is not shared is 0.27 off, a filter in float64 up to 9e-3.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert (found - expected).abs().mean() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_clips_begin_and_end_at_the_released_samples(name):
    golden(f"{FOLDER}/audio.safetensors")  # skips where it is not to be had
    stored = json.loads((GOLDEN / FOLDER / "preprocess.json").read_text())["audio"][name]
    expected = [(clip["first_sample"], clip["end_sample"]) for clip in stored["clips"]]
    assert clip_ranges(stored["samples_at_16000"], DEFAULT) == expected


def test_kaldi_gives_the_same_filter_banks():
    """With 80 bands: of 128, those below 100 Hz hold no bin of the spectrum, which version 1.23 refuses."""
    knf = pytest.importorskip("kaldi_native_fbank")
    samples = noise(1.5).samples[0]
    options = knf.FbankOptions()
    frame, mel = options.frame_opts, options.mel_opts
    frame.samp_freq, frame.dither, frame.window_type, frame.snip_edges = 16_000, 0, "hanning", True
    frame.preemph_coeff, frame.remove_dc_offset, frame.round_to_power_of_two = 0.97, True, True
    mel.num_bins, mel.low_freq, mel.high_freq = 80, 20, 0
    options.use_energy, options.use_log_fbank, options.use_power, options.htk_compat = False, True, True, True
    options.energy_floor = 0
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(16_000, samples.tolist())
    bank.input_finished()
    expected = np.stack([bank.get_frame(index) for index in range(bank.num_frames_ready)])
    found = log_mel(torch.from_numpy(samples), sample_rate_hz=16_000, num_mel_bins=80).numpy()
    assert found.shape == expected.shape == (148, 80)
    # In units of the normalised features; measured 1.1e-4. Kaldi sums in another order.
    assert np.abs(found - expected).max() / DEFAULT.std <= 1e-3


def test_number_of_frames():
    for num_samples in (0, 399, 400, 559, 560, 32_000):
        found = log_mel(torch.zeros(num_samples), sample_rate_hz=16_000, num_mel_bins=4)
        assert found.shape == (num_frames(num_samples, 16_000), 4)
    assert num_frames(32_000, 16_000) == 198


def test_silence_and_filler_have_their_known_values():
    found = preprocess_audio(Audio(np.zeros((1, 16_000), dtype=np.float32), 16_000))
    torch.testing.assert_close(found[..., :98], torch.full((3, 1, 128, 98), -1.27756), rtol=0, atol=1e-5)
    torch.testing.assert_close(found[..., 98:], torch.full((3, 1, 128, 106), 0.46706), rtol=0, atol=1e-5)


def alone(audio: Audio, begin: int, end: int) -> Tensor:
    return preprocess_audio(Audio(audio.samples[:, begin:end], 16_000), AudioPreprocessConfig(num_clips=1))[0]


def test_without_the_shared_mean_each_clip_is_as_if_it_stood_alone():
    samples = noise(3.3, num_channels=2).samples + np.linspace(0, 0.4, 52_800, dtype=np.float32)
    audio = Audio(samples, 16_000)
    found = preprocess_audio(audio, AudioPreprocessConfig(is_mean_shared=False))
    for clip, (begin, end) in zip(found, clip_ranges(52_800, DEFAULT), strict=True):
        torch.testing.assert_close(clip, alone(audio, begin, end), rtol=0, atol=1e-3)  # measured 2e-4


def test_the_shared_mean_shows_where_clips_overlap_and_only_there():
    separate = AudioPreprocessConfig(is_mean_shared=False)
    overlapping, apart = noise(3).samples, noise(7).samples
    overlapping[:, 14_000:] = 0.0  # a step, left by the first clip's mean, in silence
    overlapping[:, :14_000] += 0.3
    apart += 0.3
    difference = preprocess_audio(Audio(overlapping, 16_000)) - preprocess_audio(Audio(overlapping, 16_000), separate)
    assert torch.equal(difference[0], torch.zeros(1, 128, 204))
    assert difference[1:].abs().max() > 0.1
    assert torch.equal(preprocess_audio(Audio(apart, 16_000)), preprocess_audio(Audio(apart, 16_000), separate))


def test_a_long_sound_is_resampled_only_where_clips_are():
    """Cut out of the whole after resampling it, the clips are the same."""
    audio = noise(8, rate=44_100)
    whole = torch.from_numpy(audio.samples)
    converted = Audio(resample(whole, 44_100, 16_000).numpy(), 16_000)
    torch.testing.assert_close(preprocess_audio(audio), preprocess_audio(converted), rtol=0, atol=1e-4)


def test_only_the_first_channel_is_pictured():
    stereo = noise(7, num_channels=2)  # no clips overlap, so another mean shows as rounding only
    other = Audio(np.stack([stereo.samples[0], -stereo.samples[1]]), 16_000)
    torch.testing.assert_close(preprocess_audio(stereo), preprocess_audio(other), rtol=0, atol=1e-3)
    torch.testing.assert_close(preprocess_audio_crops(stereo), preprocess_audio_crops(other), rtol=0, atol=1e-3)


def test_the_sound_itself_is_left_as_it_was():
    audio = noise(3)
    before = audio.samples.copy()
    preprocess_audio(audio)
    preprocess_audio_crops(audio)
    assert np.array_equal(audio.samples, before)


def test_other_settings_show_in_the_shape():
    config = AudioPreprocessConfig(num_mel_bins=40, target_length=50, clip_seconds=1.0, num_clips=5)
    assert preprocess_audio(noise(4), config).shape == (5, 1, 40, 50)


def crops_by_hand(audio: Audio, config: AudioCropsConfig) -> Tensor:
    """The published steps one by one, on the features of the whole sound."""
    samples = torch.from_numpy(audio.samples)
    features = log_mel((samples - samples.mean())[0], sample_rate_hz=16_000, num_mel_bins=config.num_mel_bins)
    length = config.target_length
    if len(features) > length:
        ranges = np.array_split(np.arange(len(features) - length + 1), 3)
        starts = [int(share[0]) if len(share) else 0 for share in ranges]
    else:
        features, starts = torch.cat([features] * (length // len(features) + 1)), [0, 0, 0]
    crops = torch.stack([features[start : start + length].T for start in starts])
    return (crops - config.mean) / (2 * config.std)


@pytest.mark.parametrize("seconds", [0.03, 0.5, 1.0, 1.015, 1.025, 1.035, 1.045, 2.6])
def test_crops_are_front_middle_and_back(seconds):
    config = AudioCropsConfig(target_length=100)
    audio = noise(seconds, num_channels=2)
    found = preprocess_audio_crops(audio, config)
    assert found.shape == (3, 112, 100)
    torch.testing.assert_close(found, crops_by_hand(audio, config), rtol=0, atol=2e-4)  # measured 2e-5


@pytest.mark.parametrize("more", range(12))
def test_crop_starts_split_the_possible_ones_in_three(more):
    shares = np.array_split(np.arange(more + 1), 3)
    assert _crop_starts(100 + more, 100) == tuple(int(share[0]) if len(share) else 0 for share in shares)


def test_crops_have_the_published_size_at_any_rate():
    assert preprocess_audio_crops(noise(1.0, rate=44_100)).shape == (3, 112, 1036)
    assert preprocess_audio_crops(noise(12.0, rate=8_000)).shape == (3, 112, 1036)


@pytest.mark.parametrize("preprocess", [preprocess_audio, preprocess_audio_crops])
def test_a_frame_is_the_least(preprocess):
    assert preprocess(noise(0.025)).isfinite().all()
    with pytest.raises(MediaError, match="shorter than a frame"):
        preprocess(Audio(np.zeros((1, 399), dtype=np.float32), 16_000))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate_hz", 0),
        ("sample_rate_hz", 16_000.0),
        ("num_mel_bins", 0),
        ("num_mel_bins", True),
        ("target_length", -1),
        ("mean", float("nan")),
        ("std", 0.0),
        ("std", float("inf")),
        ("std", "1"),
    ],
)
@pytest.mark.parametrize("config", [AudioPreprocessConfig, AudioCropsConfig])
def test_impossible_settings_are_refused(config, field, value):
    with pytest.raises(ConfigError, match=rf"{config.__name__}\.{field} must be"):
        config(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_clips", 0), ("clip_seconds", 0.0), ("clip_seconds", 1e9), ("clip_seconds", None), ("is_mean_shared", 1)],
)
def test_impossible_clips_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"AudioPreprocessConfig\.{field} must be"):
        AudioPreprocessConfig(**{field: value})
