"""What each sense's tower is told of a medium, and what it is not."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bindlm.encoders.towers import build_tower
from bindlm.encoders.towers.vit import middle_square, relative_brightness, relative_disparity
from bindlm.errors import MediaError

from .test_tower_kinds import SETTINGS, make


def test_scale_of_a_depth_map_does_not_count() -> None:
    depth = np.random.default_rng(0).uniform(0.5, 5, (30, 40)).astype(np.float32)
    depth[:5] = 0  # not measured
    np.testing.assert_allclose(relative_disparity(depth), relative_disparity(3 * depth), atol=1e-5)
    relative = relative_disparity(depth)
    assert (relative[:5] == -1).all(), "a hole is infinitely far"
    np.testing.assert_allclose(np.median(relative[5:]), 0, atol=1e-6)
    nearer = np.argmin(np.where(depth > 0, depth, np.inf))
    assert relative.flat[nearer] == relative.max() <= 3


def test_depth_map_without_any_measure_is_refused() -> None:
    with pytest.raises(MediaError, match="nothing was measured"):
        build_tower("vit").prepare(np.zeros((8, 8), dtype=np.float32))


def test_gain_and_offset_of_a_thermal_picture_do_not_count() -> None:
    warm = np.random.default_rng(0).uniform(0, 1, (30, 40)).astype(np.float32)
    np.testing.assert_allclose(relative_brightness(warm), relative_brightness(0.9 * warm + 0.05), atol=0.02)
    assert (relative_brightness(np.full((4, 4), 0.3)) == 0).all()


def test_picture_is_its_middle_square() -> None:
    values = np.zeros((20, 60), dtype=np.float32)
    values[:, 20:40] = 1
    assert middle_square(values, 16).shape == (16, 16)
    assert (middle_square(values, 16)[:, 1:-1] == 1).all()  # the filter looks a little beyond the border


def test_recording_is_mixed_and_brought_to_the_towers_rate(tmp_path: Path) -> None:
    sound = np.sin(np.arange(8000) / 8000 * 2 * np.pi * 440)
    soundfile.write(tmp_path / "two.wav", np.stack([sound, np.zeros(8000)], axis=1), 8000, subtype="FLOAT")
    raw = build_tower("mel_cnn").load(tmp_path / "two.wav")
    assert raw.shape == (16_000,)
    assert raw.dtype == np.float32
    time = np.arange(16_000) / 16_000
    np.testing.assert_allclose(raw[100:-100], 0.5 * np.sin(2 * np.pi * 440 * time)[100:-100], atol=2e-3)


@torch.no_grad()
def test_clips_are_averaged(backbones: dict[str, str]) -> None:
    tower = make("mel_transformer", backbones)
    values = torch.randn(2, 2, 1, 32, 64)
    alone = [tower.embed(values[:, clip : clip + 1]) for clip in range(2)]
    torch.testing.assert_close(tower.embed(values), (alone[0] + alone[1]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling", ["random", "farthest"])
@torch.no_grad()
def test_place_size_and_order_of_points_do_not_count(sampling: str, backbones: dict[str, str]) -> None:
    tower = make("point_transformer", backbones, sampling=sampling)
    points = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    prepared = tower.prepare(points)
    torch.testing.assert_close(tower.prepare(points * 7 + 3), prepared, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tower.prepare(np.hstack([points, points])), prepared)  # colours are not looked at
    assert prepared.norm(dim=1).max() == pytest.approx(1, abs=1e-5)
    # the first point starts the sampling, so it stays in front
    shuffled = torch.cat([prepared[:1], prepared[1:][torch.randperm(63)]])
    torch.testing.assert_close(tower.embed(shuffled[None]), tower.embed(prepared[None]), rtol=1e-3, atol=1e-4)


def test_motion_is_told_in_g(backbones: dict[str, str]) -> None:
    tower = make("imu", backbones)
    raw = tower.load(np.full((6, 100), 9.80665, dtype=np.float32))
    assert raw.shape == (6, 64)
    torch.testing.assert_close(tower.prepare(raw)[:3], torch.ones(3, 64))
    torch.testing.assert_close(tower.prepare(raw)[3:], torch.full((3, 64), 9.80665))
    with pytest.raises(MediaError, match=r"motion of shape \(6, 63\)"):
        tower.prepare(raw[:, 1:])


@torch.no_grad()
def test_text_is_cut_and_filled(backbones: dict[str, str]) -> None:
    tower = make("text_adapter", backbones)
    assert tower.preprocess("A cat").tolist() == [2, 4, 5, 3, 0, 0, 0, 0]
    long = tower.preprocess("dog " * 20)
    assert long.tolist() == [2, *[6] * 6, 3], "the end mark stays"
    short = tower.preprocess("a cat")[None]
    torch.testing.assert_close(tower.embed(short[:, :4]), tower.embed(short))


@torch.no_grad()
def test_text_features_are_the_models_mean_over_words(backbones: dict[str, str]) -> None:
    from transformers import BertModel

    tower = make("text_adapter", backbones)
    reference = BertModel.from_pretrained(backbones["text_adapter"], add_pooling_layer=False).eval()
    for text in ("a cat", "the red dog barks"):
        ids = tower.preprocess(text)
        mean = reference(ids[ids != 0][None]).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(tower.features(ids[None])[0], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_training_skips_blocks_and_keeps_the_mean() -> None:
    from bindlm.encoders.towers.parts import keep_some

    torch.manual_seed(0)
    before, after = torch.zeros(4000, 2), torch.ones(4000, 2)
    kept = keep_some(before, after, 0.25)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean() == pytest.approx(1, abs=0.05)
    tower = build_tower("vit", **{**SETTINGS["vit"], "drop_path": 0.5})
    values = torch.randn(4, 1, 32, 32)
    assert not torch.equal(tower.train().embed(values), tower.embed(values))
