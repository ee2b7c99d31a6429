"""Pictures of surfaces against what geometry says they must be."""

import numpy as np
import pytest

from bindlm.binding.sources.render import _FILL, View, rasterise, render_depth, render_shaded
from bindlm.binding.sources.surface import Paint, Surface
from bindlm.errors import ConfigError


def surface_of(vertices, faces, paints=(Paint(),), paint_of_face=None, uv=None):
    faces = np.asarray(faces, dtype=np.int64)
    vertices = np.asarray(vertices, dtype=np.float64)
    uv = np.zeros((len(vertices), 2)) if uv is None else np.asarray(uv, dtype=np.float64)
    paint_of_face = np.zeros(len(faces), dtype=np.int64) if paint_of_face is None else np.asarray(paint_of_face)
    return Surface(vertices, faces, uv, paint_of_face, tuple(paints))


def sphere(radius, rings=120, segments=240, centre=(0.0, 0.0, 0.0), paints=(Paint(),)):
    polar, around = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, segments + 1))
    vertices = np.stack(
        [np.sin(polar) * np.cos(around), np.cos(polar), np.sin(polar) * np.sin(around)], axis=-1
    ).reshape(-1, 3)
    row, column = (each.reshape(-1) for each in np.meshgrid(np.arange(segments), np.arange(rings), indexing="ij"))
    corner = row * (rings + 1) + column
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + rings + 1], 1),
            np.stack([corner + 1, corner + rings + 2, corner + rings + 1], 1),
        ]
    )
    return surface_of(vertices * radius + np.array(centre), faces, paints)


def nearest_by_hand(corners, size):
    """Depth of each pixel, tried triangle by triangle and pixel by pixel."""
    depth = np.zeros((size, size))
    for triangle in corners:
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = triangle
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        for row in range(size):
            for column in range(size):
                x, y = column + 0.5, row + 0.5
                a = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                b = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                c = 1 - a - b
                if min(a, b, c) >= 0:
                    here = 1 / (a / az + b / bz + c / cz)
                    depth[row, column] = here if depth[row, column] == 0 else min(here, depth[row, column])
    return depth


@pytest.mark.parametrize("seed", range(5))
def test_random_triangles_are_drawn_as_by_hand(seed):
    """Small and large ones, partly and wholly outside of the picture, wound either way."""
    random = np.random.default_rng(seed)
    middle = random.uniform(-6, 22, (30, 1, 2))
    xy = middle + random.normal(size=(30, 3, 2)) * random.choice([0.3, 2, 15], (30, 1, 1))
    corners = np.concatenate([xy, random.uniform(0.5, 4, (30, 3, 1))], axis=2)
    raster = rasterise(corners, 16)
    assert (raster.face >= 0).any()
    np.testing.assert_allclose(raster.depth, nearest_by_hand(corners, 16), rtol=1e-9)
    seen = raster.face >= 0
    assert ((raster.depth > 0) == seen).all()
    weights = raster.weights[seen]
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    depth = (corners[raster.face[seen], :, 2] * weights).sum(axis=1)  # weights are those on the surface itself
    np.testing.assert_allclose(depth, raster.depth[seen], rtol=1e-7)


def test_chunks_do_not_change_the_picture(monkeypatch):
    random = np.random.default_rng(1)
    corners = np.concatenate([random.uniform(0, 32, (60, 3, 2)), random.uniform(1, 2, (60, 3, 1))], axis=2)
    whole = rasterise(corners, 32)
    monkeypatch.setattr("bindlm.binding.sources.render._CHUNK", 1)
    np.testing.assert_array_equal(rasterise(corners, 32).face, whole.face)


@pytest.mark.parametrize("radius", [0.02, 1.0, 9.0])
def test_depth_of_a_sphere_is_that_of_the_formula(radius):
    view = View(azimuth=77, elevation=30, field_of_view=50, size=96)
    depth = render_depth(sphere(radius, centre=(3, -2, 5)), view)
    slope = np.tan(np.radians(25))
    distance = radius * np.sqrt(1 + 1 / (slope * _FILL) ** 2)  # where the sphere just fills that share
    across = ((np.arange(96) + 0.5) / 48 - 1) * slope
    x, y = np.meshgrid(across, across)
    # |t (x, y, 1) - (0, 0, distance)| = radius, the nearer solution
    a, b, c = x**2 + y**2 + 1, -2 * distance, distance**2 - radius**2
    inside = b * b - 4 * a * c
    expected = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / (2 * a), 0)
    assert depth.dtype == np.float32
    clearly = np.abs(inside) > 0.03 * inside.max()  # the mesh is a polyhedron just inside of the sphere
    assert clearly.mean() > 0.9
    assert ((depth > 0) == (inside > 0))[clearly].all(), "no holes, nothing outside"
    both = (inside > 0) & clearly
    np.testing.assert_allclose(depth[both], expected[both], atol=2e-3 * radius)


def test_depth_is_along_the_viewing_axis_not_along_the_ray():
    """A wall seen from straight ahead has one depth all over."""
    wall = surface_of([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    depth = render_depth(wall, View(azimuth=0, elevation=0, size=64))
    assert (depth > 0).mean() == pytest.approx(_FILL**2, abs=0.04)
    assert np.ptp(depth[depth > 0]) < 1e-6


def test_near_things_hide_far_ones_and_left_is_left():
    """Looking at the front: x to the right, y up, z towards the camera."""
    square = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    small_in_front = square * 0.25 + [0.6, 0.6, 0.5]
    paints = (Paint((1.0, 0.0, 0.0)), Paint((0.0, 0.0, 1.0)))
    both = surface_of(
        np.concatenate([square, small_in_front]), np.concatenate([faces, faces + 4]), paints, [0, 0, 1, 1]
    )
    picture = render_shaded(both, View(0, 0, size=64))
    assert picture.shape == (64, 64, 4)
    assert picture.dtype == np.uint8
    is_blue = picture[..., 2] > picture[..., 0]
    rows, columns = np.nonzero(is_blue & (picture[..., 3] > 0))
    assert 30 < len(rows) < 400
    assert rows.mean() < 28, "up is up"
    assert columns.mean() > 36, "right is right"
    behind = render_shaded(both, View(180, 0, size=64))
    assert not (behind[..., 2] > behind[..., 0]).any(), "from behind the red square hides it"


def test_azimuth_ninety_sees_what_looks_along_x():
    marked = surface_of(
        [[1, -1, -1], [1, -1, 1], [1, 1, 0], [-1, -1, -1], [-1, -1, 1], [-1, 1, 0]],
        [[0, 1, 2], [3, 4, 5]],
        (Paint((0.0, 1.0, 0.0)), Paint((1.0, 0.0, 0.0))),
        [0, 1],
    )
    seen = {azimuth: render_shaded(marked, View(azimuth, 0, size=32))[16, 16, :2].argmax() for azimuth in (90, 270)}
    assert seen == {90: 1, 270: 0}


def test_shade_follows_the_light_and_edges_are_smooth():
    picture = render_shaded(sphere(1.0, paints=(Paint((1.0, 1.0, 1.0)),)), View(0, 0, size=64), supersample=3)
    brightness, alpha = picture[..., 0].astype(int), picture[..., 3]
    assert brightness[18, 22] > brightness[44, 40] + 40, "light comes from above on the left"
    assert set(np.unique(alpha)) > {0, 255}, "the silhouette has part-covered pixels"
    inside = brightness[alpha == 255]
    steps = np.abs(np.diff(brightness, axis=1))[(alpha[:, 1:] == 255) & (alpha[:, :-1] == 255)]
    assert np.ptp(inside) > 80
    assert steps.max() < 25, "round surfaces show no facets"


def test_texture_is_seen_where_the_coordinates_put_it():
    texture = np.zeros((2, 2, 3), dtype=np.uint8)
    texture[0, 0] = (255, 0, 0)  # upper left
    texture[1, 1] = (0, 0, 255)  # lower right
    wall = surface_of(
        [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]],
        [[0, 1, 2], [0, 2, 3]],
        (Paint(texture=texture),),
        uv=[[0, 0], [1, 0], [1, 1], [0, 1]],
    )
    picture = render_shaded(wall, View(0, 0, size=64))
    assert picture[16, 16, :3].argmax() == 0
    assert picture[16, 16, 2] == 0
    assert picture[48, 48, :3].argmax() == 2
    assert picture[16, 48, :3].max() == 0


@pytest.mark.parametrize("settings", [{"elevation": 90}, {"field_of_view": 0}, {"size": 0}])
def test_impossible_views_are_refused(settings):
    with pytest.raises(ConfigError, match=f"View.{next(iter(settings))}"):
        View(**settings)
