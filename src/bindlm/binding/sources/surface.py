"""The surface of a 3-D model with its colours: triangles, points drawn from them, and what colour each has."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from bindlm.errors import MediaError

if TYPE_CHECKING:
    from trimesh import Trimesh

_GREY = (0.8, 0.8, 0.8)
_MAX_TEXTURE = 512
"""Pixels of the longer side of a texture: more is not seen in pictures of this size."""


@dataclass(frozen=True)
class Paint:
    """How one part of a surface is painted."""

    colour: tuple[float, float, float] = _GREY
    """Red, green, blue, 0 to 1."""
    texture: np.ndarray | None = None
    """uint8 `(H, W, 3)`, in place of the colour."""


@dataclass(frozen=True)
class Surface:
    """Triangles in metres with y up, and the paint of each."""

    vertices: np.ndarray
    """float64 `(V, 3)`."""
    faces: np.ndarray
    """int64 `(F, 3)`, indices of vertices."""
    uv: np.ndarray
    """float64 `(V, 2)`, place in the texture, from its lower left; 0 where there is none."""
    paint_of_face: np.ndarray
    """int64 `(F,)`, which of the paints."""
    paints: tuple[Paint, ...] = (Paint(),)

    @property
    def corners(self) -> np.ndarray:
        """`(F, 3, 3)`: triangle, corner, axis."""
        return self.vertices[self.faces]

    @property
    def used(self) -> np.ndarray:
        """bool `(V,)`, which vertices a triangle has."""
        used: np.ndarray = np.bincount(self.faces.reshape(-1), minlength=len(self.vertices)) > 0
        return used

    def turned(self, rotation: np.ndarray) -> Surface:
        """The same with each vertex v made `rotation (3, 3) @ v`."""
        return replace(self, vertices=self.vertices @ np.asarray(rotation, dtype=np.float64).T)

    def fitted(self, size: Sequence[float]) -> Surface:
        """The same, standing on y = 0 with the vertical axis through its middle, as large as `size` (x, y, z) says.

        Each axis is scaled alone, as Sweet Home 3D does; an axis without extent keeps none.
        """
        used = self.vertices[self.used]
        low, high = used.min(axis=0), used.max(axis=0)
        extent = high - low
        scale = np.where(extent > 0, np.asarray(size) / np.where(extent > 0, extent, 1), 1.0)
        origin = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
        return replace(self, vertices=(self.vertices - origin) * scale)

    def colours(self, faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Colours `(N, 3)`, 0 to 1, at points on the surface.

        Args:
            faces: `(N,)`, the triangle of each point.
            weights: `(N, 3)`, how near it is to each corner; they sum to 1.
        """
        colours = np.empty((len(faces), 3))
        paint = self.paint_of_face[faces]
        for number in np.unique(paint):
            rows = paint == number
            each = self.paints[number]
            if each.texture is None:
                colours[rows] = each.colour
            else:
                uv = (self.uv[self.faces[faces[rows]]] * weights[rows][..., None]).sum(axis=1)  # (n, 2)
                colours[rows] = _texels(each.texture, uv)
        return colours

    def sample(self, num_points: int, seed: int = 0) -> np.ndarray:
        """Points drawn evenly by area.

        Args:
            num_points: P.
            seed: of the draw.

        Returns:
            float32 `(P, 6)`: x, y, z in metres, then red, green, blue from 0 to 1.

        Raises:
            MediaError: the triangles have no area.
        """
        corners = self.corners
        sides = corners[:, 1:] - corners[:, :1]  # (F, 2, 3)
        bounds = np.cumsum(np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1))
        if not (len(bounds) and bounds[-1] > 0):
            raise MediaError("Cannot draw points from this surface: its triangles have no area.")
        random = np.random.default_rng(seed)
        chosen = np.searchsorted(bounds, random.random(num_points) * bounds[-1], side="right")
        chosen = np.minimum(chosen, len(bounds) - 1)
        along = random.random((num_points, 2))
        along = np.where(along.sum(axis=1, keepdims=True) > 1, 1 - along, along)  # folded back into the triangle
        weights = np.column_stack([1 - along.sum(axis=1), along])  # (P, 3)
        points = (corners[chosen] * weights[..., None]).sum(axis=1)
        return np.concatenate([points, self.colours(chosen, weights)], axis=1).astype(np.float32)


def _texels(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Nearest texels `(N, 3)`, 0 to 1; the texture repeats in both directions."""
    height, width = texture.shape[:2]
    column = np.floor((uv[:, 0] % 1) * width).astype(np.int64) % width
    row = np.floor(((1 - uv[:, 1]) % 1) * height).astype(np.int64) % height
    return texture[row, column] / 255.0


def read_surface(obj: bytes, read: Callable[[str], bytes], *, name: str = "model") -> Surface:
    """A Wavefront OBJ with its materials and textures.

    Args:
        obj: the file.
        read: gives the bytes of a file named in it, or raises KeyError.
        name: what to call it in messages.

    Raises:
        MediaError: it has no triangles, or they are broken.
    """
    from trimesh.exchange.load import load_scene

    try:
        scene = load_scene(io.BytesIO(obj), file_type="obj", resolver=_resolver(read), process=False)
        meshes: list[Trimesh] = [mesh for mesh in scene.geometry.values() if len(getattr(mesh, "faces", ()))]
    except Exception as error:  # the reader raises whatever broken files make it raise
        raise MediaError(f"Cannot read {name}: it is no Wavefront OBJ that trimesh reads ({error}).") from error
    if not meshes:
        raise MediaError(f"Cannot use {name}: it has no triangles.")
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)])
    surface = Surface(
        vertices=np.concatenate([np.asarray(mesh.vertices, dtype=np.float64) for mesh in meshes]),
        faces=faces.astype(np.int64),
        uv=np.concatenate([_uv(mesh) for mesh in meshes]),
        paint_of_face=np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh in meshes]),
        paints=tuple(_paint(mesh) for mesh in meshes),
    )
    if not np.isfinite(surface.vertices).all():
        raise MediaError(f"Cannot use {name}: it has coordinates that are NaN or infinite.")
    return surface


def _resolver(read: Callable[[str], bytes]) -> Any:
    from trimesh.resolvers import Resolver

    class Files(Resolver):
        """What trimesh asks for the files that a file names."""

        def __init__(self) -> None:
            pass

        def get(self, name: str) -> bytes:
            return read(PurePosixPath(name.strip().replace("\\", "/")).as_posix())

        def keys(self) -> list[str]:
            return []

        def namespaced(self, namespace: str) -> Any:
            raise NotImplementedError

        def write(self, name: str, data: bytes) -> None:
            raise NotImplementedError

    return Files()


def _uv(mesh: Trimesh) -> np.ndarray:
    uv = getattr(mesh.visual, "uv", None)
    if uv is None or len(uv) != len(mesh.vertices):
        return np.zeros((len(mesh.vertices), 2))
    return np.nan_to_num(np.asarray(uv, dtype=np.float64)[:, :2])


def _paint(mesh: Trimesh) -> Paint:
    material = getattr(mesh.visual, "material", None)
    diffuse = getattr(material, "diffuse", None)
    colour = _GREY if diffuse is None else _mean_colour(np.asarray(diffuse)[:3])
    picture = getattr(material, "image", None)
    if picture is None:
        return Paint(colour)
    picture = picture.convert("RGB")
    picture.thumbnail((_MAX_TEXTURE, _MAX_TEXTURE))
    texture = np.asarray(picture)
    if getattr(mesh.visual, "uv", None) is None:
        return Paint(_mean_colour(texture))  # no point knows its place in the texture
    return Paint(colour, texture)


def _mean_colour(pixels: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (pixels.reshape(-1, 3).mean(axis=0) / 255).tolist()
    return red, green, blue
