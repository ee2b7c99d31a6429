"""GLB, glTF in one file, read by trimesh after its counts were looked at."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np

from bindlm.media.names import Medium
from bindlm.media.points_geometry import Geometry, PointLimits, damaged

_JSON_CHUNK = 0x4E4F534A
_MAX_JSON = 16 * 1024 * 1024


def read_glb(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """Every mesh and point set of the scene, each where its nodes put it. Textures are not decoded.

    Raises:
        MediaError: Damaged, larger than the limits (copies that nodes make are counted), or kept in other files,
            which are never opened.
    """
    description = _describe(data, medium)
    _check(description, medium, limits)
    from trimesh import PointCloud, Trimesh, load_scene

    scene = load_scene(io.BytesIO(data), file_type="glb", process=False, skip_materials=True)
    vertices, faces = [], []
    num_points = num_faces = 0
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        shape = scene.geometry[name]
        if not isinstance(shape, (Trimesh, PointCloud)):  # lines have neither points nor a surface
            continue
        num_points += len(shape.vertices)
        limits.check_points(medium, num_points)
        if isinstance(shape, Trimesh):
            num_faces += len(shape.faces)
            limits.check_faces(medium, num_faces)
            faces.append(np.asarray(shape.faces, dtype=np.int64) + num_points - len(shape.vertices))
        vertices.append(np.asarray(shape.vertices) @ transform[:3, :3].T + transform[:3, 3])
    limits.check_points(medium, num_points)
    return Geometry(np.concatenate(vertices), np.concatenate(faces) if faces else None)


def _describe(data: bytes, medium: Medium) -> dict[str, Any]:
    """The JSON that stands first in the file."""
    _, version, length, json_length, kind = struct.unpack_from("<4sIIII", data)
    if version != 2 or length != len(data) or kind != _JSON_CHUNK or not 0 < json_length <= len(data) - 20:
        raise damaged(medium, "GLB")
    if json_length > _MAX_JSON:
        raise medium.error("its GLB description is larger than 16 MiB", "Simplify the scene")
    description = json.loads(data[20 : 20 + json_length])
    if not isinstance(description, dict):
        raise damaged(medium, "GLB")
    return description


def _check(description: dict[str, Any], medium: Medium, limits: PointLimits) -> None:
    """Compare what the description promises with the limits: zeros of any number may be promised in a few bytes."""
    for buffer in description.get("buffers", []):
        if "uri" in buffer:
            raise medium.error("it keeps its shapes in another file", "Save the scene as one self-contained .glb")
    if {"KHR_draco_mesh_compression", "EXT_meshopt_compression"} & set(description.get("extensionsRequired", [])):
        raise medium.error("its shapes are compressed by an extension that is not read", "Save it uncompressed")
    num_nodes = len(description.get("nodes", []))
    if num_nodes > limits.max_nodes:
        raise medium.error(
            f"it has {num_nodes} nodes, and at most {limits.max_nodes} are allowed",
            "Join its parts, or raise PointLimits(max_nodes=...)",
        )
    # Positions, normals, texture coordinates and two more attributes a point, and three indices a face.
    counts = [int(accessor["count"]) for accessor in description.get("accessors", [])]
    most = 5 * limits.max_points + 3 * limits.max_faces
    if min(counts, default=0) < 0 or max(counts, default=0) > 3 * limits.max_faces or sum(counts) > most:
        raise medium.error(
            f"it promises {sum(counts)} values, more than points and faces within the limits have",
            "Simplify the mesh, or raise PointLimits(max_points=..., max_faces=...)",
        )
