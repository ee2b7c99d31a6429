"""Thermal pictures are brightness from 0 to 1, by rules that are stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bindlm.errors import ConfigError, MediaError
from bindlm.media.thermal import ThermalPreprocessConfig, load_thermal, preprocess_thermal

from . import bad_thermal
from .nasty_sources import npy, picture_bytes

GREY = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
COUNTS = np.random.default_rng(0).integers(7000, 9001, (30, 40), dtype=np.uint16)


@pytest.mark.parametrize(
    "source",
    [
        picture_bytes(GREY),
        picture_bytes(GREY, "TIFF"),
        picture_bytes(GREY, "BMP"),
        picture_bytes(np.stack([GREY] * 3, axis=-1)),
        npy(GREY),
        GREY,
        Image.fromarray(GREY),
        torch.from_numpy(GREY)[None],
        GREY.astype(np.float32) / 255,
    ],
    ids="png tiff bmp colour npy array pil tensor floats".split(),
)
def test_grey_of_8_bits_is_taken_as_it_is(source):
    found = load_thermal(source)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (GREY / 255).astype(np.float32))


def test_counts_go_from_the_coldest_to_the_hottest():
    low, high = int(COUNTS.min()), int(COUNTS.max())
    for source in (picture_bytes(COUNTS), npy(COUNTS), COUNTS.astype(np.int32)):
        found = load_thermal(source)
        assert (found.min(), found.max()) == (0, 1)
        np.testing.assert_allclose(found, (COUNTS - low) / (high - low), atol=1e-6)


def test_a_range_keeps_pictures_comparable():
    celsius = np.array([[-10.0, 0.0, 25.0, 50.0, 90.0]])
    assert load_thermal(celsius, value_range=(0, 50)).tolist() == [[0, 0, 0.5, 1, 1]]
    assert load_thermal(COUNTS, value_range=(0, 65_535)).max() == np.float32(COUNTS.max() / 65_535)
    assert load_thermal(picture_bytes(GREY), value_range=(0, 510)).max() <= 0.5


def test_degrees_without_a_range_are_refused():
    with pytest.raises(MediaError, match="value_range"):
        load_thermal(np.full((4, 4), 36.6))


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("nan")), (0,), "ab", 5])
def test_impossible_ranges(value_range):
    with pytest.raises(ConfigError, match="value_range"):
        load_thermal(GREY, value_range=value_range)


def test_bad_files_are_refused(tmp_path):
    cases = bad_thermal.cases(tmp_path)
    assert len({name for name, _ in cases}) == len(cases) >= 40
    for name, load in cases:
        with pytest.raises(MediaError) as caught:
            load()
        assert "secret" not in str(caught.value), name


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_altered_files(data):
    content = bytearray(picture_bytes(COUNTS[:9, :9], data.draw(st.sampled_from(["PNG", "TIFF"]))))
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[place] = value
    try:
        found = load_thermal(bytes(content))
    except MediaError:
        return
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("shape", [(97, 131), (300, 224), (20, 30)])
def test_preprocessing_is_pillows_on_8_bits(shape):
    """Resize to 224, cut the middle, divide by 255: what PandaGPT does, here by Pillow in one step."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    shorter = min(image.size)
    resized = image.resize([side * 224 // shorter for side in image.size], Image.Resampling.BICUBIC)
    left, upper = (round((side - 224) / 2) for side in resized.size)
    expected = np.asarray(resized.crop((left, upper, left + 224, upper + 224))) / np.float32(255)
    found = preprocess_thermal(load_thermal(image))
    assert found.shape == (1, 224, 224)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("size", [0, 2.0, True, 10_000])
def test_impossible_settings(size):
    with pytest.raises(ConfigError, match="ThermalPreprocessConfig.size"):
        ThermalPreprocessConfig(size=size)
