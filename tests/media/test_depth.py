"""Depth is in metres, and what becomes of it is what the papers' authors said."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bindlm.errors import ConfigError, MediaError
from bindlm.media import ImageLimits
from bindlm.media.clip_image import CLIP_MEAN, CLIP_STD
from bindlm.media.depth import DepthEncoding, load_depth
from bindlm.media.depth_preprocess import (
    DepthPreprocessConfig,
    MetricDepthPreprocessConfig,
    preprocess_depth,
    preprocess_metric_depth,
)

from . import bad_depth
from .nasty_sources import npy, picture_bytes

MILLIMETRES = np.random.default_rng(0).integers(300, 9000, (30, 40), dtype=np.uint16)
METRES = (MILLIMETRES / 1000).astype(np.float32)


@pytest.mark.parametrize(
    "source",
    [
        picture_bytes(MILLIMETRES),
        picture_bytes(MILLIMETRES, "TIFF"),
        picture_bytes(MILLIMETRES, "TIFF", compression="tiff_lzw"),
        picture_bytes(METRES, "TIFF"),
        npy(MILLIMETRES),
        npy(MILLIMETRES.astype(">u2")),
        npy(np.asfortranarray(METRES)),
        npy(METRES.astype(np.float64)[None]),
        MILLIMETRES,
        METRES[..., None],
        Image.fromarray(MILLIMETRES),
        Image.fromarray(METRES),
        torch.from_numpy(METRES)[None],
    ],
    ids="png tiff lzw float-tiff npy big-endian fortran float64 uint16 float32 pil-16 pil-float tensor".split(),
)
def test_every_form_gives_the_same_metres(source):
    found = load_depth(source)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, METRES, rtol=1e-6)


def test_a_path_and_an_open_file(tmp_path):
    path = tmp_path / "depth.png"
    path.write_bytes(picture_bytes(MILLIMETRES))
    np.testing.assert_array_equal(load_depth(path), METRES)
    np.testing.assert_array_equal(load_depth(str(path)), METRES)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_depth(file), METRES)


def test_sun_rgbd_is_rotated_back():
    rotated = (MILLIMETRES << 3) | (MILLIMETRES >> 13)
    np.testing.assert_array_equal(load_depth(picture_bytes(rotated), encoding="sunrgbd"), METRES)
    assert not np.array_equal(load_depth(picture_bytes(rotated)), METRES)
    every = np.arange(1, 65_536, dtype=np.uint16).reshape(257, 255)
    back = load_depth((every << 3) | (every >> 13), encoding=DepthEncoding.SUNRGBD)
    np.testing.assert_allclose(back, every / 1000, rtol=1e-6)


def test_an_encoding_that_is_said_is_believed():
    grey = np.full((4, 4), 200, dtype=np.uint8)
    assert load_depth(picture_bytes(grey), encoding="millimetres")[0, 0] == np.float32(0.2)
    assert load_depth(picture_bytes(grey), encoding="metres")[0, 0] == 200
    assert load_depth(np.full((4, 4), 1500.0), encoding="millimetres")[0, 0] == 1.5


def test_what_is_not_measured_stays_zero():
    depth = MILLIMETRES.copy()
    depth[3, 4] = 0
    assert load_depth(depth)[3, 4] == 0


def test_the_message_names_the_file_and_the_cure():
    with pytest.raises(MediaError, match=r"^Cannot use depth map 'a.png': its numbers are uint8.*encoding="):
        load_depth(picture_bytes(MILLIMETRES.astype(np.uint8)), name="a.png")


def test_an_unknown_encoding():
    with pytest.raises(ConfigError, match="millimetres, metres, sunrgbd"):
        load_depth(METRES, encoding="inches")


def test_limits_are_asked_before_decoding():
    with pytest.raises(MediaError, match="million"):
        load_depth(picture_bytes(MILLIMETRES), limits=ImageLimits(max_pixels=1000))
    with pytest.raises(MediaError, match="larger than"):
        load_depth(picture_bytes(MILLIMETRES), limits=ImageLimits(max_bytes=100))


def test_bad_files_are_refused(tmp_path):
    cases = bad_depth.cases(tmp_path)
    assert len({name for name, _ in cases}) == len(cases) >= 40
    for name, load in cases:
        with pytest.raises(MediaError) as caught:
            load()
        assert "secret" not in str(caught.value), name


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "npy"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_and_cut_files(kind, data):
    content = bytearray(npy(MILLIMETRES) if kind == "npy" else picture_bytes(MILLIMETRES[:9, :9], kind))
    places = st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content)) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[place] = value
    cut = bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
    try:
        found = load_depth(cut)
    except MediaError:
        return
    assert found.dtype == np.float32
    assert found.ndim == 2
    assert 0 <= found.min() <= found.max() <= 1000


# --- ImageBind ---


def test_a_wall_becomes_its_disparity():
    config = DepthPreprocessConfig(baseline_m=0.1, focal_length_px=500, mean=0.5, std=0.25)
    found = preprocess_depth(np.full((30, 40), 2.0, dtype=np.float32), config)
    assert found.shape == (1, 224, 224)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (0.1 * 500 / 2 / 75 - 0.5) / 0.25, rtol=1e-5)
    pixels = preprocess_depth(
        np.full((30, 40), 2.0), DepthPreprocessConfig(max_disparity_px=None, mean=0, std=1, baseline_m=0.1)
    )
    np.testing.assert_allclose(pixels, 0.1 * 518.857901 / 2, rtol=1e-6)


@pytest.mark.parametrize(("depth_m", "as_m"), [(0.0, 0.01), (0.001, 0.01), (60.0, 50.0)])
def test_disparity_is_bounded(depth_m, as_m):
    config = DepthPreprocessConfig(max_disparity_px=None, mean=0, std=1)
    found = preprocess_depth(np.full((8, 8), depth_m, dtype=np.float32), config)
    np.testing.assert_allclose(found, 0.075 * 518.857901 / as_m, rtol=1e-5)


def test_the_middle_is_cut_out_as_from_the_whole():
    """Against the plain way: resize all, then cut; the offsets are halves, rounded to even."""
    depth = np.random.default_rng(1).uniform(0.5, 8, (61, 97)).astype(np.float32)
    config = DepthPreprocessConfig(size=20, max_disparity_px=None, mean=0, std=1)
    disparity = (0.075 * 518.857901 / depth).astype(np.float32)
    for values, source in ((disparity, depth), (disparity.T, depth.T)):
        height, width = values.shape
        resized = (width * 20 // 61, height * 20 // 61)
        whole = Image.fromarray(np.ascontiguousarray(values)).resize(resized, Image.Resampling.BILINEAR)
        left, upper = (round((side - 20) / 2) for side in resized)
        expected = np.asarray(whole.crop((left, upper, left + 20, upper + 20)))
        np.testing.assert_allclose(preprocess_depth(source, config)[0], expected, rtol=1e-4)


def test_a_ribbon_costs_no_more_than_a_square():
    assert preprocess_depth(np.ones((20, 4000), dtype=np.float32)).shape == (1, 224, 224)
    assert preprocess_metric_depth(np.ones((4000, 20), dtype=np.float32)).shape == (3, 224, 224)


# --- LanguageBind ---


@pytest.mark.parametrize(
    ("max_depth_m", "depth_m", "share"), [(10, 2.5, 0.25), (10, 40, 1), (10, 0, 0.001), (0, 3, 1)]
)
def test_a_wall_becomes_its_share_of_the_furthest(max_depth_m, depth_m, share):
    config = MetricDepthPreprocessConfig(max_depth_m=max_depth_m)
    found = preprocess_metric_depth(np.full((30, 40), depth_m, dtype=np.float32), config)
    assert found.shape == (3, 224, 224)
    assert found.dtype == np.float32
    for channel, mean, std in zip(found, CLIP_MEAN, CLIP_STD, strict=True):
        np.testing.assert_allclose(channel, (share - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (DepthPreprocessConfig, "size", 0),
        (DepthPreprocessConfig, "baseline_m", 0.0),
        (DepthPreprocessConfig, "focal_length_px", float("nan")),
        (DepthPreprocessConfig, "min_depth_m", 60.0),
        (DepthPreprocessConfig, "max_disparity_px", 0.0),
        (DepthPreprocessConfig, "std", 0.0),
        (DepthPreprocessConfig, "mean", "0"),
        (DepthPreprocessConfig, "interpolation", "nearest"),
        (MetricDepthPreprocessConfig, "size", True),
        (MetricDepthPreprocessConfig, "max_depth_m", -1.0),
        (MetricDepthPreprocessConfig, "max_depth_m", 0.001),
        (MetricDepthPreprocessConfig, "mean", (0, 0)),
        (MetricDepthPreprocessConfig, "std", (1, 1, 0)),
    ],
)
def test_impossible_settings(config, field, value):
    with pytest.raises(ConfigError, match=rf"{config.__name__}\.{field}"):
        config(**{field: value})


def test_the_file_object_is_left_open():
    file = io.BytesIO(picture_bytes(MILLIMETRES))
    load_depth(file)
    assert not file.closed
