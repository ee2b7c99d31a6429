"""Thermal pictures, from anywhere, as brightness from 0 to 1."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image

from bindlm.errors import ConfigError
from bindlm.media.image import turn_upright
from bindlm.media.image_array import is_tensor
from bindlm.media.image_color import to_rgb
from bindlm.media.image_decode import decode_image, decoder_errors
from bindlm.media.limits import ImageLimits, UrlLimits
from bindlm.media.measured import MEASURED_LIMITS, check_finite, describe_measured, load_measured
from bindlm.media.names import Medium
from bindlm.media.preprocess import ImagePreprocessConfig, preprocess_image
from bindlm.media.source import read_bytes


def load_thermal(
    source: str | os.PathLike[Any] | bytes | IO[bytes] | Image.Image | np.ndarray | Any,
    *,
    value_range: tuple[float, float] | None = None,
    limits: ImageLimits = MEASURED_LIMITS,
    allow_url: bool | UrlLimits = False,
    name: str | None = None,
) -> np.ndarray:
    """Read a thermal picture: bright is warm, 0 to 1.

    What 0 and 1 stand for:

    - with `value_range=(low, high)`, these two stored numbers, what lies beyond being cut: kelvins, degrees Celsius or
      counts, whatever the file holds. Only this keeps two pictures comparable;
    - else for pictures of 8 bits black and white. Colours are turned to grey by luma (ITU-R 601), which for a camera's
      colour palette ("iron", "rainbow") is not temperature: store grey where there is a choice;
    - else for all other whole numbers, such as those of 16 bits, the coldest and the hottest pixel of this picture, as
      the automatic gain of thermal cameras does: a raw scene fills a few per cent of their range;
    - else for floats 0 and 1 themselves; others, such as degrees, are refused without a range.

    Args:
        source: A picture file as for `load_image`, also PNG and TIFF of 16 bits or of floats, or an `.npy` file: a
            path, bytes, an open file, or an address; or a Pillow picture; or a numpy array or torch tensor `(H, W)`,
            `(H, W, 1)` or `(1, H, W)`.
        value_range: Two finite numbers, the lower first, in the unit of the file.
        limits: Bounds on bytes and pixels, enforced before and while decoding.
        allow_url: Whether addresses of the web are fetched; `UrlLimits` says within which bounds.
        name: What to call it in messages, in place of its path or a description.

    Returns:
        float32 `(H, W)`, from 0 to 1.

    Raises:
        MediaError: It cannot be read, is out of bounds, holds NaN or infinity, or needs a range.
        ConfigError: An impossible range.

    Source:
        The release of ImageBind (arXiv 2305.05665) reads no thermal files; grey of 8 bits is how PandaGPT
        (arXiv 2305.16355) reads them for it.
    """
    _check_range(value_range)
    medium = describe_measured(source, "thermal picture", name)
    if not isinstance(source, (Image.Image, np.ndarray)) and not is_tensor(source):
        source = read_bytes(source, medium, max_bytes=limits.max_bytes, allow_url=allow_url)  # a stream is read once
    numbers = load_measured(source, medium, limits, allow_url)
    return _scale(_luma(source, medium, limits) if numbers is None else numbers, value_range, medium)


def _luma(source: Any, medium: Medium, limits: ImageLimits) -> np.ndarray:
    """Brightness `(H, W)`, uint8, of an ordinary picture."""
    image = source if isinstance(source, Image.Image) else decode_image(source, medium, limits)
    with decoder_errors(medium):
        return np.asarray(turn_upright(to_rgb(image, medium), image).convert("L"))


def _scale(numbers: np.ndarray, value_range: tuple[float, float] | None, medium: Medium) -> np.ndarray:
    check_finite(numbers, medium, "Replace them by the temperature around them")
    low, high = float(numbers.min()), float(numbers.max())
    if value_range is not None:
        low, high = value_range
    elif numbers.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif numbers.dtype.kind == "f":
        if low < 0 or high > 1:
            raise medium.error(
                f"its values go from {low:.6g} to {high:.6g}, and 0 to 1 is expected of floats",
                "Say which values are black and white, for example value_range=(0, 50) for degrees Celsius",
            )
        low, high = 0.0, 1.0
    elif low == high:
        raise medium.error(
            f"all its pixels are {low:.6g}, so there is no coldest and hottest one", "Say value_range=(low, high)"
        )
    values = numbers.astype(np.float64)
    values -= low
    values /= high - low
    return np.clip(values, 0, 1, out=values).astype(np.float32)


def _check_range(value_range: tuple[float, float] | None) -> None:
    if value_range is None:
        return
    is_pair = isinstance(value_range, (tuple, list)) and len(value_range) == 2
    if is_pair and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value_range):
        if value_range[0] < value_range[1]:
            return
    raise ConfigError(f"value_range must be two finite numbers, the lower first, got {value_range!r}.")


@dataclass(frozen=True)
class ThermalPreprocessConfig:
    """How thermal pictures become input of ImageBind's thermal tower."""

    size: int = 224
    """Pixels of each side of the result."""

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= 8192:
            raise ConfigError(
                f"ThermalPreprocessConfig.size must be a whole number from 1 to 8192, got {self.size!r}."
            )


def preprocess_thermal(thermal: np.ndarray, config: ThermalPreprocessConfig = ThermalPreprocessConfig()) -> np.ndarray:
    """Brightness to ImageBind's one channel: resized, the middle cut out, 0 to 1, and no mean or deviation.

    The shorter side is resized to `size` with Pillow's bicubic filter on 8 bits, as the tower's training pictures had.
    Leaving out mean and deviation is what users found to work: 62 against 55 % on LLVIP (pull request 73 of
    facebookresearch/ImageBind). LanguageBind takes thermal pictures as ordinary ones, in three channels with CLIP's
    normalisation: `preprocess_image(load_image(source), clip_image_config())`.

    Args:
        thermal: `(H, W)` from 0 to 1, as `load_thermal` gives it.
        config: The size.

    Returns:
        float32 `(1, size, size)`, from 0 to 1.

    Source:
        PandaGPT (arXiv 2305.16355), its released loader.
    """
    grey = Image.fromarray(np.rint(thermal * np.float32(255)).astype(np.uint8))
    plain = ImagePreprocessConfig(size=config.size, crop_fraction=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    return preprocess_image(grey.convert("RGB"), plain)[0, :1]  # (1, size, size)
