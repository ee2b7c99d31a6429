"""Clouds and meshes that must be refused, quickly and in little memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bindlm.media.points import load_points

from . import clouds
from .clouds import CUBE, QUADS, TRIANGLES
from .nasty_sources import Case, nasty_npy, nasty_sources, npy

GIANT = 2_000_000_000
FORMATS = {
    "ply text": clouds.ply(CUBE, QUADS, ""),
    "ply": clouds.ply(CUBE, QUADS),
    "ply big": clouds.ply(CUBE, [*QUADS, TRIANGLES[0]], ">"),
    "stl": clouds.stl(),
    "stl text": clouds.ascii_stl(),
    "off": clouds.off(),
    "pcd": clouds.pcd(),
    "pcd text": clouds.pcd(encoding="ascii"),
    "pcd packed": clouds.pcd(encoding="binary_compressed"),
    "glb": clouds.glb(),
    "npz": clouds.npz(points=CUBE),
}


def cases(tmp_path: Path) -> list[Case]:
    """What `load_points` must refuse with a `MediaError`."""
    found = [*nasty_sources(tmp_path), *nasty_npy(CUBE), *_cut(), *_giants(), *_others()]
    return [(name, partial(load_points, source)) for name, source in found]


def _cut() -> Iterator[tuple[str, bytes]]:
    for name, whole in FORMATS.items():
        for length in (len(whole) // 4, len(whole) // 2, len(whole) - 24):
            yield f"{name} cut at {length}", whole[:length]


def _giants() -> Iterator[tuple[str, bytes]]:
    """A few bytes that promise billions."""
    ply, ascii_ply = clouds.ply(CUBE, QUADS), clouds.ply(CUBE, QUADS, "")
    for number in (-1, 0, 1_999_999, GIANT, 10**30):
        yield f"ply of {number} vertices", ply.replace(b"vertex 8", b"vertex %d" % number)
        yield f"ply text of {number} vertices", ascii_ply.replace(b"vertex 8", b"vertex %d" % number)
        yield f"off of {number} vertices", clouds.off().replace(b"\n8 6", b"\n%d 6" % number)
        yield f"pcd of {number} points", clouds.pcd(size=number)
        yield f"pcd text of {number} points", clouds.pcd(encoding="ascii", size=number)
        yield f"pcd packed of {number} points", clouds.pcd(encoding="binary_compressed", size=number)
        yield f"pts of {number} points", b"%d\n" % number + clouds.text(CUBE)
    for number in (-1, 3_999_999, GIANT):
        yield f"ply of {number} faces", ply.replace(b"face 6", b"face %d" % number)
        yield f"ply text of {number} faces", ascii_ply.replace(b"face 6", b"face %d" % number)
        yield f"off of {number} faces", clouds.off().replace(b"\n8 6", b"\n8 %d" % number)
    yield (
        "ply face of 2^31 corners",
        clouds.ply(CUBE).replace(b"end_header", b"element face 1\nproperty list int int vertex_indices\nend_header")
        + struct.pack("<i", 2**31 - 1),
    )
    yield (
        "ply face of -1 corners",
        clouds.ply(CUBE).replace(b"end_header", b"element face 1\nproperty list int int vertex_indices\nend_header")
        + struct.pack("<i", -1),
    )
    yield "off face of 2^40 corners", clouds.off(CUBE, [(0, 1, 2)]).replace(b"\n3 0", b"\n1099511627776 0")
    yield "stl of 2^32 faces", clouds.stl()[:80] + b"\xff\xff\xff\xff" + clouds.stl()[84:]
    for field, value in (("count", GIANT), ("count", -8), ("count", "many"), ("bufferView", 9), ("type", "MAT9")):

        def change(description: dict[str, Any], field: str = field, value: Any = value) -> None:
            description["accessors"][0][field] = value

        yield f"glb with {field} {value}", clouds.glb(change=change)

    def no_view(description: dict[str, Any]) -> None:
        description["accessors"] += [{"componentType": 5126, "count": 10**7, "type": "MAT4"}] * 100

    yield "glb with gigabytes of zeros", clouds.glb(change=no_view)
    yield "glb of many nodes", clouds.glb(nodes=[{}] * 5000)
    yield (
        "glb that copies a mesh too often",
        clouds.glb(np.tile(CUBE, (100, 1)), TRIANGLES * 100, nodes=[{"translation": [n, 0, 0]} for n in range(4000)]),
    )
    wide = clouds.pcd(size=10**6).replace(b"COUNT 1 1 3 1", b"COUNT 1 1 9999999 1")
    yield "pcd with wide records", wide
    bomb = clouds.pcd(size=1_000_000, encoding="binary_compressed").partition(b"DATA binary_compressed\n")
    runs = b"\0\0" + b"\xe0\xff\0" * 72_000
    yield "pcd that is a bomb", bomb[0] + bomb[1] + struct.pack("<II", len(runs), 19_000_000) + runs


def _others() -> Iterator[tuple[str, Any]]:
    yield "faces of missing vertices, ply", clouds.ply(CUBE, [(0, 1, 99)])
    yield "faces of negative vertices, ply", clouds.ply(CUBE, [(0, 1, -2)])
    yield "faces of missing vertices, obj", clouds.obj(CUBE, [(0, 1, 99)])
    yield "face of vertex 0, obj", clouds.obj(CUBE, [(-1, 0, 1)])
    yield "faces of negative vertices, off", clouds.off(CUBE, [(0, 1, -1)])
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("1e300", 1e300)):
        points = CUBE.astype(np.float64)
        points[3, 1] = value
        yield f"{name} in an array", points
        yield f"{name} in text", clouds.text(points)
        yield f"{name} in a mesh", clouds.obj(points)
        yield f"{name} in ply", clouds.ply(points, QUADS, number="double")
        yield f"{name} in a tensor", torch.from_numpy(points)
    yield "points all the same", np.ones((5, 3))
    yield "one point", np.zeros((1, 3))
    yield "mesh in one place", clouds.stl(np.ones((8, 3), dtype=np.float32))
    yield "no points", np.zeros((0, 3))
    yield "ply of no vertices", clouds.ply(CUBE[:0])
    yield "stl of no faces", clouds.stl(faces=())
    yield "obj without vertices", b"f 1 2 3\n"
    yield "two columns", np.ones((5, 2))
    yield "points along the second axis", np.random.default_rng(0).random((3, 500))
    yield "a batch of clouds", np.ones((2, 5, 3))
    yield "booleans", CUBE > 0
    yield "complex", CUBE.astype(np.complex64)
    yield "text values", CUBE.astype(str)
    yield "objects", CUBE.astype(object)
    yield "masked", np.ma.masked_array(CUBE, mask=True)
    yield "more points than allowed", np.broadcast_to(np.float32(1), (10**9, 3))
    yield "sparse tensor", torch.eye(3).to_sparse()
    yield "meta tensor", torch.zeros(4, 3, device="meta")
    yield "text with two columns", b"1 2\n3 4\n"
    yield "text with a word", b"1 2 3\n4 five 6\n"
    yield "text with a short line", b"1 2 3\n4 5\n"
    yield "a molecule", b"2\n\nH 0 0 0\nH 0 0 1\n"
    yield "a line of 100 KB", b"1 " * 50_000
    yield "a million lines of no use", b"x\n" * 1_000_000
    yield "pts of more points than promised", b"3\n" + clouds.text(CUBE)
    yield "ply without positions", clouds.ply(CUBE).replace(b"property float z", b"property float q")
    yield "ply with a property twice", clouds.ply(CUBE).replace(b"property float z", b"property float x")
    yield "ply of an unknown format", clouds.ply(CUBE).replace(b"binary_little_endian", b"binary_middle_endian")
    yield "ply of an unknown type", clouds.ply(CUBE).replace(b"float x", b"quad x")
    yield "ply with a property of nothing", clouds.ply(CUBE).replace(b"element vertex 8\n", b"")
    yield "ply header without end", b"ply\nformat ascii 1.0\n" + b"comment x\n" * 100_000
    yield "pcd without z", clouds.pcd().replace(b"rgb z", b"rgb q")
    yield "pcd of an unknown encoding", clouds.pcd().replace(b"DATA binary", b"DATA secret")
    yield "pcd of an unknown type", clouds.pcd().replace(b"TYPE F", b"TYPE Q")
    yield "pcd of a size that is none", clouds.pcd().replace(b"SIZE 4", b"SIZE 3")
    yield "pcd header without end", b"# .PCD\n" + b"#\n" * 100_000
    yield "glTF with other files", b'{"asset": {"version": "2.0"}, "buffers": [{"uri": "http://127.0.0.1/a.bin"}]}'
    yield "glb of version 1", clouds.glb()[:4] + b"\1" + clouds.glb()[5:]
    yield "glb of deep JSON", clouds.glb_of(b"[" * 200_000, b"")
    yield "glb of no object", clouds.glb_of(b"3", b"")
    yield "glb of an empty scene", clouds.glb_of(b'{"asset": {"version": "2.0"}, "scenes": [{"nodes": []}]}', b"")
    for name, change in {
        "with another file": lambda d: d["buffers"][0].update(uri="other.bin"),
        "with an address": lambda d: d["buffers"][0].update(uri="http://127.0.0.1/a.bin"),
        "compressed by Draco": lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"]),
        "whose nodes are words": lambda d: d.update(nodes="abc"),
        "whose mesh is missing": lambda d: d["nodes"][0].update(mesh=7),
        "whose view is too long": lambda d: d["bufferViews"][0].update(byteLength=10**9),
        "with NaN in a matrix": lambda d: d["nodes"][0].update(matrix=[float("nan")] * 16),
    }.items():
        yield f"glb {name}", clouds.glb(change=change)
    yield "npz of two arrays", clouds.npz(a=CUBE, b=CUBE)
    yield "npz of objects", clouds.npz(points=np.array([{}], dtype=object))
    yield "npz bomb", clouds.npz(points=np.zeros((9_000_000, 3)))
    yield "npz of one axis", clouds.npz(points=CUBE.ravel())
    yield "npy of one point", npy(CUBE[:1])
    yield "a saved tensor's zip", _saved_tensor()


def _saved_tensor() -> bytes:
    import io

    file = io.BytesIO()
    torch.save(torch.ones(4, 3), file)
    return file.getvalue()
