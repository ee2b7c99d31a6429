"""Many-crop augmentation: the views of a picture that are embedded in its place.

Source: the release of ImageBind-LLM (arXiv 2309.03905), which trains on random resized crops without flips; here each
crop is a function of the seed, the picture's content and the view's number alone, so that it can be made anywhere,
at any time, by anyone.
"""

import hashlib
import math
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bindlm.media import load_image
from bindlm.training.stage_recipe import ViewsConfig

_TRIES = 10
"""Crops that are drawn before one is taken from the middle, as in the release."""

Box = tuple[int, int, int, int]


def crop_box(width: int, height: int, config: ViewsConfig, content: bytes, view: int) -> Box:
    """Left, top, right and bottom of a view, in pixels.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        config: share of the area, and shape.
        content: digest of the picture.
        view: its number, from 0.
    """
    # random() is the one part of `random` whose numbers Python promises never to change.
    draw = random.Random(_seed(config.seed, content, view)).random
    low, high = (math.log(ratio) for ratio in config.ratio)
    for _ in range(_TRIES):
        area = width * height * (config.scale[0] + draw() * (config.scale[1] - config.scale[0]))
        shape = math.exp(low + draw() * (high - low))
        crop_width, crop_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(draw() * (width - crop_width + 1)), int(draw() * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    return _middle(width, height, config.ratio)


def cut_views(source: Any, config: ViewsConfig, content: bytes, side: int) -> list[NDArray[np.uint8]]:
    """The views of a picture, each `(side, side, 3)` RGB.

    A crop is squeezed to a square, as in the release; the encoder's own preprocessing then finds it in the very size
    that it wants, and adds its normalisation.

    Args:
        source: anything that `bindlm.media.load_image` takes.
        config: how many, and how they are cut.
        content: digest of the picture.
        side: pixels of a side.

    Raises:
        MediaError: the picture cannot be used.
    """
    picture = load_image(source)
    boxes = (crop_box(*picture.size, config, content, view) for view in range(config.num_views))
    return [np.asarray(picture.crop(box).resize((side, side), Image.Resampling.BICUBIC)) for box in boxes]


def _seed(seed: int, content: bytes, view: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {view} ".encode() + content, digest_size=16).digest())


def _middle(width: int, height: int, ratio: tuple[float, float]) -> Box:
    """The largest box in the middle whose shape is allowed."""
    crop_width = min(width, max(1, round(height * ratio[1])))
    crop_height = min(height, max(1, round(width / ratio[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
