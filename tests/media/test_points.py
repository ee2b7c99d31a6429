"""Point clouds and meshes: every format gives the points that were written, and nothing else is ever opened."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlm.errors import ConfigError, MediaError
from bindlm.media.names import Medium
from bindlm.media.points import load_points
from bindlm.media.points_geometry import PointLimits
from bindlm.media.points_pcd import _unpack

from . import clouds
from .bad_points import FORMATS, cases
from .clouds import CUBE, QUADS, TRIANGLES

CLOUD = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)

CLOUDS = {
    "ply text": clouds.ply(CLOUD, byte_order=""),
    "ply little-endian": clouds.ply(CLOUD),
    "ply big-endian": clouds.ply(CLOUD, byte_order=">"),
    "ply of doubles": clouds.ply(CLOUD, number="double"),
    "ply with colours between": clouds.ply(CLOUD, extra=True),
    "ply text with colours between": clouds.ply(CLOUD, byte_order="", extra=True),
    "ply with CRLF": clouds.ply(CLOUD, byte_order="").replace(b"\n", b"\r\n"),
    "obj without faces": clouds.obj(CLOUD, ()),
    "off without faces": clouds.off(CLOUD, ()),
    "pcd": clouds.pcd(CLOUD),
    "pcd text": clouds.pcd(CLOUD, "ascii"),
    "pcd packed": clouds.pcd(CLOUD, "binary_compressed"),
    "npy": clouds.npy(CLOUD),
    "npy of doubles, columns first": clouds.npy(np.asfortranarray(CLOUD.astype(np.float64))),
    "npy with colours": clouds.npy(np.hstack([CLOUD, CLOUD])),
    "npz": clouds.npz(labels=np.ones(3), points=CLOUD),
    "npz of one array": clouds.npz(chair=CLOUD),
    "xyz": clouds.text(CLOUD),
    "xyz with colours": clouds.text(np.hstack([CLOUD, CLOUD])),
    "xyz with CRLF and blanks": b"\r\n  " + clouds.text(CLOUD, "   ", "  \r\n") + b"\r\n\r\n",
    "xyz with comments": b"# made by hand\n// and by foot\n" + clouds.text(CLOUD),
    "csv": clouds.text(CLOUD, ","),
    "csv with names": b"x,y,z\n" + clouds.text(CLOUD, ","),
    "text with names in a comment": b"//X Y Z\n" + clouds.text(CLOUD, ";"),
    "pts": b"50\n" + clouds.text(np.hstack([CLOUD, CLOUD[:, :1]])),
}
MESHES = {
    "ply text": clouds.ply(CUBE, QUADS, ""),
    "ply": clouds.ply(CUBE, QUADS),
    "ply big-endian": clouds.ply(CUBE, TRIANGLES, ">"),
    "ply of polygons alike in nothing": clouds.ply(CUBE, [*QUADS[:5], *TRIANGLES[-2:]]),
    "ply text of polygons alike in nothing": clouds.ply(CUBE, [*QUADS[:5], *TRIANGLES[-2:]], ""),
    "ply with flags before the corners": clouds.ply(CUBE, QUADS, extra=True),
    "obj": clouds.obj(),
    "obj with textures and normals": clouds.obj(form="{0}/1/1"),
    "obj with normals": clouds.obj(form="{0}//1"),
    "obj with CRLF": clouds.obj().replace(b"\n", b"\r\n"),
    "obj with a broken line": clouds.obj().replace(b"f 1 2 ", b"f 1 2 \\\n"),
    "off": clouds.off(),
    "off without a line break": clouds.off(header="OFF"),
    "off with comments": clouds.off(header="# made by hand\nOFF # here\n\n"),
    "stl": clouds.stl(),
    "stl text": clouds.ascii_stl(),
    "glb": clouds.glb(),
}


@pytest.mark.parametrize("name", CLOUDS)
def test_every_format_gives_the_points_that_were_written(name):
    points = load_points(CLOUDS[name])
    assert points.dtype == np.float32
    assert points.flags.c_contiguous
    np.testing.assert_allclose(points, CLOUD, rtol=1e-6)


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_is_sampled_evenly_over_its_surface(name):
    points = load_points(MESHES[name], num_points=6000)
    assert points.shape == (6000, 3)
    on_side = np.isclose(points, 0, atol=1e-6) | np.isclose(points, 1, atol=1e-6)
    assert (on_side.any(axis=1)).all()
    assert points.min() > -1e-6
    assert points.max() < 1 + 1e-6
    for axis in range(3):
        for side in (0, 1):  # each side has a sixth of the area: 1000 points, standard deviation 29
            assert 850 < np.isclose(points[:, axis], side, atol=1e-6).sum() < 1150
    assert abs(points.mean(axis=0) - 0.5).max() < 0.03
    corner = (points < 0.5).all(axis=1).mean()  # within each triangle too, not only from one to the next
    assert abs(corner - 1 / 8) < 0.02


@pytest.mark.parametrize("name", MESHES)
def test_without_a_number_a_mesh_gives_its_vertices(name):
    points = load_points(MESHES[name], num_points=None)
    assert {tuple(point) for point in points.tolist()} == {tuple(point) for point in CUBE.tolist()}


def test_the_same_seed_gives_the_same_points_and_another_seed_others():
    first, again, other = (load_points(clouds.obj(), seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_large_triangles_get_more_points_than_small_ones():
    points = np.array([[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5]], dtype=np.float32)
    sampled = load_points(clouds.stl(points, [(0, 1, 2), (3, 4, 5)]), num_points=4000)
    assert abs((sampled[:, 2] == 0).mean() - 0.75) < 0.03


def test_a_mesh_without_area_gives_its_vertices():
    points = load_points(clouds.off(CUBE, [(0, 0, 1), (2, 2, 2)]))
    assert np.array_equal(points, CUBE)


def test_obj_indices_may_count_back():
    body = b"v 9 9 9\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 9 9 9\n"
    points = load_points(body, num_points=500)
    assert (points[:, 2] == 0).all()
    assert points.max() <= 1


def test_a_glb_stands_where_its_nodes_put_it():
    turned = [{"translation": [10, 0, 0]}, {"scale": [2, 2, 2], "rotation": [0, 0, 2**-0.5, 2**-0.5]}]
    points = load_points(clouds.glb(nodes=turned), num_points=None)
    assert len(points) == 16
    np.testing.assert_allclose(sorted(points.min(axis=0)), [-2, 0, 0], atol=1e-5)
    np.testing.assert_allclose(points.max(axis=0), [11, 2, 2], atol=1e-5)


def test_a_glb_of_points_gives_the_points():
    def to_points(description):
        description["meshes"][0]["primitives"][0] = {"attributes": {"POSITION": 0}, "mode": 0}

    np.testing.assert_allclose(load_points(clouds.glb(CLOUD, change=to_points)), CLOUD, rtol=1e-6)


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["array", "tensor"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8"])
def test_arrays_and_tensors_keep_their_points_in_order(make, dtype):
    rows = [[1, 2, 3, 99], [4, 5, 6, 99], [7, 8, 9, 99]]
    source = make(rows, dtype=getattr(torch, dtype) if make is torch.tensor else dtype)
    points = load_points(source)
    assert np.array_equal(points, np.array(rows, dtype=np.float32)[:, :3])
    assert points.dtype == np.float32


def test_a_bf16_tensor_on_its_way_to_training_is_read():
    tensor = torch.tensor(CUBE, requires_grad=True).bfloat16()
    assert np.array_equal(load_points(tensor), CUBE)


def test_the_result_shares_nothing_with_the_source():
    source = CUBE.copy()
    load_points(source)[:] = 7
    assert np.array_equal(source, CUBE)


def test_the_content_tells_the_format_whatever_the_name(tmp_path):
    for number, data in enumerate(CLOUDS.values()):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        np.testing.assert_allclose(load_points(path), CLOUD, rtol=1e-6)


def test_a_scan_in_map_coordinates_keeps_its_detail():
    far = CLOUD.astype(np.float64) + [4_500_000, 600_000, 100]
    points = load_points(far)
    spread = points - points.mean(axis=0)
    np.testing.assert_allclose(spread, CLOUD - CLOUD.mean(axis=0), atol=1e-5)


def test_other_files_are_never_opened(tmp_path, monkeypatch):
    def refuse(*args, **settings):
        raise AssertionError(f"opened {args}")

    (tmp_path / "other.mtl").write_bytes(b"newmtl a\nmap_Kd other.png\n")
    sources = [clouds.obj(), clouds.ply(CUBE, QUADS).replace(b"comment made by hand", b"comment TextureFile a.png")]
    sources.append(clouds.glb(change=lambda description: description.update(images=[{"uri": "other.png"}])))
    import trimesh  # noqa: F401 - not while files cannot be opened

    load_points(clouds.glb())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    for source in sources:
        assert load_points(source, num_points=10).shape == (10, 3)


@pytest.mark.parametrize("name", MESHES)
def test_limits_on_points_and_faces_hold(name):
    with pytest.raises(MediaError, match=r"max_points|promises"):
        load_points(MESHES[name], num_points=None, limits=PointLimits(max_points=7))
    with pytest.raises(MediaError, match=r"max_faces|promises"):
        load_points(MESHES[name], num_points=None, limits=PointLimits(max_faces=5))


@pytest.mark.parametrize("name", CLOUDS)
def test_limits_on_points_and_bytes_hold_for_clouds(name):
    with pytest.raises(MediaError, match="max_points"):
        load_points(CLOUDS[name], num_points=None, limits=PointLimits(max_points=49))
    with pytest.raises(MediaError, match="larger than"):
        load_points(CLOUDS[name], num_points=None, limits=PointLimits(max_bytes=len(CLOUDS[name]) - 1))


@pytest.mark.parametrize("settings", [{"num_points": 0}, {"num_points": True}, {"seed": -1}, {"num_points": 10**9}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        load_points(CUBE, **settings)


@pytest.mark.parametrize("name", ["max_bytes", "max_points", "max_faces", "max_nodes"])
def test_impossible_limits_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        PointLimits(**{name: 0})


def test_bad_inputs_raise_one_error_with_name_and_cure(tmp_path):
    found = cases(tmp_path)
    assert len({name for name, _ in found}) == len(found) > 200
    for name, call in found:
        try:
            message = f"accepted: {call()}"
        except MediaError as error:
            message = str(error)
        assert message.startswith("Cannot use point cloud "), (name, message)
        assert "secret" not in message, name


def test_lzf_copies_that_overlap_themselves_are_unpacked():
    packed = bytes([1]) + b"ab" + bytes([(3 << 5), 1]) + bytes([7 << 5, 3, 0])
    body = len(packed).to_bytes(4, "little") + (19).to_bytes(4, "little") + packed
    assert _unpack(body, 19, Medium("point cloud", "x"), PointLimits()) == b"ab" + b"ababa" + b"a" * 12


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("blank", [b"\x1c", b"\x85", b"\xa0"])
def test_lines_of_what_unicode_calls_blank_are_refused_without_a_warning(blank):
    with pytest.raises(MediaError, match="not with numbers"):
        load_points(blank + b"\n" + blank)


def test_threads_load_as_one_does():
    expected = load_points(clouds.glb())
    results = []
    threads = [threading.Thread(target=lambda: results.append(load_points(clouds.glb()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(np.array_equal(each, expected) for each in results)


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    st.floats(0.3, 1),
)
def test_damaged_files_give_points_or_a_media_error(name, changes, kept):
    data = bytearray(FORMATS[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        points = load_points(bytes(data[: max(1, int(kept * len(data)))]), num_points=64)
    except MediaError:
        return
    assert points.ndim == 2
    assert points.dtype == np.float32
    assert np.isfinite(points).all()


@settings(max_examples=150)
@given(st.sampled_from([b"", b"ply\n", b"OFF\n", b"v 0 0 0\n", b"solid\nfacet", b"# .PCD\n"]), st.binary(max_size=300))
def test_random_bytes_give_points_or_a_media_error(head, tail):
    try:
        points = load_points(head + tail, num_points=64)
    except MediaError:
        return
    assert np.isfinite(points).all()
