"""Pictures of a surface from a viewpoint: its depth, and how it looks in light. Plain numpy, no graphics card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bindlm.binding.sources.surface import Surface
from bindlm.errors import ConfigError

_CHUNK = 1 << 19
"""Pixels tried at once: the working memory stays at some tens of megabytes."""
_FILL = 0.94
"""Share of the picture, in the wider direction, that the object takes."""
_LIGHTS = ((0.62, (-0.45, 0.75, 0.55)), (0.2, (0.8, 0.1, 0.6)))
"""Strength and direction (right, up, towards the camera): one from above on the left, a weak one from the right."""
_AMBIENT = 0.45
_CREASE = 0.8
"""Cosine of the angle between a face and the mean of its neighbours above which the edge between them is rounded."""


@dataclass(frozen=True)
class View:
    """Where the camera stands: it looks at the object, from as near as it still fits into the picture."""

    azimuth: float = 30.0
    """Degrees around the vertical axis; 0 looks at the front, 90 at the object's own left side."""
    elevation: float = 20.0
    """Degrees above the horizon, -89 to 89."""
    field_of_view: float = 40.0
    """Degrees, across the picture, which is square."""
    size: int = 128
    """Pixels of a side."""

    def __post_init__(self) -> None:
        if not -89 <= self.elevation <= 89:
            raise ConfigError(f"View.elevation must lie in [-89, 89] degrees, got {self.elevation}.")
        if not 1 <= self.field_of_view <= 150:
            raise ConfigError(f"View.field_of_view must lie in [1, 150] degrees, got {self.field_of_view}.")
        if self.size < 1:
            raise ConfigError(f"View.size must be at least 1 pixel, got {self.size}.")

    @property
    def rotation(self) -> np.ndarray:
        """`(3, 3)`, rows: the directions right, up, and towards the camera."""
        azimuth, elevation = np.radians(self.azimuth), np.radians(self.elevation)
        towards = np.array(
            [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
        )
        right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
        return np.stack([right, np.cross(towards, right), towards])


@dataclass(frozen=True)
class Raster:
    """What each pixel shows."""

    face: np.ndarray
    """int64 `(H, W)`, the triangle seen there, -1 where there is none."""
    weights: np.ndarray
    """float64 `(H, W, 3)`, how near the point seen is to each corner of its triangle; they sum to 1."""
    depth: np.ndarray
    """float64 `(H, W)`, distance along the viewing axis, 0 where there is nothing."""


def rasterise(corners: np.ndarray, size: int) -> Raster:
    """Which triangle each pixel of a square picture sees: exact, for a point in the middle of each pixel.

    Triangles of like extent are tried together, each at all pixels of its bounding box; the nearest wins.

    Args:
        corners: `(F, 3, 3)`: x and y in pixels from the upper left, and the depth, above 0.
        size: pixels of a side.
    """
    nearness = np.zeros(size * size)  # 1 / depth: what perspective makes linear in the picture
    face = np.full(size * size, -1, dtype=np.int64)
    xy, inverse = corners[..., :2], 1 / corners[..., 2]
    one, two, three = xy[:, 0], xy[:, 1], xy[:, 2]  # (F, 2) each
    least, most = np.minimum(np.minimum(one, two), three), np.maximum(np.maximum(one, two), three)
    low = np.maximum(np.ceil(least - 0.5), 0).astype(np.int64)  # (F, 2), first pixel whose middle is inside
    high = np.minimum(np.floor(most - 0.5), size - 1).astype(np.int64)
    extent = high - low + 1
    area = _cross(two - one, three - one)
    seen = np.flatnonzero((extent[:, 0] > 0) & (extent[:, 1] > 0) & (np.abs(area) > 1e-12))
    powers = np.ceil(np.log2(extent[seen])).astype(np.int64)  # (n, 2), of the sides rounded up to powers of two
    kind = powers[:, 0] * 64 + powers[:, 1]
    for each in np.flatnonzero(np.bincount(kind)).tolist():
        rows, box = seen[kind == each], (1 << each // 64, 1 << each % 64)
        step = max(1, _CHUNK // (box[0] * box[1]))
        for start in range(0, len(rows), step):
            _draw(rows[start : start + step], xy, inverse, area, low, high, box, size, nearness, face)
    weights = _weights_of_pixels(face, xy, inverse, area, size)
    depth = np.divide(1, nearness, out=np.zeros_like(nearness), where=face >= 0)
    return Raster(face.reshape(size, size), weights.reshape(size, size, 3), depth.reshape(size, size))


def _draw(
    rows: np.ndarray,
    xy: np.ndarray,
    inverse: np.ndarray,
    area: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    box: tuple[int, int],
    size: int,
    nearness: np.ndarray,
    face: np.ndarray,
) -> None:
    """Try the triangles `rows` at every pixel of a box from their lower corners, and keep what is nearest so far."""
    x = low[rows, :1] + np.arange(box[0])  # (n, w)
    y = low[rows, 1:] + np.arange(box[1])  # (n, h)
    pixel_x, pixel_y = x + 0.5, y + 0.5
    value = np.zeros((len(rows), box[1], box[0]))
    inside = (y <= high[rows, 1:])[:, :, None] & (x <= high[rows, :1])[:, None, :]
    for corner in range(3):
        one, two = xy[rows, (corner + 1) % 3], xy[rows, (corner + 2) % 3]
        along = (two - one) / area[rows, None]  # of the edge opposite to the corner
        across_x = -along[:, 1:] * (pixel_x - one[:, :1])  # (n, w)
        across_y = along[:, :1] * (pixel_y - one[:, 1:])  # (n, h)
        weight = across_x[:, None, :] + across_y[:, :, None]  # (n, h, w)
        inside &= weight >= -1e-9
        value += weight * inverse[rows, corner, None, None]
    which, row, column = np.nonzero(inside)
    near = value[which, row, column]
    pixel = y[which, row] * size + x[which, column]
    better = np.flatnonzero(near > nearness[pixel])
    order = better[np.argsort(near[better], kind="stable")]  # of equal pixels the last one written, the nearest, stays
    nearness[pixel[order]] = near[order]
    face[pixel[order]] = rows[which[order]]


def _weights_of_pixels(
    face: np.ndarray, xy: np.ndarray, inverse: np.ndarray, area: np.ndarray, size: int
) -> np.ndarray:
    """Weights `(size * size, 3)` on the surface, where those in the picture are bent by perspective."""
    weights = np.zeros((len(face), 3))
    pixels = np.flatnonzero(face >= 0)
    rows = face[pixels]
    middle = np.column_stack([pixels % size, pixels // size]) + 0.5
    for corner in range(3):
        one, two = xy[rows, (corner + 1) % 3], xy[rows, (corner + 2) % 3]
        weights[pixels, corner] = _cross(two - one, middle - one) / area[rows] * inverse[rows, corner]
    weights = np.maximum(weights, 0)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)


def _cross(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]


def _project(surface: Surface, view: View, size: int) -> np.ndarray:
    """Corners `(F, 3, 3)` as `rasterise` takes them: the camera stands where the object just fits into the picture."""
    seen = surface.vertices @ view.rotation.T  # (V, 3): right, up, towards the camera
    used = seen[surface.used]
    centre = (used.min(axis=0) + used.max(axis=0)) / 2
    slope = np.tan(np.radians(view.field_of_view) / 2)
    used = used - centre
    distance = float((np.abs(used[:, :2]).max(axis=1) / (slope * _FILL) + used[:, 2]).max())
    nearest = float(used[:, 2].max())
    distance = max(distance, nearest + 1e-3 * (nearest or 1.0))
    right, up, towards = (seen - centre).T
    depth = distance - towards
    scale = size / 2 / slope
    return np.column_stack([size / 2 + scale * right / depth, size / 2 - scale * up / depth, depth])[surface.faces]


def render_depth(surface: Surface, view: View = View()) -> np.ndarray:
    """The depth picture that a camera would take of an object in empty space.

    Returns:
        float32 `(size, size)`: metres along the viewing axis, and 0 where there is nothing.
    """
    return rasterise(_project(surface, view, view.size), view.size).depth.astype(np.float32)


def render_shaded(surface: Surface, view: View = View(size=512), *, supersample: int = 2) -> np.ndarray:
    """How the object looks in soft light from above, with its colours and textures.

    Both sides of each triangle are lit alike, as models of furniture do not agree which one is outside.

    Args:
        surface: the object.
        view: where from, and how large.
        supersample: S, each pixel is the mean of S x S.

    Returns:
        uint8 `(size, size, 4)`: red, green, blue, and alpha, which is 0 where there is nothing.

    Source:
        Lambert's cosine law, two lights and an ambient part.
    """
    side = view.size * supersample
    raster = rasterise(_project(surface, view, side), side)
    pixels = np.nonzero(raster.face >= 0)
    faces, weights = raster.face[pixels], raster.weights[pixels]
    normals = (_corner_normals(surface)[faces] * weights[..., None]).sum(axis=1) @ view.rotation.T  # (n, 3)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    normals *= np.where(normals[:, 2:] < 0, -1, 1)
    light = np.full(len(normals), _AMBIENT)
    for strength, direction in _LIGHTS:
        light += strength * np.maximum(normals @ (np.array(direction) / np.linalg.norm(direction)), 0)
    canvas = np.zeros((side, side, 4))
    canvas[pixels] = np.column_stack([surface.colours(faces, weights) * light[:, None], np.ones(len(light))])
    canvas = canvas.reshape(view.size, supersample, view.size, supersample, 4).mean(axis=(1, 3))  # (size, size, 4)
    canvas[..., :3] /= np.maximum(canvas[..., 3:], 1e-6)  # what is transparent has no colour to give
    result: np.ndarray = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return result


def _corner_normals(surface: Surface) -> np.ndarray:
    """Unit normals `(F, 3, 3)`, a row for each corner: round where neighbours nearly agree, sharp at creases."""
    corners = surface.corners
    scaled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # as long as twice the area
    flat = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-300)
    places = np.round(surface.vertices / (np.ptp(surface.vertices, axis=0).max() or 1.0) * 1e5).astype(np.int64)
    _, same = np.unique(places, axis=0, return_inverse=True)  # one vertex may be stored once for each material
    of_corner = same.reshape(-1)[surface.faces]  # (F, 3)
    mean = np.zeros((int(of_corner.max()) + 1, 3))
    for corner in range(3):
        np.add.at(mean, of_corner[:, corner], scaled)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-300)
    smooth = mean[of_corner]  # (F, 3, 3)
    agrees = (smooth * flat[:, None]).sum(axis=-1, keepdims=True) > _CREASE
    return np.where(agrees, smooth, flat[:, None])
