"""Pictures become the very numbers that the released ImageBind reads."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bindlm.errors import ConfigError
from bindlm.media import load_image, preprocess_image
from bindlm.media.clip_image import clip_image_config

from ..golden import GOLDEN, golden

MEDIA = GOLDEN / "imagebind" / "preprocess" / "media"
IMAGES = "imagebind/preprocess/images.safetensors"


@pytest.mark.parametrize("name", ["grey_131x97.png", "landscape_400x300.jpg", "portrait_181x263_rgba.png"])
def test_pictures_equal_the_released(name):
    expected = golden(IMAGES)[name].numpy()
    found = preprocess_image(load_image(MEDIA / name, transparency="drop"), clip_image_config())[0]
    assert np.abs(found - expected).max() <= 1e-6  # measured: 0 on x86-64 with Pillow 13; a byte off would be 0.014


def test_transparency_over_white_is_something_else():
    name = "portrait_181x263_rgba.png"
    expected = golden(IMAGES)[name].numpy()
    assert np.abs(preprocess_image(load_image(MEDIA / name), clip_image_config())[0] - expected).max() > 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_dropping_transparency_is_what_pillow_does(mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    if mode in ("P", "RGB", "L"):
        image.info["transparency"] = image.getpixel((0, 0))
    dropped = load_image(image, transparency="drop")
    assert np.array_equal(np.asarray(dropped), np.asarray(image.convert("RGB")))


def test_white_stays_the_default():
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(clear, transparency="drop").getpixel((0, 0)) == (255, 0, 0)


def test_unknown_transparency():
    with pytest.raises(ConfigError, match="transparency"):
        load_image(Image.new("RGB", (2, 2)), transparency="black")
