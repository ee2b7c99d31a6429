"""Models with their colours: reading, turning, fitting, drawing points."""

import io

import numpy as np
import pytest
from PIL import Image

from bindlm.binding.sources.surface import Surface, read_surface
from bindlm.errors import MediaError

OBJ = b"""mtllib box.mtl
v 0 0 0
v 2 0 0
v 2 0 4
v 0 0 4
v 0 3 0
v 2 3 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl red
f 1 2 3 4
usemtl picture
f 1/1 2/2 6/3 5/4
"""
MTL = b"newmtl red\nKd 1 0 0.2\n\nnewmtl picture\nKd 1 1 1\nmap_Kd half.png\n"


def half_png():
    """Left half green, right half blue."""
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4, 1] = 255
    pixels[:, 4:, 2] = 255
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def box():
    return read_surface(OBJ, {"box.mtl": MTL, "half.png": half_png()}.__getitem__)


def test_faces_materials_and_textures_are_read(box):
    assert len(box.faces) == 4
    assert sorted(np.bincount(box.paint_of_face).tolist()) == [2, 2]
    painted = {paint.texture is None: paint for paint in box.paints}
    np.testing.assert_allclose(painted[True].colour, (1, 0, 0.2), atol=0.01)
    assert painted[False].texture.shape == (4, 8, 3)


def test_points_lie_on_the_surface_evenly_by_area_with_its_colours(box):
    points = box.sample(6000, seed=3)
    assert points.shape == (6000, 6)
    assert points.dtype == np.float32
    xyz, colour = points[:, :3], points[:, 3:]
    on_floor, on_wall = np.abs(xyz[:, 1]) < 1e-5, np.abs(xyz[:, 2]) < 1e-5
    assert (on_floor | on_wall).all()
    assert on_floor.mean() == pytest.approx(8 / 14, abs=0.03)
    np.testing.assert_allclose(
        colour[on_floor & ~on_wall], np.tile([1, 0, 0.2], (int((on_floor & ~on_wall).sum()), 1)), atol=0.01
    )
    wall = on_wall & ~on_floor
    left = wall & (xyz[:, 0] < 0.99)
    right = wall & (xyz[:, 0] > 1.01)
    np.testing.assert_array_equal(colour[left].mean(axis=0), [0, 1, 0])
    np.testing.assert_array_equal(colour[right].mean(axis=0), [0, 0, 1])
    # even along each side of the floor
    np.testing.assert_allclose(xyz[on_floor].mean(axis=0), [1, 0, 2], atol=0.1)
    np.testing.assert_array_equal(points, box.sample(6000, seed=3))
    assert not np.array_equal(points, box.sample(6000, seed=4))


def test_turning_and_fitting_give_the_size_in_metres_on_the_floor(box):
    quarter = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # what lay along z stands up
    fitted = box.turned(quarter).fitted((0.5, 0.8, 0.25))
    low, high = fitted.vertices.min(axis=0), fitted.vertices.max(axis=0)
    np.testing.assert_allclose(low, [-0.25, 0, -0.125], atol=1e-12)
    np.testing.assert_allclose(high, [0.25, 0.8, 0.125], atol=1e-12)
    # the far end of the floor (z = 4) is now on top
    far = np.flatnonzero(box.vertices[:, 2] == 4)
    np.testing.assert_allclose(fitted.vertices[far, 1], 0.8)


def test_an_axis_without_extent_keeps_none():
    flat = Surface(
        np.array([[0.0, 5, 0], [1, 5, 0], [0, 5, 1]]), np.array([[0, 1, 2]]), np.zeros((3, 2)), np.zeros(1, np.int64)
    )
    fitted = flat.fitted((2, 1, 2))
    np.testing.assert_array_equal(fitted.vertices[:, 1], 0)
    assert np.ptp(fitted.vertices[:, 0]) == 2


def test_vertices_that_no_face_has_do_not_count(box):
    stray = read_surface(
        b"v 99 99 99\n" + OBJ.replace(b"f 1 2 3 4", b"f 2 3 4 5").replace(b"f 1/1 2/2 6/3 5/4", b"f 2/1 3/2 7/3 6/4"),
        {"box.mtl": MTL, "half.png": half_png()}.__getitem__,
    )
    np.testing.assert_allclose(
        np.sort(stray.fitted((1, 1, 1)).corners.reshape(-1, 3), axis=0),
        np.sort(box.fitted((1, 1, 1)).corners.reshape(-1, 3), axis=0),
    )


def test_without_its_material_file_a_model_is_grey():
    def nothing(name):
        raise KeyError(name)

    colours = read_surface(OBJ, nothing).sample(100)[:, 3:]
    assert (colours == colours[:, :1]).all()
    assert 0.3 < colours.min() <= colours.max() < 0.9


@pytest.mark.parametrize("broken", [b"", b"not a model", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", b"v 0 0 0\nf 1 2 3\n"])
def test_a_model_without_triangles_is_refused_by_name(broken):
    with pytest.raises(MediaError, match="chair-7"):
        read_surface(broken, {}.__getitem__, name="chair-7")


def test_triangles_without_area_are_refused():
    line = read_surface(b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", {}.__getitem__)
    with pytest.raises(MediaError, match="no area"):
        line.sample(10)
