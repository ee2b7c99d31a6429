"""Numbers in text: lines of coordinates, of polygons, and the formats made of them (XYZ, PTS, OBJ, OFF, ASCII STL)."""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Sequence

import numpy as np

from bindlm.media.names import Medium
from bindlm.media.points_geometry import Geometry, PointLimits, damaged

_MAX_LINE = 1 << 16
"""Bytes of a line: numpy's reader takes up to 16 times as much memory as the longest."""

_FREE_LINES = 10_000
"""Lines of comments and blanks that no limit counts."""

_SEPARATORS = bytes.maketrans(b",;\t\r", b"    ")
_SLASHED = re.compile(rb"/\S*|(?<= ) +")
"""What "5/1/2" has behind vertex 5, and blanks beyond the first."""

_XYZ_HEADER = re.compile(rb"(//|#)?\s*\"?x\"?\s+\"?y\"?\s+\"?z\b", re.IGNORECASE)
_OFF_HEADER = re.compile(rb"\s*(ST)?C?N?OFF(?P<counts>.*)")


def text_lines(data: bytes, medium: Medium, max_lines: int) -> list[bytes]:
    """Lines with content, without comments; commas, semicolons and tabs made blanks.

    Raises:
        MediaError: A NUL, as binary data have, more lines than allowed, or one of more than 64 KiB.
    """
    if b"\0" in data:
        raise medium.error("it is neither text nor a known format of points", _formats_cure())
    num_lines = data.count(b"\n")
    if num_lines > max_lines:
        raise medium.error(
            f"it has {num_lines} lines, more than points and faces within the limits have",
            "Thin it out, or raise PointLimits(max_points=..., max_faces=...)",
        )
    lines = [line.partition(b"#")[0].strip() for line in data.translate(_SEPARATORS).split(b"\n")]
    _check_line(max(lines, key=len), medium)
    return [line for line in lines if line]


def _check_line(line: bytes, medium: Medium) -> None:
    if len(line) > _MAX_LINE:
        raise medium.error("it has a line of more than 64 KiB", "Write one point a line")


def _formats_cure() -> str:
    return "Give ply, obj, stl, off, glb, pcd, npy, npz, or text with x y z in each line"


def columns(lines: Sequence[bytes], which: Sequence[int], dtype: type = np.float64) -> np.ndarray:
    """Numbers `(len(lines), len(which))` of some columns; a line that lacks one raises ValueError."""
    if not lines:
        return np.empty((0, len(which)), dtype=dtype)
    if not any(line.decode("latin1").strip() for line in lines):  # what Unicode calls blank; numpy would only warn
        raise ValueError("every line is blank")
    values: np.ndarray = np.loadtxt(
        lines, dtype=dtype, comments=None, usecols=tuple(which), ndmin=2, encoding="latin1"
    )
    if len(values) != len(lines):
        raise ValueError("a line was skipped")
    return values


def polygon_triangles(lines: Sequence[bytes], medium: Medium, limits: PointLimits) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of polygons written as `count index index ...`, cut as fans from their first corner.

    Returns:
        int64 `(F, 3)` indices as written, and int64 `(F,)`, the line that each is from.
    """
    counts = columns(lines, [0], np.int64)[:, 0]
    if len(counts) and counts.min() < 0:
        raise damaged(medium, "polygon")
    limits.check_faces(medium, int(np.maximum(counts - 2, 0).sum()))
    triangles, origins = [np.empty((0, 3), dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for count in np.unique(counts[counts >= 3]):  # one or two corners are a point or a line, without a face
        rows = np.flatnonzero(counts == count)
        corners = columns([lines[row] for row in rows.tolist()], range(1, int(count) + 1), np.int64)
        triangles.append(fans(corners))
        origins.append(np.repeat(rows, int(count) - 2))
    return np.concatenate(triangles), np.concatenate(origins)


def fans(corners: np.ndarray) -> np.ndarray:
    """Polygons `(N, K)` to triangles `(N * (K - 2), 3)`."""
    first = np.broadcast_to(corners[:, :1], corners[:, 2:].shape)
    return np.stack([first, corners[:, 1:-1], corners[:, 2:]], axis=-1).reshape(-1, 3)


def read_xyz(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """Text with x, y, z first in each line; a line of names or, as in PTS, the number of points may come first."""
    if _XYZ_HEADER.match(data.translate(_SEPARATORS).lstrip()):
        data = data.lstrip().partition(b"\n")[2]
    lines = text_lines(data.replace(b"//", b"#"), medium, 2 * limits.max_points + _FREE_LINES)
    limits.check_points(medium, len(lines))
    if len(lines) > 1 and lines[0].isdigit():
        number = int(lines[0]) if len(lines[0]) < 20 else 1 << 63
        lines = lines[1:]
        limits.check_points(medium, number)
        if number != len(lines):
            raise medium.error(f"it promises {number} points and holds {len(lines)}", "Get the file again")
    limits.check_points(medium, len(lines))
    try:
        return Geometry(columns(lines, (0, 1, 2)))
    except ValueError:
        raise medium.error("it is text, but not with numbers x y z first in each line", _formats_cure()) from None


def read_obj(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """Wavefront OBJ: `v` and `f` lines; materials, normals, curves and other files named in it are not looked at."""
    data = data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ")
    vertex_lines: list[bytes] = []
    face_lines: list[bytes] = []
    num_before = array("q")  # vertices above each face
    for line in io.BytesIO(data):  # one by one: a list of all lines would take ten times the memory of the file
        words = line.translate(_SEPARATORS).partition(b"#")[0].strip()
        if words.startswith(b"v "):
            vertex_lines.append(words)
        elif words.startswith(b"f "):
            face_lines.append(_SLASHED.sub(b"", words[2:]))
            num_before.append(len(vertex_lines))
        if len(vertex_lines) > limits.max_points or len(face_lines) > limits.max_faces or len(line) > _MAX_LINE:
            break
    else:
        line = b""
    _check_line(line, medium)
    limits.check_points(medium, len(vertex_lines))
    limits.check_faces(medium, len(face_lines))
    vertices = columns(vertex_lines, (1, 2, 3))
    if not face_lines:
        return Geometry(vertices)
    del vertex_lines
    faces, origins = polygon_triangles(
        [b"%d %s" % (line.count(b" ") + 1, line) for line in face_lines], medium, limits
    )
    before = np.array(num_before)[origins][:, None]  # a negative index counts back from the vertices so far
    return Geometry(vertices, np.where(faces < 0, faces + before, faces - 1))


def read_off(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """Object File Format; ModelNet's files, which forget the line break after OFF, are read too."""
    lines = text_lines(data, medium, limits.max_points + limits.max_faces + _FREE_LINES)
    match = _OFF_HEADER.match(lines[0])
    if match is None:
        raise damaged(medium, "OFF")
    lines[:1] = [match["counts"].strip()] if match["counts"].strip() else []
    num_vertices, num_faces = (int(word) for word in lines[0].split()[:2])
    limits.check_points(medium, num_vertices)
    limits.check_faces(medium, num_faces)
    if len(lines) < 1 + num_vertices + num_faces:
        raise damaged(medium, "OFF")
    vertices = columns(lines[1 : 1 + num_vertices], (0, 1, 2))
    faces, _ = polygon_triangles(lines[1 + num_vertices : 1 + num_vertices + num_faces], medium, limits)
    return Geometry(vertices, faces)


def read_ascii_stl(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """STL in text: three `vertex` lines a triangle."""
    lines = [line.lower() for line in text_lines(data, medium, 7 * limits.max_faces + _FREE_LINES)]
    if not lines[-1].startswith(b"endsolid"):
        raise damaged(medium, "STL")
    corners = [line for line in lines if line.startswith(b"vertex")]
    limits.check_faces(medium, len(corners) // 3)
    limits.check_points(medium, len(corners))
    return triangle_soup(columns(corners, (1, 2, 3)))


def triangle_soup(corners: np.ndarray) -> Geometry:
    """A mesh of triangles that share no vertices, from their corners `(3 F, 3)`."""
    return Geometry(corners, np.arange(len(corners)).reshape(-1, 3))
