"""From an RGB picture to the numbers an image encoder reads. Pillow and numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from bindlm.errors import ConfigError, MediaError

VIEWS = ("center", "center_flip", "full", "full_flip")
_FLIP = "_flip"

_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

_EXTREME = 16
"""Ratio of sides beyond which a picture is not resized whole, and a tall one loses its height first: resized to 256
pixels of width, the legal picture of 20 x 4000 pixels would be 51,200 pixels high."""


@dataclass(frozen=True)
class ImagePreprocessConfig:
    """How pictures become input of one encoder; travels with its weights. Defaults: those usual for ImageNet."""

    size: int = 224
    """Pixels of each side of the result."""
    crop_fraction: float = 0.875
    """`size` divided by the length to which the shorter side is resized before the centre is cut out; in (0, 1]."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue on a scale where white is 1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides red, green and blue after that."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Pillow's filter. Shrinking widens it to cover all pixels (torchvision's `antialias=True`)."""

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= 8192:
            raise self._error("size", "a whole number from 1 to 8192")
        if not _is_finite(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            raise self._error("crop_fraction", "a number above 0 and at most 1")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != 3 or not all(map(_is_finite, value)):
                raise self._error(name, "three finite numbers")
            object.__setattr__(self, name, tuple(float(channel) for channel in value))  # JSON gives lists
        if min(self.std) <= 0:
            raise self._error("std", "three numbers above 0")
        if self.interpolation not in _INTERPOLATIONS:
            raise self._error("interpolation", f"one of {sorted(_INTERPOLATIONS)}")

    def _error(self, name: str, expected: str) -> ConfigError:
        return ConfigError(f"ImagePreprocessConfig.{name} must be {expected}, got {getattr(self, name)!r}.")


def preprocess_image(
    image: Image.Image, config: ImagePreprocessConfig, *, views: Sequence[str] = ("center",)
) -> np.ndarray:
    """Resize, cut and normalise a picture, in one or several views.

    With a picture of W x H pixels, s = min(W, H), and R = round(size / crop_fraction) (halves to even):

    - `center`: the picture is resized to `floor(W R / s)` x `floor(H R / s)` and the middle size x size pixels are cut
      out, from column `round((floor(W R / s) - size) / 2)` (halves to even), rows alike. This is torchvision's
      `Resize(R)` and `CenterCrop(size)`; but only what remains is computed, so that a picture a thousand times as
      wide as high costs no more than a square one. The width is resized first, then, from bytes again, the height
      (the other way round where the height is more than 16 times the width).
    - `full`: the whole picture is resized to size x size, whatever its shape.
    - `center_flip`, `full_flip`: the same, mirrored left to right.

    The bytes v of channel c of the result become `(v / 255 - mean[c]) / std[c]`, in float32.

    Args:
        image: A picture of mode RGB, as `load_image` gives it.
        config: Size, filter and normalisation.
        views: One or more of `center`, `center_flip`, `full`, `full_flip`.

    Returns:
        float32 `(V, 3, size, size)`, channels red, green, blue, one row a view in the order asked.

    Raises:
        ConfigError: No view, or an unknown one.
        MediaError: The picture is not of mode RGB, or is empty.
    """
    if isinstance(views, str) or not views or not set(views) <= set(VIEWS):
        raise ConfigError(f"views must be a tuple of one or more of {', '.join(VIEWS)}, got {views!r}.")
    if image.mode != "RGB" or 0 in image.size:
        raise MediaError(
            f"Cannot preprocess a picture of mode {image.mode} and size {image.size}: mode RGB and at least one pixel "
            "are expected. Read it with bindlm.media.load_image."
        )
    squares = {base: _square(image, config, base) for base in {view.removesuffix(_FLIP) for view in views}}
    pixels = np.stack(
        [squares[view.removesuffix(_FLIP)][:, :: -1 if view.endswith(_FLIP) else 1] for view in views]
    )  # (V, size, size, 3)
    mean, std = np.array(config.mean, dtype=np.float32), np.array(config.std, dtype=np.float32)
    normalised = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))  # (V, 3, size, size)


def _square(image: Image.Image, config: ImagePreprocessConfig, view: str) -> np.ndarray:
    """The bytes of one view, `(size, size, 3)`.

    Each side is resized in a step of its own: left to order the two steps itself, Pillow does so differently from
    version to version, and as it rounds to bytes in between, steep edges come out up to 20 levels apart.
    """
    shorter = min(image.size)
    for is_height in (True, False) if image.height > _EXTREME * image.width else (False, True):
        side = image.size[is_height]
        resized = side * round(config.size / config.crop_fraction) // shorter if view == "center" else config.size
        image = _resize_side(image, is_height, resized, config)
    return np.asarray(image)


def _resize_side(image: Image.Image, is_height: bool, resized: int, config: ImagePreprocessConfig) -> Image.Image:
    """Resize the width or the height to `resized`, and keep the middle `config.size` of it."""
    resampling = _INTERPOLATIONS[config.interpolation]
    side = image.size[is_height]
    begin = round((resized - config.size) / 2)
    if resized <= _EXTREME * config.size:
        whole = image.resize(_with_side(image.size, is_height, resized), resampling)
        return whole.crop(_box(image.size, is_height, begin, begin + config.size))
    # Only what is kept. At its edges the filter still sees the pixels around, so the result is the same but for the
    # rounding of the box to float32, which changes one byte in ten thousand by one.
    scale = side / resized
    box = _box(image.size, is_height, begin * scale, (begin + config.size) * scale)
    return image.resize(_with_side(image.size, is_height, config.size), resampling, box=box)


def _with_side(size: tuple[int, int], is_height: bool, side: int) -> tuple[int, int]:
    return (size[0], side) if is_height else (side, size[1])


def _box(size: tuple[int, int], is_height: bool, begin: float, end: float) -> tuple[float, float, float, float]:
    """The part of a picture from `begin` to `end` along one side, and all of the other."""
    return (0, begin, size[0], end) if is_height else (begin, 0, end, size[1])


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
