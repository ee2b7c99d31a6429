"""Depth maps, from anywhere, in metres."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import IO, Any

import numpy as np
from PIL import Image

from bindlm.errors import ConfigError
from bindlm.media.limits import ImageLimits, UrlLimits
from bindlm.media.measured import MEASURED_LIMITS, check_finite, describe_measured, load_measured
from bindlm.media.names import Medium

_MAX_METRES = 1000.0
"""Depth beyond this is no depth in metres: no sensor sees so far, and millimetres or raw counts are such numbers."""


class DepthEncoding(StrEnum):
    """What one step of a stored number means."""

    MILLIMETRES = "millimetres"
    """1/1000 m, as in PNG of 16 bits by Kinect, RealSense, ScanNet and the depth pictures of LanguageBind."""
    METRES = "metres"
    """1 m, as in arrays of floats."""
    SUNRGBD = "sunrgbd"
    """Millimetres whose 16 bits are rotated left by 3, as in the PNG files of SUN RGB-D."""


def load_depth(
    source: str | os.PathLike[Any] | bytes | IO[bytes] | Image.Image | np.ndarray | Any,
    *,
    encoding: DepthEncoding | str | None = None,
    limits: ImageLimits = MEASURED_LIMITS,
    allow_url: bool | UrlLimits = False,
    name: str | None = None,
) -> np.ndarray:
    """Read a depth map: the distance of each pixel along the viewing axis, in metres.

    Without `encoding`, the type of the stored numbers decides, never their size: unsigned whole numbers of 16 bits are
    millimetres, floats are metres. Everything else (pictures of 8 bits or in colour, which are depth made visible and
    have lost its scale; whole numbers of other widths) is refused until `encoding` says what they are. Other scales,
    such as the 1/256 m of KITTI or the 1/5000 m of TUM, are not told apart from millimetres: divide them yourself and
    give an array of metres.

    Args:
        source: One of

            - a PNG, TIFF or `.npy` file: its path, its bytes, the open file, or an address as for `load_image`;
            - a Pillow picture of one channel;
            - a numpy array or torch tensor `(H, W)`, `(H, W, 1)` or `(1, H, W)`.
        encoding: What the stored numbers mean; None for the rule above.
        limits: Bounds on bytes and pixels, enforced before and while decoding.
        allow_url: Whether addresses of the web are fetched; `UrlLimits` says within which bounds.
        name: What to call it in messages, in place of its path or a description.

    Returns:
        float32 `(H, W)` in metres, from 0 to 1000. 0 is where nothing was measured, as in the files.

    Raises:
        MediaError: It cannot be read, is out of bounds, of unclear scale, holds NaN, infinity or negative numbers, or
            nothing but zeros, or reaches beyond 1000 m.
        ConfigError: An unknown encoding.

    Source:
        SUN RGB-D toolbox (Song et al., CVPR 2015) for the rotation of bits; LanguageBind (arXiv 2310.01852) for
        millimetres.

    Example:
        >>> import numpy as np
        >>> load_depth(np.full((2, 3), 1500, dtype=np.uint16))[0]
        array([1.5, 1.5, 1.5], dtype=float32)
    """
    if encoding is not None and encoding not in list(DepthEncoding):
        raise ConfigError(f"encoding must be None or one of {', '.join(DepthEncoding)}, got {encoding!r}.")
    medium = describe_measured(source, "depth map", name)
    numbers = load_measured(source, medium, limits, allow_url)
    if numbers is None:
        raise medium.error(
            "it is neither a PNG or TIFF of one channel nor an .npy file",
            "Give depth as PNG of 16 bits in millimetres, or as .npy or TIFF of floats in metres",
        )
    return _to_metres(numbers, DepthEncoding(encoding) if encoding else _encoding_of(numbers, medium), medium)


def _encoding_of(numbers: np.ndarray, medium: Medium) -> DepthEncoding:
    if numbers.dtype == np.uint16:
        return DepthEncoding.MILLIMETRES
    if numbers.dtype.kind == "f":
        return DepthEncoding.METRES
    raise medium.error(
        f"its numbers are {numbers.dtype.name}, which says nothing about their unit",
        "Give whole numbers of 16 bits in millimetres or floats in metres, or say encoding=...",
    )


def _to_metres(numbers: np.ndarray, encoding: DepthEncoding, medium: Medium) -> np.ndarray:
    check_finite(numbers, medium, "Replace them, by 0 where nothing was measured")
    if encoding is DepthEncoding.SUNRGBD:
        if numbers.dtype != np.uint16:
            raise medium.error(
                f"its numbers are {numbers.dtype.name}, and encoding {encoding} is for uint16",
                "Give the PNG as it came",
            )
        numbers = (numbers >> 3) | (numbers << 13)  # uint16 again: what leaves on the left comes back on the right
    if numbers.min() < 0:
        raise medium.error("it holds negative depth", "Give distances, with 0 where nothing was measured")
    divisor = 1.0 if encoding is DepthEncoding.METRES else 1000.0
    furthest = float(numbers.max()) / divisor
    if furthest == 0:
        raise medium.error("it holds nothing but zeros", "Give a map with something measured")
    if furthest > _MAX_METRES:
        raise medium.error(
            f"it reaches {furthest:.6g} m if read as {encoding}, and at most {_MAX_METRES:g} m is sensible",
            "Say what its numbers are with encoding=..., or convert them to metres",
        )
    return (numbers / numbers.dtype.type(divisor) if numbers.dtype.kind == "f" else numbers / divisor).astype(
        np.float32
    )
