"""Point files written by hand, byte by byte, so that no reader is tested by its own writer."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float32)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [triangle for a, b, c, d in QUADS for triangle in ((a, b, c), (a, c, d))]


def text(points: np.ndarray, separator: str = " ", end: str = "\n") -> bytes:
    """A line a point."""
    return "".join(separator.join(f"{value:.9g}" for value in row) + end for row in points).encode()


def obj(points: np.ndarray = CUBE, faces: Any = QUADS, form: str = "{0}") -> bytes:
    """Wavefront OBJ; `form` writes one corner, counted from 1."""
    lines = ["mtllib other.mtl", "o cube", *(f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in points), "vn 0 0 1", "vt 0 0"]
    lines += ["f " + " ".join(form.format(corner + 1) for corner in face) for face in faces]
    return "\n".join(lines).encode()


def off(points: np.ndarray = CUBE, faces: Any = QUADS, header: str = "OFF\n") -> bytes:
    """Object File Format."""
    body = "".join(f"{len(face)} {' '.join(map(str, face))}\n" for face in faces)
    return f"{header}{len(points)} {len(faces)} 0\n".encode() + text(points) + body.encode()


def stl(points: np.ndarray = CUBE, faces: Any = TRIANGLES, header: bytes = b"solid made by hand") -> bytes:
    """STL, binary."""
    body = b"".join(struct.pack("<12fH", 0, 0, 0, *points[list(face)].ravel(), 0) for face in faces)
    return header.ljust(80, b"\0") + struct.pack("<I", len(faces)) + body


def ascii_stl(points: np.ndarray = CUBE, faces: Any = TRIANGLES) -> bytes:
    """STL, text."""
    facets = "".join(
        "facet normal 0 0 0\n outer loop\n"
        + "".join("  vertex {} {} {}\n".format(*points[corner]) for corner in face)
        + " endloop\nendfacet\n"
        for face in faces
    )
    return f"solid cube\n{facets}endsolid cube\n".encode()


def ply(
    points: np.ndarray = CUBE, faces: Any = (), byte_order: str = "<", number: str = "float", extra: bool = False
) -> bytes:
    """PLY; `byte_order` "" is text, `extra` puts colours between the coordinates and flags before the corners."""
    kind = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[byte_order]
    names = ["x", "red", "y", "z"] if extra else ["x", "y", "z"]
    header = ["ply", f"format {kind} 1.0", "comment made by hand", f"element vertex {len(points)}"]
    header += [f"property {'uchar' if name == 'red' else number} {name}" for name in names]
    if len(faces):
        header += [f"element face {len(faces)}"]
        header += ["property uchar flag"] * (extra and bool(byte_order))
        header += ["property list uchar int vertex_indices"]
    head = ("\n".join([*header, "end_header"]) + "\n").encode()
    rows = [[x, 200, y, z] if extra else [x, y, z] for x, y, z in points.tolist()]
    if not byte_order:
        body = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        body += "".join(" ".join(map(str, [len(face), *face])) + "\n" for face in faces)
        return head + body.encode()
    code = {"float": "f", "double": "d"}[number]
    row_format = byte_order + "".join("B" if name == "red" else code for name in names)
    body = b"".join(struct.pack(row_format, *row) for row in rows)
    for face in faces:
        body += struct.pack(byte_order + "B" * (1 + extra), *([7] * extra), len(face))
        body += struct.pack(f"{byte_order}{len(face)}i", *face)
    return head + body


def pcd(points: np.ndarray = CUBE, encoding: str = "binary", size: int | None = None) -> bytes:
    """PCD with a colour between y and z; `size` is what the header promises."""
    number = len(points) if size is None else size
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y rgb z\nSIZE 4 4 1 8\nTYPE F F U F\nCOUNT 1 1 3 1\n"
        f"WIDTH {number}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {number}\nDATA {encoding}\n"
    ).encode()
    rows = points.tolist()
    if encoding == "ascii":
        return header + "".join(f"{x} {y} 1 2 3 {z}\n" for x, y, z in rows).encode()
    if encoding == "binary":
        return header + b"".join(struct.pack("<ff3Bd", x, y, 1, 2, 3, z) for x, y, z in rows)
    columns = np.ascontiguousarray(points.T)
    plain = columns[0].astype("<f4").tobytes() + columns[1].astype("<f4").tobytes()
    plain += bytes([1, 2, 3]) * len(points) + columns[2].astype("<f8").tobytes()
    packed = lzf(plain)
    return header + struct.pack("<II", len(packed), len(plain)) + packed


def lzf(plain: bytes) -> bytes:
    """LZF, greedily: runs of one byte as copies that overlap themselves, all else as it is."""
    packed = bytearray()
    position = 0
    while position < len(plain):
        run = 1
        while position + run < len(plain) and plain[position + run] == plain[position] and run < 200:
            run += 1
        packed += bytes([0, plain[position]])
        if run >= 4:
            length = run - 1 - 2
            packed += bytes([length << 5, 0]) if length < 7 else bytes([7 << 5, length - 7, 0])
            position += run
        else:
            position += 1
    return bytes(packed)


def npy(array: np.ndarray) -> bytes:
    """The bytes that `numpy.save` writes."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    """The bytes that `numpy.savez_compressed` writes."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def glb(
    points: np.ndarray = CUBE, faces: Any = TRIANGLES, change: Any = None, nodes: list[dict[str, Any]] | None = None
) -> bytes:
    """One mesh in a scene; `change(description)` may alter the JSON."""
    positions, indices = points.astype("<f4").tobytes(), np.array(faces, dtype="<u4").tobytes()
    description: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes or [{}])))}],
        "nodes": [{"mesh": 0, **node} for node in (nodes or [{}])],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": 4}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3"},
            {"bufferView": 1, "componentType": 5125, "count": 3 * len(faces), "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(positions)},
            {"buffer": 0, "byteOffset": len(positions), "byteLength": len(indices)},
        ],
        "buffers": [{"byteLength": len(positions) + len(indices)}],
    }
    if change is not None:
        change(description)
    return glb_of(json.dumps(description).encode(), positions + indices)


def glb_of(description: bytes, body: bytes) -> bytes:
    """A GLB file around any JSON."""
    description += b" " * (-len(description) % 4)
    chunks = struct.pack("<II", len(description), 0x4E4F534A) + description
    chunks += struct.pack("<II", len(body), 0x004E4942) + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
