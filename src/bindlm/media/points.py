"""One point cloud or mesh, from anywhere, as points `(P, 3)`."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from bindlm.errors import ConfigError
from bindlm.media.image_array import is_tensor
from bindlm.media.limits import UrlLimits
from bindlm.media.names import Medium
from bindlm.media.npy import MAGIC, read_npy
from bindlm.media.points_geometry import (
    Geometry,
    PointLimits,
    damaged,
    finite_points,
    reader_errors,
    sample_surface,
)
from bindlm.media.points_glb import read_glb
from bindlm.media.points_pcd import read_pcd
from bindlm.media.points_ply import read_ply
from bindlm.media.points_text import read_ascii_stl, read_obj, read_off, read_xyz, triangle_soup
from bindlm.media.source import describe, read_bytes

_MAX_COLUMNS = 256
_ARRAY_NAMES = ("points", "xyz", "pc", "arr_0")
_STL_HEADER = 84
_STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def load_points(
    source: str | os.PathLike[Any] | bytes | IO[bytes] | np.ndarray | Any,
    *,
    num_points: int | None = 8192,
    seed: int = 0,
    limits: PointLimits = PointLimits(),
    allow_url: bool | UrlLimits = False,
    name: str | None = None,
) -> np.ndarray:
    """Read a point cloud, or points from the surface of a mesh.

    The format is told by the content: PLY (text and binary), OBJ, STL (text and binary), OFF, GLB, PCD (text, binary,
    packed), NPY, NPZ, or text with x y z first in each line (XYZ, PTS, TXT, CSV). Colours, normals and all other
    columns are dropped; files that a file refers to are never opened.

    Points keep the units and axes that they have: neither is published for Point-Bind, and the encoder sees no units,
    for `preprocess_points` brings each cloud to radius 1. Only a cloud further from the origin than 1,000 times its
    size, in which float32 would lose detail, is moved to it.

    Args:
        source: a path, `http(s)://` address (if `allow_url`), `data:` address, bytes, a file opened with mode `rb`, or
            a numpy array or torch tensor `(P, C)` of whole numbers or floats with x, y, z in the first of C >= 3
            columns.
        num_points: points drawn from a mesh, evenly by area; None gives its vertices, as the released code of
            ImageBind-LLM reads OBJ. A cloud keeps its points, however many.
        seed: of the draw; the same file gives the same points.
        limits: bounds on bytes, points, faces and nodes, enforced before and while parsing.
        allow_url: whether addresses of the web are fetched.
        name: what to call the medium in messages.

    Returns:
        float32 `(P, 3)`, finite, at least two points different. It shares nothing with `source`.

    Raises:
        MediaError: whatever is wrong with the source, with its name, the reason, and what to do.
        ConfigError: an impossible `num_points` or `seed`.

    Example:
        >>> load_points(np.array([[0, 0, 0], [1, 0, 0]])).shape
        (2, 3)
    """
    _check_setting("num_points", num_points, 1, is_optional=True)
    _check_setting("seed", seed, 0)
    if num_points is not None and num_points > limits.max_points:
        raise ConfigError(f"num_points must be at most {limits.max_points}, the max_points of the limits.")
    medium = _describe(source, name)
    with reader_errors(medium, "point"):
        if isinstance(source, np.ndarray):
            return finite_points(_array_points(source, medium, limits), medium).copy()
        if is_tensor(source):
            return finite_points(_array_points(_to_array(source, medium), medium, limits), medium).copy()
    data = read_bytes(source, medium, max_bytes=limits.max_bytes, allow_url=allow_url)
    format_name, read = _recognise(data, medium)
    with reader_errors(medium, format_name):
        geometry = read(data, medium, limits)
        limits.check_points(medium, len(geometry.vertices))
        points = geometry.vertices
        if geometry.faces is not None and len(geometry.faces):
            limits.check_faces(medium, len(geometry.faces))
            if num_points is not None:
                points = sample_surface(geometry, num_points, seed, medium)
        return finite_points(points, medium)


def _check_setting(name: str, value: object, least: int, *, is_optional: bool = False) -> None:
    if is_optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def _describe(source: Any, name: str | None) -> Medium:
    if name is None and (isinstance(source, np.ndarray) or is_tensor(source)):
        what = "array" if isinstance(source, np.ndarray) else "tensor"
        return Medium("point cloud", f"<{what}, shape {tuple(source.shape)}>")
    return describe(source, "point cloud", name)


Reader = Callable[[bytes, Medium, PointLimits], Geometry]


def _recognise(data: bytes, medium: Medium) -> tuple[str, Reader]:
    """Which format the bytes are of. The name of a file is not asked: it is often wrong, and bytes have none."""
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"ply\s", head):
        return "PLY", read_ply
    if head.startswith(b"glTF"):
        return "GLB", read_glb
    if data.startswith(MAGIC):
        return "NPY", _read_npy
    if data.startswith(b"PK\x03\x04"):
        return "NPZ", _read_npz
    if re.match(rb"(#\s*\.?PCD|VERSION\s|FIELDS\s)", head):
        return "PCD", read_pcd
    if len(data) >= _STL_HEADER and len(data) == _stl_size(data):
        return "STL", _read_binary_stl
    if head.startswith(b"solid") and re.search(rb"\b(facet|endsolid)\b", data[: 1 << 16]):
        return "STL", read_ascii_stl
    if re.match(rb"(#[^\n]*\n\s*)*(ST)?C?N?OFF\b|(ST)?C?N?OFF\d", head):
        return "OFF", read_off
    if head.startswith(b"{"):
        raise medium.error("it is a description in JSON, such as glTF", "Save the scene as one self-contained .glb")
    if re.search(rb"^\s*v[ \t]+[-+.\d]", data[: 1 << 20], re.MULTILINE):
        return "OBJ", read_obj
    return "text", read_xyz


def _stl_size(data: bytes) -> int:
    return _STL_HEADER + int.from_bytes(data[80:84], "little") * _STL_TRIANGLE.itemsize


def _read_binary_stl(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    num_faces = int.from_bytes(data[80:84], "little")
    limits.check_faces(medium, num_faces)
    limits.check_points(medium, 3 * num_faces)
    triangles = np.frombuffer(data, _STL_TRIANGLE, num_faces, _STL_HEADER)
    return triangle_soup(triangles["corners"].reshape(-1, 3).astype(np.float64))


def _read_npy(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    array = read_npy(data, medium)
    _check_array(array.shape, array.dtype, medium, limits)
    return Geometry(array[:, :3])


def _read_npz(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """The array called points, xyz, pc or arr_0, or the only one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        arrays = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        arrays = {key: entry for key, entry in arrays.items() if entry.filename.endswith(".npy")}
        key = next((key for key in _ARRAY_NAMES if key in arrays), next(iter(arrays), None))
        if key is None or (key not in _ARRAY_NAMES and len(arrays) > 1):
            raise medium.error(
                "it is an archive without one array of points", "Save the array alone: np.save('points.npy', points)"
            )
        if arrays[key].file_size > limits.max_bytes:
            raise medium.error(
                f"it unpacks to {arrays[key].file_size} bytes, and {limits.max_bytes} are allowed",
                "Thin it out, or raise max_bytes of the limits",
            )
        with archive.open(arrays[key]) as stream:
            content = stream.read(limits.max_bytes + 1)  # the size may lie; zipfile checks the checksum at the end
    if len(content) > limits.max_bytes or not content.startswith(MAGIC):
        raise damaged(medium, "NPZ")
    return _read_npy(content, medium, limits)


def _to_array(tensor: Any, medium: Medium) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()  # numpy knows no bfloat16
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, meta, quantised
        raise medium.error("it is no plain tensor with values", "Give it as a numpy array") from None


def _array_points(array: np.ndarray, medium: Medium, limits: PointLimits) -> np.ndarray:
    if isinstance(array, np.ma.MaskedArray):
        raise medium.error("it is a masked array", "Drop the masked points, and give a plain array")
    array = np.asarray(array)
    _check_array(array.shape, array.dtype, medium, limits)
    return array[:, :3]


def _check_array(shape: tuple[int, ...], dtype: np.dtype, medium: Medium, limits: PointLimits) -> None:
    if dtype.kind not in "fiu":
        raise medium.error(
            f"its values are of type {dtype.name}, and numbers are expected", "Convert it with array.astype('float32')"
        )
    if len(shape) != 2 or not 3 <= shape[1] <= _MAX_COLUMNS or min(shape) < 0:
        cure = "Give one cloud, a row a point, with x, y, z first"
        if len(shape) == 2 and shape[0] in (3, 4, 6):
            cure = "Give a row a point: array.T"
        raise medium.error(f"its shape is {shape}, and (P, 3) or (P, 3 or more) is expected", cure)
    limits.check_points(medium, shape[0])
