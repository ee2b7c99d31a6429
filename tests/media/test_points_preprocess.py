"""Clouds as encoders read them: sampled as recorded, centred, of radius 1, and the same on every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError, MediaError
from bindlm.media.points_preprocess import PointPreprocessConfig, preprocess_points
from bindlm.media.points_sampling import farthest_point_indices

from ..golden import golden

CLOUD = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


def plain_farthest(points, num_samples, start, min_squared_norm=None):
    """Farthest point sampling as a loop over one cloud: what the batched one must agree with."""
    allowed = np.ones(len(points), dtype=bool)
    if min_squared_norm is not None:
        allowed = (points**2).sum(axis=1) > min_squared_norm
    nearest, found = np.full(len(points), 1e10), [start]
    for _ in range(num_samples - 1):
        nearest = np.minimum(nearest, ((points - points[found[-1]]).astype(np.float64) ** 2).sum(axis=1))
        found.append(int(np.argmax(np.where(allowed, nearest, -1))))
    return found


def test_sampling_and_normalising_agree_with_the_recorded_cloud():
    """Worst measured 6e-8; the centroid of the whole cloud in place of the sampled points gives 1e-2."""
    outputs = golden("point_bind/outputs.safetensors")
    cloud = golden("point_bind/inputs.safetensors")["raw_cloud"][:, :3].numpy()
    start = int(outputs["preprocess.fps_start"])
    sampled = preprocess_points(cloud, PointPreprocessConfig(num_points=128, start=start))
    assert np.abs(sampled - outputs["preprocess.sampled_then_normalised"].numpy()).max() < 1e-6
    whole = preprocess_points(cloud, PointPreprocessConfig(num_points=500))
    assert np.abs(whole - outputs["preprocess.normalised_full"].numpy()).max() < 1e-6
    indices = farthest_point_indices(torch.from_numpy(cloud)[None], 128, start)
    assert torch.equal(indices[0], outputs["preprocess.fps_indices"])


@pytest.mark.parametrize("min_squared_norm", [None, 0.5])
def test_batched_sampling_agrees_with_a_plain_loop(min_squared_norm):
    points = np.random.default_rng(1).normal(size=(4, 200, 3)).astype(np.float32)
    starts = torch.tensor([0, 7, 199, 50])
    indices = farthest_point_indices(torch.from_numpy(points), 60, starts, min_squared_norm=min_squared_norm)
    for cloud, start, found in zip(points, starts.tolist(), indices.tolist(), strict=True):
        assert found == plain_farthest(cloud, 60, start, min_squared_norm)


def test_of_points_equally_far_the_first_is_taken():
    corners = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]]])
    assert farthest_point_indices(corners, 3).tolist() == [[0, 1, 2]]
    assert farthest_point_indices(corners[:, :4], 4).tolist() == [[0, 1, 2, 3]]


def test_points_near_the_origin_are_left_out_but_may_be_the_start():
    points = torch.tensor([[[0.0, 0, 0], [0.03, 0, 0], [0.04, 0, 0], [1, 0, 0]]])
    assert farthest_point_indices(points, 3, min_squared_norm=1e-3).tolist() == [[0, 3, 2]]
    assert farthest_point_indices(points[:, :2], 3, min_squared_norm=1e-3).tolist() == [[0, 0, 0]]


def test_with_fewer_points_than_asked_the_first_is_repeated():
    assert farthest_point_indices(torch.eye(3)[None], 5).tolist() == [[0, 1, 2, 0, 0]]


def test_a_start_outside_the_cloud_is_refused():
    with pytest.raises(ValueError, match="start"):
        farthest_point_indices(torch.eye(3)[None], 2, 3)


def test_a_cloud_of_fewer_points_is_repeated_in_order():
    points = preprocess_points(CLOUD[:10], PointPreprocessConfig(num_points=25))
    assert np.array_equal(points[:10], points[10:20])
    assert np.array_equal(points[:5], points[20:])


def test_a_large_cloud_is_thinned_first_and_the_same_way_each_time():
    config = PointPreprocessConfig(num_points=50, max_candidates=100)
    first, again = preprocess_points(CLOUD, config), preprocess_points(CLOUD, config)
    assert np.array_equal(first, again)
    assert len(np.unique(first, axis=0)) == 50
    other = preprocess_points(CLOUD, PointPreprocessConfig(num_points=50, max_candidates=100, seed=1))
    assert not np.array_equal(first, other)


@settings(max_examples=60)
@given(
    st.integers(2, 40),
    st.integers(1, 60),
    st.floats(1e-3, 1e6),
    st.tuples(*[st.floats(-100, 100)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_every_result_has_centre_0_and_radius_1(num_given, num_points, scale, shift, seed):
    cloud = np.random.default_rng(seed).uniform(-1, 1, (num_given, 3))
    if num_points == 1:
        return  # one point has no radius: see below
    points = preprocess_points(((cloud + shift) * scale).astype(np.float32), PointPreprocessConfig(num_points))
    assert points.shape == (num_points, 3)
    assert points.dtype == np.float32
    assert np.abs(points.mean(axis=0)).max() < 1e-3
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "points",
    [
        np.ones((5, 3)),
        np.full((5, 3), np.nan),
        np.array([[0, 0, 0], [1, np.inf, 0]]),
        np.zeros((0, 3)),
        np.zeros((3, 5)),
        np.zeros((2, 5, 3)),
        np.array([["a", "b", "c"]]),
        np.array([[0, 0, 0], [1e-45, 0, 0]]),
        np.array([[0, 0, 0], [3e38, 3e38, 0]]),
    ],
)
def test_points_that_cannot_be_normalised_are_refused(points):
    with pytest.raises(MediaError):
        preprocess_points(points, PointPreprocessConfig(num_points=4))


def test_one_point_asked_for_has_no_radius():
    with pytest.raises(MediaError):
        preprocess_points(CLOUD, PointPreprocessConfig(num_points=1))


def test_a_start_beyond_the_cloud_is_refused():
    with pytest.raises(ConfigError, match="start"):
        preprocess_points(CLOUD, PointPreprocessConfig(num_points=10, start=300))


@pytest.mark.parametrize(
    "settings",
    [{"num_points": 0}, {"num_points": 2.0}, {"start": -1}, {"seed": True}, {"num_points": 100, "max_candidates": 99}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        PointPreprocessConfig(**settings)
