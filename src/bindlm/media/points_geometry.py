"""What a file of points or of a mesh comes to, its limits, and points drawn from a surface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np

from bindlm.errors import MediaError
from bindlm.media.limits import _check_positive_ints
from bindlm.media.names import Medium

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class PointLimits:
    """What a point cloud or mesh may measure. Counts in headers are compared before anything is allocated."""

    max_bytes: int = 64 * _MEBIBYTE
    """Size of the file, of the bytes given, of the body of a web answer, or of what a packed file unpacks to."""
    max_points: int = 2_000_000
    """Points of a cloud, or vertices of a mesh."""
    max_faces: int = 4_000_000
    """Triangles of a mesh, polygons counted by the triangles they are cut into."""
    max_nodes: int = 4_096
    """Nodes of a scene."""

    def __post_init__(self) -> None:
        _check_positive_ints(self, tuple(field.name for field in fields(self)))

    def check_points(self, medium: Medium, num_points: int) -> None:
        """Refuse a file that says, or shows, that it has too few or too many points.

        Raises:
            MediaError: With the number and the limit.
        """
        if num_points < 1:
            raise medium.error("it has no points", "Give a file with points")
        if num_points > self.max_points:
            raise medium.error(
                f"it has {num_points} points, and at most {self.max_points} are allowed",
                "Thin it out, or raise PointLimits(max_points=...)",
            )

    def check_faces(self, medium: Medium, num_faces: int) -> None:
        """Refuse a file that says, or shows, that it has too many faces.

        Raises:
            MediaError: With the number and the limit.
        """
        if not 0 <= num_faces <= self.max_faces:
            raise medium.error(
                f"it has {num_faces} faces, and at most {self.max_faces} are allowed",
                "Simplify the mesh, or raise PointLimits(max_faces=...)",
            )


@dataclass(frozen=True)
class Geometry:
    """Points, and the triangles between them where there are any."""

    vertices: np.ndarray
    """Floating point `(V, 3)`."""
    faces: np.ndarray | None = None
    """int64 `(F, 3)`, indices of vertices; None, or none, is a cloud."""


@contextmanager
def reader_errors(medium: Medium, format_name: str) -> Iterator[None]:
    """Turn whatever a parser raises into the error of a damaged file; its own text is not repeated."""
    try:
        with np.errstate(all="ignore"):  # overflow becomes infinity, which is refused with a reason of its own
            yield
    except MediaError:
        raise
    except Exception:  # parsers of untrusted bytes raise errors of all classes
        raise damaged(medium, format_name) from None


def damaged(medium: Medium, format_name: str) -> MediaError:
    """The error of a file that is cut off or breaks the rules of its format."""
    return medium.error(f"its {format_name} content is damaged or cut off", "Get the file again, or save it anew")


def finite_points(points: np.ndarray, medium: Medium) -> np.ndarray:
    """Float32 `(P, 3)` of floating-point or whole numbers `(P, 3)`.

    A cloud that lies further from the origin than 1,000 times its size (a scan in map coordinates) is moved there
    first: in float32 its detail would be lost.

    Raises:
        MediaError: NaN or infinity, numbers too large for float32, or points that are all the same.
    """
    points = points.astype(np.float64, copy=False)
    if not np.isfinite(points).all():
        raise medium.error(
            "it has coordinates that are NaN or infinite",
            "Drop such points first: points[np.isfinite(points).all(axis=1)]",
        )
    low, high = points.min(axis=0), points.max(axis=0)  # (3,)
    if np.abs([low, high]).max() > 1e18:  # the square, as distances need it, is the largest float32
        raise medium.error("it has coordinates above 1e18", "Scale it down, to a radius of 1 for example")
    extent = (high - low).max()
    if extent <= 0:
        raise medium.error("all its points are the same", "Give at least two different points")
    middle = (low + high) / 2
    if np.abs(middle).max() > 1_000 * extent:
        points = points - middle
    if extent < 1e-18:
        raise medium.error(f"it is only {extent:.1e} wide", "Scale it up, to a radius of 1 for example")
    return np.ascontiguousarray(points, dtype=np.float32)


def sample_surface(geometry: Geometry, num_points: int, seed: int, medium: Medium) -> np.ndarray:
    """Points drawn evenly by area from the triangles, float64 `(num_points, 3)`.

    A mesh whose triangles have no area gives its vertices.

    Raises:
        MediaError: A triangle of vertices that do not exist, or coordinates that are not finite.
    """
    vertices, faces = geometry.vertices.astype(np.float64, copy=False), geometry.faces
    assert faces is not None
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise medium.error("it has faces between vertices that do not exist", "Save the mesh anew, or only its points")
    if not np.isfinite(vertices).all():
        raise medium.error("it has coordinates that are NaN or infinite", "Repair the mesh and save it anew")
    scale = np.abs(vertices).max() or 1.0
    corners = (vertices / scale)[faces]  # (F, 3, 3)
    sides = corners[:, 1:] - corners[:, :1]  # (F, 2, 3)
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1)  # (F,)
    bounds = np.cumsum(areas)
    if not bounds[-1] > 0:
        return vertices
    rng = np.random.default_rng(seed)
    chosen = np.searchsorted(bounds, rng.random(num_points) * bounds[-1], side="right")
    chosen = np.minimum(chosen, len(faces) - 1)
    along = rng.random((num_points, 2, 1))
    outside = along.sum(axis=1, keepdims=True) > 1  # the other half of the parallelogram, folded back
    along = np.where(outside, 1 - along, along)
    return (corners[chosen, 0] + (sides[chosen] * along).sum(axis=1)) * scale
