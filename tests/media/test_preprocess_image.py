"""The numbers an encoder reads are those of resizing the whole picture, without the cost of doing so."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from PIL import Image

from bindlm.errors import ConfigError, MediaError
from bindlm.media import ImagePreprocessConfig, preprocess_image

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 7919 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def two_steps(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image.resize((size[0], image.height), resampling).resize(size, resampling)


def whole_then_cut(image: Image.Image, size: int, crop_fraction: float, resampling: Image.Resampling) -> np.ndarray:
    """The plain way: resize everything, then cut out the middle."""
    short, target = min(image.size), round(size / crop_fraction)
    resized = two_steps(image, (image.width * target // short, image.height * target // short), resampling)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Undo a normalisation by mean 0 and deviation 1: `(V, 3, S, S)` to bytes `(V, S, S, 3)`."""
    return np.rint(array * 255).astype(int).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", [(32, 32), (131, 97), (97, 131), (31, 160), (500, 300), (8, 9), (1, 1), (1, 5)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.9, 0.33])
def test_center_equals_resizing_the_whole(shape, crop_fraction, interpolation):
    config = ImagePreprocessConfig(size=32, crop_fraction=crop_fraction, interpolation=interpolation, **PLAIN)
    image = noise(*shape)
    found = as_bytes(preprocess_image(image, config))[0]
    assert np.array_equal(found, whole_then_cut(image, 32, crop_fraction, FILTERS[interpolation]))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", [(20, 2000), (2000, 20), (3, 900), (900, 3)])
def test_center_of_extreme_shapes_equals_resizing_the_whole_but_for_rounding(shape, interpolation):
    config = ImagePreprocessConfig(size=32, interpolation=interpolation, **PLAIN)
    # Smooth along the long side: of a tall picture the height goes first, and rounding in between takes another path.
    image = noise(min(shape[0], 40), min(shape[1], 40)).resize(shape, Image.Resampling.BICUBIC)
    found = as_bytes(preprocess_image(image, config))[0]
    error = np.abs(found - whole_then_cut(image, 32, 0.875, FILTERS[interpolation]))
    assert error.max() <= 2
    assert error.mean() < 0.25


@pytest.mark.parametrize("shape", [(131, 97), (97, 131), (32, 32), (5, 80)])
def test_full_is_the_whole_picture_whatever_its_shape(shape):
    config = ImagePreprocessConfig(size=32, **PLAIN)
    image = noise(*shape)
    found = as_bytes(preprocess_image(image, config, views=("full",)))[0]
    assert np.array_equal(found, np.asarray(two_steps(image, (32, 32), FILTERS["bicubic"])))


def test_center_is_the_centre():
    """Thirds of red, green and blue: the middle square of a picture three times as wide as high is green."""
    columns = np.zeros((10, 30, 3), dtype=np.uint8)
    for third in range(3):
        columns[:, 10 * third : 10 * third + 10, third] = 255
    config = ImagePreprocessConfig(size=10, crop_fraction=1.0, **PLAIN)
    for image in (Image.fromarray(columns), Image.fromarray(columns.transpose(1, 0, 2).copy())):
        assert (as_bytes(preprocess_image(image, config))[0] == [0, 255, 0]).all()


def test_views_come_in_the_order_asked_and_flips_mirror():
    config = ImagePreprocessConfig(size=16)
    image = noise(40, 30)
    views = ("full_flip", "center", "full", "center_flip", "center")
    found = preprocess_image(image, config, views=views)
    assert found.shape == (5, 3, 16, 16)
    assert found.dtype == np.float32
    assert found.flags["C_CONTIGUOUS"]
    for row, view in enumerate(views):
        assert np.array_equal(found[row], preprocess_image(image, config, views=[view])[0])
    assert np.array_equal(found[0], found[2][:, :, ::-1])
    assert np.array_equal(found[3], found[1][:, :, ::-1])
    assert not np.array_equal(found[1], found[2])


def test_normalisation_is_by_channel_and_in_float32():
    config = ImagePreprocessConfig(size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    found = preprocess_image(Image.new("RGB", (9, 9), (0, 51, 255)), config)[0]
    for channel, value in enumerate((0, 51, 255)):
        expected = (np.float32(value) / np.float32(255) - np.float32(config.mean[channel])) / np.float32(
            config.std[channel]
        )
        assert (found[channel] == expected).all()


def test_extreme_shapes_cost_little():
    config = ImagePreprocessConfig(size=224, **PLAIN)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ((1, 65_535), (65_535, 1), (2, 400_000), (400_000, 2)):
        found = preprocess_image(Image.new("RGB", shape, (10, 20, 30)), config, views=("center", "full"))
        assert (as_bytes(found) == [10, 20, 30]).all()
    # Resized whole, the first would be 256 x 16,776,960 pixels.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 1024


@pytest.mark.parametrize("views", [(), ("middle",), ("center", "flip"), "center", ("center_flip_flip",)])
def test_unknown_views_are_refused(views):
    with pytest.raises(ConfigError, match="center, center_flip, full, full_flip"):
        preprocess_image(noise(4, 4), ImagePreprocessConfig(), views=views)


@pytest.mark.parametrize("image", [Image.new("L", (4, 4)), Image.new("RGBA", (4, 4)), Image.new("RGB", (0, 4))])
def test_other_pictures_are_refused(image):
    with pytest.raises(MediaError, match="load_image"):
        preprocess_image(image, ImagePreprocessConfig())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("size", value) for value in (0, -1, 1.5, True, "224", 9000)),
        *(("crop_fraction", value) for value in (0, -0.1, 1.01, float("nan"), "1", True)),
        *(("mean", value) for value in ((0.5, 0.5), 0.5, (0.5, 0.5, float("nan")), ("a", "b", "c"))),
        *(("std", value) for value in ((0.5, 0.5), (0.5, 0.5, 0), (0.5, 0.5, -1.0), (1, 1, float("inf")))),
        *(("interpolation", value) for value in ("lanczos", "", None)),
    ],
)
def test_impossible_settings_name_the_field_and_the_value(field, value):
    with pytest.raises(ConfigError, match=rf"ImagePreprocessConfig\.{field}"):
        ImagePreprocessConfig(**{field: value})


def test_lists_from_json_become_tuples():
    config = ImagePreprocessConfig(mean=[0, 0, 0], std=[1, 1, 1])
    assert config.mean == (0.0, 0.0, 0.0)
    assert config == ImagePreprocessConfig(**PLAIN)
    assert hash(config) == hash(ImagePreprocessConfig(**PLAIN))
