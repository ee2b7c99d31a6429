"""Shapes drawn as grey pictures: a point cloud from a viewpoint, or a depth map, in the light of two lamps.

A picture tower that has never seen a cloud knows what such a drawing shows (PointCLIP, arXiv 2112.02413, gives CLIP
bare depth; shading shows more). Plain numpy, 10 to 20 ms a picture of 128 pixels.
"""

import numpy as np
from PIL import Image

from bindlm.errors import MediaError

__all__ = ["draw_depth", "draw_points"]

_FILL = 0.9
"""Share of the picture that the shape takes in its longer direction."""
_RADIUS, _RADIUS_POINTS = 2.2, 4096
"""Pixels of a point's disc where the cloud has so many points, at 128 pixels; fewer points have larger discs."""
_LIGHTS = ((0.5, (-0.45, 0.75, 0.55)), (0.2, (0.8, 0.1, 0.6)))
"""Strength and direction (right, up, towards the camera)."""
_AMBIENT, _PAINT = 0.4, 0.75
_FIELD_OF_VIEW = np.radians(40.0)
"""Of a depth map whose camera is not known."""
_BLUR = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def draw_points(points: np.ndarray, *, azimuth: float, elevation: float, size: int = 128) -> np.ndarray:
    """A cloud as a grey picture on white.

    Args:
        points: `(P, 3)`: x, y (up) and z, in any unit.
        azimuth: degrees around the vertical axis; 0 looks along -z, at the front.
        elevation: degrees above the horizon.
        size: pixels of a side.

    Returns:
        uint8 `(size, size)`.
    """
    right, up, towards = (np.asarray(points, dtype=np.float64) @ _camera(azimuth, elevation).T).T
    middle = (right.max() + right.min()) / 2, (up.max() + up.min()) / 2
    extent = max(np.ptp(right), np.ptp(up), 1e-9)
    scale = _FILL * size / extent
    x, y, height = (right - middle[0]) * scale + size / 2, size / 2 - (up - middle[1]) * scale, towards * scale
    radius = np.clip(_RADIUS * np.sqrt(_RADIUS_POINTS / len(points)), 1.2, 6.0) * size / 128
    return _shaded(*_discs(x, y, height, radius, size))


def draw_depth(depth: np.ndarray, *, size: int = 128) -> np.ndarray:
    """A depth map as a grey picture: what was measured, cut out, on white.

    Args:
        depth: `(H, W)`, distance, in any unit; 0 where nothing was measured.
        size: pixels of a side.

    Returns:
        uint8 `(size, size)`.

    Raises:
        MediaError: nothing was measured.
    """
    is_measured = depth > 0
    if not is_measured.any():
        raise MediaError("Cannot use a depth map in which nothing was measured: all its values are 0. Give another.")
    rows, columns = np.flatnonzero(is_measured.any(axis=1)), np.flatnonzero(is_measured.any(axis=0))
    cut = depth[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    pixel = 2 * np.tan(_FIELD_OF_VIEW / 2) / max(depth.shape)  # of a distance of 1
    height = -cut / (np.median(cut[cut > 0]) * pixel)  # in pixels of the map
    scale = _FILL * size / max(cut.shape)
    is_there = _resized((cut > 0).astype(np.float32), scale, size)
    filled = np.where(cut > 0, height, height[cut > 0].min())
    raised = _resized(np.where(cut > 0, filled, 0).astype(np.float32), scale, size) / np.maximum(is_there, 1e-6)
    return _shaded(raised * scale, is_there > 0.5)


def _camera(azimuth: float, elevation: float) -> np.ndarray:
    """`(3, 3)`, rows: the directions right, up, and towards the camera."""
    turn, rise = np.radians(azimuth), np.radians(elevation)
    towards = np.array([np.sin(turn) * np.cos(rise), np.sin(rise), np.cos(turn) * np.cos(rise)])
    right = np.array([np.cos(turn), 0.0, -np.sin(turn)])
    return np.stack([right, np.cross(towards, right), towards])


def _discs(
    x: np.ndarray, y: np.ndarray, height: np.ndarray, radius: float, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Height of the nearest disc at each pixel, and whether there is one; discs bulge, so that edges stay sharp."""
    reach = int(np.ceil(radius))
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    pixels, heights = [], []
    for down in range(-reach, reach + 1):
        for along in range(-reach, reach + 1):
            far = (column + along + 0.5 - x) ** 2 + (row + down + 0.5 - y) ** 2
            inside = (far < radius**2) & (column + along >= 0) & (column + along < size)
            inside &= (row + down >= 0) & (row + down < size)
            pixels.append(((row + down) * size + column + along)[inside])
            heights.append((height - 0.15 * far)[inside])
    pixel, value = np.concatenate(pixels), np.concatenate(heights)
    order = np.argsort(value, kind="stable")  # of several at one pixel the last one written, the nearest, stays
    nearest = np.full(size * size, -np.inf)
    nearest[pixel[order]] = value[order]
    return nearest.reshape(size, size), np.isfinite(nearest).reshape(size, size)


def _shaded(height: np.ndarray, is_there: np.ndarray) -> np.ndarray:
    """Grey levels `(S, S)` of a relief, in pixels towards the camera; white where there is nothing."""
    if not is_there.any():
        return np.full(height.shape, 255, dtype=np.uint8)
    weight = is_there.astype(np.float64)
    filled = np.where(is_there, height, 0.0)
    smooth = _blurred(filled) / np.maximum(_blurred(weight), 1e-6)
    smooth = np.where(_blurred(weight) > 1e-6, smooth, smooth[is_there].min())
    down, along = np.gradient(smooth)
    length = np.sqrt(along**2 + down**2 + 1)
    light = np.full(height.shape, _AMBIENT)
    for strength, direction in _LIGHTS:
        lamp = np.array(direction) / np.linalg.norm(direction)
        light += strength * np.clip((-along * lamp[0] + down * lamp[1] + lamp[2]) / length, 0, 1)
    grey = np.where(is_there, light * _PAINT, 1.0)
    return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)


def _blurred(values: np.ndarray) -> np.ndarray:
    """With a binomial kernel of 5 pixels, zeros around."""
    for axis in (0, 1):
        padded = np.pad(values, [(2, 2) if each == axis else (0, 0) for each in (0, 1)])
        length = values.shape[axis]
        values = sum(_BLUR[k] * np.take(padded, range(k, k + length), axis=axis) for k in range(5))
    return values


def _resized(values: np.ndarray, scale: float, size: int) -> np.ndarray:
    """Scaled, and set into the middle of a square of zeros."""
    height, width = (max(1, min(size, round(side * scale))) for side in values.shape)
    picture = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    square = np.zeros((size, size), dtype=np.float64)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = np.asarray(picture)
    return square
