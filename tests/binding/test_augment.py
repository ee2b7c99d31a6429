"""Changes are functions of the medium and the generator alone, keep what they must, and can be switched off."""

import dataclasses

import numpy as np
import pytest

from bindlm.binding.augment import (
    augment,
    augment_imu,
    augment_map,
    augment_points,
    augment_sound,
    mask_spectrogram,
)
from bindlm.binding.augment_settings import AugmentRecipe, ImuAugment, MapAugment, PointAugment, SoundAugment
from bindlm.errors import ConfigError

LOUD = AugmentRecipe(
    sound=SoundAugment(crop=0.02, speed=0.1, shift=0.2, mix=1.0),
    imu=ImuAugment(noise=0.1, scale=0.2),
)
QUIET_SOUND = SoundAugment(gain_db=0, noise_db=None)
STILL = PointAugment(turn=0, tilt=0, scale=(1, 1), jitter=0, dropping=0)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def medium(modality: str, seed: int = 0) -> np.ndarray:
    shapes = {"audio": (800,), "point": (64, 6), "depth": (20, 30), "thermal": (20, 30), "imu": (6, 50)}
    return random(seed).uniform(0.1, 1, shapes[modality]).astype(np.float32)


def changed(modality: str, recipe: AugmentRecipe, seed: int, raw: np.ndarray | None = None) -> np.ndarray:
    raw = medium(modality) if raw is None else raw
    return augment(modality, raw, random(seed), recipe, rate=16_000, other=lambda: medium(modality, 5))


@pytest.mark.parametrize("modality", ["audio", "point", "depth", "thermal", "imu"])
def test_a_change_is_a_function_of_medium_and_generator_and_leaves_the_medium_alone(modality):
    raw = medium(modality)
    raw.flags.writeable = False  # as what a store gives
    one, same, other = (changed(modality, LOUD, seed, raw) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one.shape != other.shape or not np.array_equal(one, other)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(raw, medium(modality))


@pytest.mark.parametrize("modality", ["audio", "point", "depth", "imu"])
def test_switched_off_it_gives_the_very_medium(modality):
    raw = medium(modality)
    assert changed(modality, dataclasses.replace(LOUD, is_on=False), 1, raw) is raw


def test_text_is_never_changed():
    assert augment("text", "a dog", random(), LOUD, rate=0, other=lambda: "a cat") == "a dog"


# -- sound ------------------------------------------------------------------------------------------------------------


def test_all_at_zero_sound_stays_as_it_is():
    raw = medium("audio")
    np.testing.assert_array_equal(augment_sound(raw, random(), QUIET_SOUND), raw)


def test_a_crop_is_a_stretch_of_the_sound():
    raw = np.arange(800, dtype=np.float32)
    crop = augment_sound(raw, random(3), dataclasses.replace(QUIET_SOUND, crop=0.01), rate=16_000)
    assert len(crop) == 160
    np.testing.assert_array_equal(np.diff(crop), 1)


def test_speed_changes_length_and_pitch_by_as_much():
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    config = dataclasses.replace(QUIET_SOUND, speed=0.2)
    for seed in range(4):
        heard = augment_sound(tone, random(seed), config)
        speed = len(tone) / len(heard)
        assert 0.8 <= speed <= 1.21
        pitch = np.argmax(np.abs(np.fft.rfft(heard))) / len(heard) * 16_000
        assert pitch == pytest.approx(440 * speed, abs=2)


def test_gain_and_noise_keep_their_decibels():
    raw = medium("audio")
    level = 20 * np.log10(np.abs(augment_sound(raw, random(), dataclasses.replace(QUIET_SOUND, gain_db=6)) / raw))
    assert np.ptp(level) < 1e-3
    assert abs(level[0]) <= 6
    added = augment_sound(raw, random(), dataclasses.replace(QUIET_SOUND, noise_db=30)) - raw
    below = 20 * np.log10(np.sqrt(np.mean(raw**2)) / np.sqrt(np.mean(added**2)))
    assert 29 <= below <= 61


def test_another_sound_is_laid_under_softer():
    raw = medium("audio")
    config = dataclasses.replace(QUIET_SOUND, mix=1.0, mix_db=(10, 10))
    added = augment_sound(raw, random(), config, other=lambda: medium("audio", 9)[:300]) - raw
    below = 20 * np.log10(np.sqrt(np.mean(raw**2)) / np.sqrt(np.mean(added**2)))
    assert below == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("length", [0, 1])
def test_a_sound_of_almost_nothing_is_no_trouble(length):
    sound = LOUD.sound
    for seed in range(5):
        heard = augment_sound(np.zeros(length, np.float32), random(seed), sound, other=lambda: np.zeros(0, np.float32))
        assert np.isfinite(heard).all()


def test_one_band_and_one_stretch_of_a_spectrogram_are_masked_with_its_mean():
    values = random().normal(size=(3, 1, 64, 100)).astype(np.float32)
    masked = mask_spectrogram(values, random(2), SoundAugment(mask_frequencies=8, mask_frames=20), (-2, -1))
    is_masked = masked != values
    np.testing.assert_allclose(masked[is_masked], values.mean(), rtol=1e-5)
    bands, frames = is_masked.all(axis=(0, 1, 3)), is_masked.all(axis=(0, 1, 2))
    assert 0 < bands.sum() <= 8
    assert 0 < frames.sum() <= 20
    np.testing.assert_array_equal(is_masked[0, 0], bands[:, None] | frames[None])


# -- points -----------------------------------------------------------------------------------------------------------


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.argsort(points[:, 3])]  # a column that is carried along tells them apart


def test_points_are_shuffled_and_brought_to_radius_1_and_carry_along_what_they_carry():
    raw = medium("point")
    found, raw = in_order(augment_points(raw, random(), STILL)), in_order(raw)
    np.testing.assert_array_equal(found[:, 3:], raw[:, 3:])
    assert np.linalg.norm(found[:, :3], axis=1).max() == pytest.approx(1, abs=1e-6)
    ratio = (raw[:, :3] - raw[:, :3].mean(axis=0)) / found[:, :3]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)


@pytest.mark.parametrize("up", [0, 1, 2])
def test_turning_is_about_the_axis_that_points_up(up):
    raw = in_order(augment_points(medium("point"), random(), STILL))
    turned = in_order(augment_points(raw, random(4), dataclasses.replace(STILL, turn=1.0, up=up)))
    np.testing.assert_allclose(turned[:, up], raw[:, up], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turned[:, :3], axis=1), np.linalg.norm(raw[:, :3], axis=1), atol=1e-6)
    assert np.abs(turned[:, :3] - raw[:, :3]).max() > 0.1


def test_dropped_points_become_the_first_one():
    found = augment_points(medium("point"), random(8), dataclasses.replace(STILL, dropping=0.9))
    same = (found[:, :3] == found[0, :3]).all(axis=1)
    assert 1 < same.sum() < 64


def test_jitter_is_clipped():
    raw = in_order(augment_points(medium("point"), random(), STILL))
    moved = in_order(augment_points(raw, random(1), dataclasses.replace(STILL, jitter=0.01)))
    assert 0.01 < np.abs(moved[:, :3] - raw[:, :3]).max() <= 0.05 + 1e-6


# -- maps and motion --------------------------------------------------------------------------------------------------


def test_a_map_is_cropped_mirrored_and_blanked():
    raw = np.arange(600, dtype=np.float32).reshape(20, 30) + 1
    still = MapAugment(crop=(1, 1), flip=0, erase=0)
    np.testing.assert_array_equal(augment_map(raw, random(), still), raw)
    np.testing.assert_array_equal(augment_map(raw, random(), dataclasses.replace(still, flip=1)), raw[:, ::-1])
    small = augment_map(raw, random(), dataclasses.replace(still, crop=(0.25, 0.25)))
    assert small.shape == (10, 15)
    np.testing.assert_array_equal(np.diff(small, axis=1), 1)
    holed = augment_map(raw, random(), dataclasses.replace(still, erase=1), blank=0.0)
    assert 0.01 < (holed == 0).mean() < 0.4


def test_motion_is_scaled_channel_by_channel():
    raw = medium("imu")
    ratio = augment_imu(raw, random(), ImuAugment(scale=0.2)) / raw
    assert np.ptp(ratio, axis=1).max() < 1e-5
    assert 0.8 <= ratio.min() < ratio.max() <= 1.2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: SoundAugment(mix=1.5), "SoundAugment.mix must lie in 0..1"),
        (lambda: SoundAugment(mix_db=(9, 3)), "mix_db"),
        (lambda: PointAugment(up=3), "PointAugment.up"),
        (lambda: PointAugment(scale=(0, 1)), "PointAugment.scale"),
        (lambda: MapAugment(crop=(0.5, 1.5)), "MapAugment.crop"),
        (lambda: ImuAugment(noise=-1), "ImuAugment.noise"),
        (lambda: AugmentRecipe(views=-1), "AugmentRecipe.views"),
    ],
)
def test_impossible_settings_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        config()
