"""From depth in metres to the numbers that ImageBind and LanguageBind read. The two must not be confused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from bindlm.errors import ConfigError
from bindlm.media.clip_image import CLIP_MEAN, CLIP_STD

_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def _error(config: object, name: str, expected: str) -> ConfigError:
    return ConfigError(f"{type(config).__name__}.{name} must be {expected}, got {getattr(config, name)!r}.")


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_size(config: object, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 8192:
        raise _error(config, "size", "a whole number from 1 to 8192")


def _check_number(config: object, name: str, *, is_positive: bool) -> None:
    value = getattr(config, name)
    if not _is_finite(value) or (is_positive and value <= 0):
        raise _error(config, name, "a finite number above 0" if is_positive else "a finite number")


def _check_interpolation(config: object, value: str) -> None:
    if value not in _INTERPOLATIONS:
        raise _error(config, "interpolation", f"one of {sorted(_INTERPOLATIONS)}")


@dataclass(frozen=True)
class DepthPreprocessConfig:
    """How depth becomes disparity for ImageBind's depth tower.

    The release has no loader for depth and the paper gives no numbers beyond "disparity"; these are what its authors
    stated elsewhere. Mean and deviation come from Omnivore, as statistics of disparity over `max_disparity_px`. They
    lie at about 12 m for a Kinect, eight times the usual distance in a room, as if measured on the PNG files of SUN
    RGB-D without undoing their rotation of bits; `baseline_m=0.075 / 8` would reproduce that. The default takes
    metres for metres. The tower's first LayerNorm makes most of such a factor, but not of the offset, disappear.
    """

    size: int = 224
    """Pixels of each side of the result."""
    baseline_m: float = 0.075
    """Distance of the sensor's two eyes: 0.075 for Kinect v1 and v2, 0.095 for RealSense and Xtion."""
    focal_length_px: float = 518.857901
    """Of the camera, in pixels of the map as given; the default is Kinect v1 at 640 x 480, as in NYU Depth v2."""
    min_depth_m: float = 0.01
    """Nearer is taken as this near; also 0, where nothing was measured, so fill holes first if there are many."""
    max_depth_m: float = 50.0
    """Further is taken as this far."""
    max_disparity_px: float | None = 75.0
    """Disparity is cut to this and divided by it, as in Omnivore; None leaves it in pixels."""
    mean: float = 0.0418
    """Subtracted from the result."""
    std: float = 0.0295
    """Divides the result after that."""
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"
    """Pillow's filter, on floats. Bicubic would overshoot at edges of depth, below zero even."""

    def __post_init__(self) -> None:
        _check_size(self, self.size)
        for name in ("baseline_m", "focal_length_px", "min_depth_m", "max_depth_m", "std"):
            _check_number(self, name, is_positive=True)
        _check_number(self, "mean", is_positive=False)
        if self.max_disparity_px is not None:
            _check_number(self, "max_disparity_px", is_positive=True)
        if self.min_depth_m > self.max_depth_m:
            raise _error(self, "min_depth_m", f"at most max_depth_m, {self.max_depth_m!r}")
        _check_interpolation(self, self.interpolation)


def preprocess_depth(depth: np.ndarray, config: DepthPreprocessConfig = DepthPreprocessConfig()) -> np.ndarray:
    """Depth in metres to ImageBind's one channel of disparity.

    `disparity = baseline_m * focal_length_px / clip(depth, min_depth_m, max_depth_m)`, over `max_disparity_px`; the
    shorter side resized to `size`, the middle square cut out; minus `mean`, over `std`.

    Args:
        depth: `(H, W)` in metres, as `load_depth` gives it.
        config: Camera, bounds, size and normalisation.

    Returns:
        float32 `(1, size, size)`; larger is nearer.

    Source:
        ImageBind (arXiv 2305.05665), section 4 ("disparity maps for scale invariance"); bounds, formula and baselines
        by one of its authors in issue 12 of facebookresearch/omnivore; 75, mean and deviation of Omnivore
        (arXiv 2201.08377), whose issues 107 and 134 at facebookresearch/ImageBind carry over.
    """
    disparity = config.baseline_m * config.focal_length_px / np.clip(depth, config.min_depth_m, config.max_depth_m)
    if config.max_disparity_px is not None:
        disparity = np.minimum(disparity, config.max_disparity_px) / config.max_disparity_px
    square = _center_square(disparity.astype(np.float32), config.size, config.interpolation)  # (size, size)
    return ((square - np.float32(config.mean)) / np.float32(config.std))[None]


@dataclass(frozen=True)
class MetricDepthPreprocessConfig:
    """How depth becomes a picture for LanguageBind's depth tower."""

    size: int = 224
    """Pixels of each side of the result."""
    min_depth_m: float = 0.01
    """Nearer is taken as this near; also 0, where nothing was measured."""
    max_depth_m: float = 10.0
    """Further is taken as this far, and becomes 1; 0 stands for the furthest point of each map."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted from the three equal channels."""
    std: tuple[float, float, float] = CLIP_STD
    """Divides them after that."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Pillow's filter, on floats."""

    def __post_init__(self) -> None:
        _check_size(self, self.size)
        _check_number(self, "min_depth_m", is_positive=True)
        _check_number(self, "max_depth_m", is_positive=self.max_depth_m != 0)
        if 0 < self.max_depth_m < self.min_depth_m:
            raise _error(self, "max_depth_m", f"0 or at least min_depth_m, {self.min_depth_m!r}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != 3 or not all(map(_is_finite, value)):
                raise _error(self, name, "three finite numbers")
            object.__setattr__(self, name, tuple(float(channel) for channel in value))  # JSON gives lists
        if min(self.std) <= 0:
            raise _error(self, "std", "three numbers above 0")
        _check_interpolation(self, self.interpolation)


def preprocess_metric_depth(
    depth: np.ndarray, config: MetricDepthPreprocessConfig = MetricDepthPreprocessConfig()
) -> np.ndarray:
    """Depth in metres to LanguageBind's three equal channels.

    `clip(depth, min_depth_m, max_depth_m) / max_depth_m`, three times; the shorter side resized to `size`, the middle
    square cut out; minus `mean`, over `std`. The release resizes tensors, with or without antialiasing depending on
    the version of torchvision; here the filter is widened when shrinking, as Pillow and today's torchvision do.

    Args:
        depth: `(H, W)` in metres, as `load_depth` gives it.
        config: Bounds, size and normalisation.

    Returns:
        float32 `(3, size, size)`; larger is further.

    Source:
        LanguageBind (arXiv 2310.01852), section 4 and its released depth processor.
    """
    furthest = config.max_depth_m or max(float(depth.max()), config.min_depth_m)
    scaled = np.clip(depth, config.min_depth_m, furthest) / furthest
    square = _center_square(scaled.astype(np.float32), config.size, config.interpolation)  # (size, size)
    mean, std = np.array(config.mean, dtype=np.float32), np.array(config.std, dtype=np.float32)
    return (square - mean[:, None, None]) / std[:, None, None]  # (3, size, size)


def _center_square(values: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """The middle of float32 `(H, W)` once the shorter side is resized to `size`: `(size, size)`.

    Only what remains is computed, so a map 200 times as wide as high costs no more than a square one.
    """
    sides = (values.shape[1], values.shape[0])
    resized = [side * size // min(sides) for side in sides]
    begins = [round((length - size) / 2) for length in resized]
    left, upper = (begin * side / length for begin, side, length in zip(begins, sides, resized, strict=True))
    right, lower = ((begin + size) * side / length for begin, side, length in zip(begins, sides, resized, strict=True))
    box = (left, upper, min(right, sides[0]), min(lower, sides[1]))
    return np.asarray(Image.fromarray(values).resize((size, size), _INTERPOLATIONS[interpolation], box=box))
