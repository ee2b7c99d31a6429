import math

import numpy as np
import pytest
from PIL import Image

from bindlm.media import ImagePreprocessConfig, preprocess_image
from bindlm.training.features.views import crop_box, cut_views
from bindlm.training.stage_recipe import ViewsConfig

CONTENT = bytes(range(16))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (224, 224), (3, 5), (1, 1)])
def test_crops_lie_in_the_picture_and_keep_to_scale_and_ratio(size):
    config = ViewsConfig(num_views=50)
    width, height = size
    for view in range(50):
        left, top, right, bottom = crop_box(width, height, config, CONTENT, view)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if min(size) > 100:
            area = (right - left) * (bottom - top) / (width * height)
            assert 0.89 <= area <= 1
            assert 0.745 <= (right - left) / (bottom - top) <= 1.345  # rounded to whole pixels


def test_crops_spread_over_the_allowed_shares_and_shapes():
    config = ViewsConfig(scale=(0.2, 0.8))
    boxes = [crop_box(400, 400, config, CONTENT, view) for view in range(400)]
    areas = [(right - left) * (bottom - top) / 160_000 for left, top, right, bottom in boxes]
    shapes = [math.log((right - left) / (bottom - top)) for left, top, right, bottom in boxes]
    assert min(areas) < 0.22
    assert max(areas) > 0.75
    assert min(shapes) < math.log(0.78)
    assert max(shapes) > math.log(1.28)
    assert abs(np.mean(shapes)) < 0.03  # wide crops are as frequent as high ones
    assert len({left for left, *_ in boxes}) > 50


@pytest.mark.parametrize(("size", "box"), [((1000, 100), (433, 0, 566, 100)), ((100, 1000), (0, 433, 100, 566))])
def test_what_no_crop_fits_gives_its_middle(size, box):
    assert crop_box(*size, ViewsConfig(), CONTENT, 0) == box


def test_crops_are_a_function_of_seed_content_and_number_alone():
    config = ViewsConfig(scale=(0.2, 0.8))
    box = crop_box(640, 480, config, CONTENT, 3)
    assert box == crop_box(640, 480, config, CONTENT, 3) == (256, 112, 579, 471)  # frozen: old stores stay valid
    assert box != crop_box(640, 480, config, CONTENT, 4)
    assert box != crop_box(640, 480, config, bytes(16), 3)
    assert box != crop_box(640, 480, ViewsConfig(scale=(0.2, 0.8), seed=1), CONTENT, 3)


def test_a_view_is_the_crop_squeezed_to_the_side_asked_for():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    config = ViewsConfig(num_views=2, scale=(0.3, 0.6))
    views = cut_views(pixels, config, CONTENT, 32)
    for number, view in enumerate(views):
        left, top, right, bottom = crop_box(80, 60, config, CONTENT, number)
        part = Image.fromarray(pixels[top:bottom, left:right]).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(view, np.asarray(part))


def test_a_view_reaches_the_encoder_pixel_for_pixel():
    view = cut_views(np.full((50, 70, 3), 77, dtype=np.uint8), ViewsConfig(num_views=2), CONTENT, 224)[1]
    view = np.random.default_rng(0).integers(0, 256, view.shape, dtype=np.uint8)
    config = ImagePreprocessConfig(size=224, crop_fraction=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    seen = preprocess_image(Image.fromarray(view), config)[0].transpose(1, 2, 0)
    assert np.array_equal(np.rint(seen * 255).astype(np.uint8), view)
