"""Drawings of clouds and depth maps: what lies where, how it is lit, and what does not matter."""

import numpy as np
import pytest

from bindlm.errors import MediaError
from bindlm.media.drawing import draw_depth, draw_points


def ball(count: int = 4096, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_a_ball_is_a_disc_lit_from_above_on_the_left() -> None:
    drawn = draw_points(ball(), azimuth=0, elevation=0).astype(int)
    assert drawn.shape == (128, 128)
    there = drawn < 255
    assert there.sum() == pytest.approx(np.pi * (0.45 * 128) ** 2, rel=0.08)
    assert drawn[40:50, 40:50].mean() > drawn[85:95, 85:95].mean() + 20
    assert not there[:4].any()
    assert not there[:, :4].any()


@pytest.mark.parametrize("change", [lambda p: p * 7.5, lambda p: p + 100, lambda p: p.astype(np.float32)[::-1]])
def test_size_place_and_order_of_the_points_do_not_matter(change: object) -> None:
    points = ball(800) * [1, 0.6, 0.3]
    same = draw_points(points, azimuth=30, elevation=20).astype(int)
    other = draw_points(change(points), azimuth=30, elevation=20).astype(int)  # type: ignore[operator]
    assert (np.abs(same - other) > 2).mean() < 0.005


def test_azimuth_and_elevation_say_where_the_camera_stands() -> None:
    # a bar towards the front (+z) with a knob on the right (+x) and a flag on top (+y)
    random = np.random.default_rng(0)
    bar = random.uniform(-0.1, 0.1, (500, 3)) + np.linspace(0, 1, 500)[:, None] * [0, 0, 1.0]
    knob = random.uniform(-0.2, 0.2, (500, 3)) + [0.8, 0, 0]
    points = np.concatenate([bar, knob])
    front = draw_points(points, azimuth=0, elevation=0) < 255
    assert front[:, 90:].any(), "the knob is on the right when seen from the front"
    behind = draw_points(points, azimuth=180, elevation=0) < 255
    assert np.array_equal(behind.any(axis=0), front.any(axis=0)[::-1])
    above = draw_points(points, azimuth=0, elevation=89) < 255
    assert above.any(axis=1).sum() > front.any(axis=1).sum(), "from above the bar is long"


def test_what_is_nearer_hides_what_is_behind() -> None:
    side = np.linspace(-1, 1, 60)
    sheet = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    near = np.column_stack([sheet * 0.5, np.ones(len(sheet))])
    slanted = np.column_stack([sheet, sheet[:, 0] * 0.8 - 1])
    both = draw_points(np.concatenate([near, slanted]), azimuth=0, elevation=0).astype(int)
    alone = draw_points(slanted, azimuth=0, elevation=0).astype(int)
    assert abs(both[64, 64] - alone[64, 64]) > 5, "the flat sheet in front is lit as a flat sheet"
    assert abs(both[64, 20] - alone[64, 20]) <= 2


def test_few_points_still_make_a_surface() -> None:
    drawn = draw_points(ball(700), azimuth=0, elevation=0) < 255
    assert drawn[50:78, 50:78].mean() > 0.95


def test_depth_is_cut_out_scaled_to_the_picture_and_lit_the_same_way() -> None:
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    inside = x**2 + y**2 < 0.25
    depth = np.where(inside, 3 - np.sqrt(np.maximum(0.25 - x**2 - y**2, 0)), 0)
    drawn = draw_depth(depth).astype(int)
    there = drawn < 255
    assert there.sum() == pytest.approx(np.pi * (0.45 * 128) ** 2, rel=0.08)
    assert drawn[45:52, 45:52].mean() > drawn[80:87, 80:87].mean() + 10
    twice = draw_depth(depth * 2).astype(int)
    assert (np.abs(drawn - twice) > 1).mean() < 0.01, "unit and distance do not matter"


def test_depth_without_a_reading_is_refused() -> None:
    with pytest.raises(MediaError, match="nothing was measured"):
        draw_depth(np.zeros((8, 8)))


def test_a_flat_wall_and_a_lone_pixel_can_be_drawn() -> None:
    wall = draw_depth(np.full((20, 30), 2.0))
    assert (wall < 255).mean() > 0.4
    assert len(np.unique(wall[50:70, 40:90])) == 1
    lone = np.zeros((20, 30))
    lone[3, 4] = 1
    assert (draw_depth(lone) < 255).any()
