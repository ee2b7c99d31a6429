"""PLY: a header of elements and properties, then text or binary records."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from struct import Struct, unpack_from

import numpy as np

from bindlm.media.names import Medium
from bindlm.media.points_geometry import Geometry, PointLimits, damaged
from bindlm.media.points_text import columns, fans, polygon_triangles, text_lines

_MAX_HEADER = 1 << 16
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_FACE_LISTS = ("vertex_indices", "vertex_index")


@dataclass
class _Element:
    name: str
    count: int
    scalars: list[tuple[str, str]] = field(default_factory=list)
    """Name and numpy type, without byte order."""
    lists: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, type of the count, type of the entries."""
    order: list[str] = field(default_factory=list)


def read_ply(data: bytes, medium: Medium, limits: PointLimits) -> Geometry:
    """Vertices, and faces where there are any; colours, normals and all other properties are left out."""
    byte_order, elements, begin = _read_header(data, medium)
    by_name = {element.name: element for element in elements}
    vertex, face = by_name.get("vertex"), by_name.get("face")
    if vertex is None or vertex.lists or not {"x", "y", "z"} <= {name for name, _ in vertex.scalars}:
        raise medium.error("it is a PLY file whose vertices have no x, y and z", "Save it anew, with positions")
    limits.check_points(medium, vertex.count)
    limits.check_faces(medium, face.count if face else 0)
    body = len(data) - begin
    for element in elements:  # before anything is allocated; in text a value takes a digit and a separator
        sizes = [np.dtype(kind).itemsize for _, kind in element.scalars] + [
            np.dtype(kind).itemsize for _, kind, _ in element.lists
        ]
        least = sum(sizes) if byte_order else 2 * len(sizes)
        if element.count < 0 or element.count * max(1, least) > body + 1:
            raise damaged(medium, "PLY")
        body -= element.count * least
    read = _read_binary if byte_order else _read_text
    return read(data[begin:], byte_order, elements, medium, limits)


def _read_header(data: bytes, medium: Medium) -> tuple[str, list[_Element], int]:
    """The byte order ("" for text), the elements, and where the body begins."""
    end = data.find(b"end_header", 0, _MAX_HEADER)
    line_end = data.find(b"\n", end)
    if end < 0 or line_end < 0:
        raise damaged(medium, "PLY")
    byte_order: str | None = None
    elements: list[_Element] = []
    for line in data[:end].decode("latin1").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format":
            byte_order = _BYTE_ORDERS[words[1]]
        elif words[0] == "element":
            elements.append(_Element(words[1], int(words[2])))
        elif words[0] == "property" and words[1] == "list":
            elements[-1].lists.append((words[4], _TYPES[words[2]], _TYPES[words[3]]))
            elements[-1].order.append(words[4])
        elif words[0] == "property":
            elements[-1].scalars.append((words[2], _TYPES[words[1]]))
            elements[-1].order.append(words[2])
        else:
            raise damaged(medium, "PLY")
    if byte_order is None or any(len(set(element.order)) < len(element.order) for element in elements):
        raise damaged(medium, "PLY")
    return byte_order, elements, line_end + 1


def _read_text(
    body: bytes, _byte_order: str, elements: list[_Element], medium: Medium, limits: PointLimits
) -> Geometry:
    lines = text_lines(body, medium, 2 * (limits.max_points + limits.max_faces))
    row = 0
    vertices, faces = np.empty((0, 3)), None
    for element in elements:
        own = lines[row : row + element.count]
        row += element.count
        if len(own) < element.count:
            raise damaged(medium, "PLY")
        if element.name == "vertex":
            vertices = columns(own, [element.order.index(axis) for axis in "xyz"])
        elif element.name == "face" and element.order and element.order[0] in _FACE_LISTS:
            faces, _ = polygon_triangles(own, medium, limits)
    return Geometry(vertices, faces)


def _read_binary(
    body: bytes, byte_order: str, elements: list[_Element], medium: Medium, limits: PointLimits
) -> Geometry:
    offset = 0
    vertices, faces = np.empty((0, 3)), None
    for element in elements:
        if not element.lists:
            record = np.dtype([(name, byte_order + kind) for name, kind in element.scalars])
            table = np.frombuffer(body, record, element.count, offset)
            offset += element.count * record.itemsize
            if element.name == "vertex":
                vertices = np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=-1)
            continue
        if element.name != "face":
            if faces is None and "face" in {later.name for later in elements}:
                raise medium.error(
                    "its PLY lists before the faces are not understood", "Save it anew, with vertices and faces only"
                )
            break  # vertices come before all else in every file known, and nothing after the faces is needed
        faces = _read_binary_faces(body, offset, byte_order, element, medium, limits)
        break
    if not len(vertices):
        raise medium.error("its PLY vertices come after its faces", "Save it anew, vertices first")
    return Geometry(vertices, faces)


def _read_binary_faces(
    body: bytes, offset: int, byte_order: str, element: _Element, medium: Medium, limits: PointLimits
) -> np.ndarray | None:
    """Triangles `(F, 3)`; all at once where every face has as many corners as the first, else one by one."""
    wanted = next((name for name in element.order if name in _FACE_LISTS), None)
    if wanted is None or not element.count:
        return None
    fields: list[tuple[str, str, str | None]] = []  # name, type or count type, entry type
    for name in element.order:
        scalar = dict(element.scalars).get(name)
        if scalar is not None:
            fields.append((name, byte_order + scalar, None))
        else:
            count_type, entry_type = next(kinds for list_name, *kinds in element.lists if list_name == name)
            fields.append((name, byte_order + count_type, byte_order + entry_type))
    if any(np.dtype(kind).kind == "f" for _, kind, entry in fields if entry):
        raise damaged(medium, "PLY")
    alike = _read_alike(body, offset, fields, element.count, wanted)
    if alike is not None:
        limits.check_faces(medium, len(alike) * max(0, alike.shape[1] - 2))
        return fans(alike)
    return _read_unlike(body, offset, fields, element.count, wanted, medium, limits)


def _read_alike(
    body: bytes, offset: int, fields: list[tuple[str, str, str | None]], count: int, wanted: str
) -> np.ndarray | None:
    """Corners `(F, K)` where each list has the length that it has in the first face, else None."""
    record: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
    lengths: dict[str, int] = {}
    position = offset
    for index, (name, kind, entry) in enumerate(fields):
        value = np.frombuffer(body, kind, 1, position)[0]
        position += np.dtype(kind).itemsize
        record.append((f"{index}", kind))
        if entry is not None:
            lengths[f"{index}"] = length = int(value)
            if not 0 <= length <= len(body):
                return None
            record.append((f"{index}:{name}", entry, (length,)))
            position += length * np.dtype(entry).itemsize
    dtype = np.dtype(record)
    if offset + count * dtype.itemsize > len(body):
        return None
    table = np.frombuffer(body, dtype, count, offset)
    if any((table[name] != length).any() for name, length in lengths.items()):
        return None
    index = next(place for place, (name, _, _) in enumerate(fields) if name == wanted)
    return table[f"{index}:{wanted}"].astype(np.int64)


def _read_unlike(
    body: bytes, offset: int, fields: list[tuple[str, str, str | None]], count: int, wanted: str,
    medium: Medium, limits: PointLimits,
) -> np.ndarray:  # fmt: skip
    """Triangles `(F, 3)` of polygons of different sizes."""
    corners = array("q")
    kinds = [(name, Struct(_struct(kind)), entry) for name, kind, entry in fields]
    for _ in range(count):
        for name, kind, entry in kinds:
            if offset + kind.size > len(body):
                raise damaged(medium, "PLY")
            (length,) = kind.unpack_from(body, offset)
            offset += kind.size
            if entry is None:
                continue
            end = offset + length * np.dtype(entry).itemsize
            if length < 0 or end > len(body):
                raise damaged(medium, "PLY")
            if name == wanted and length >= 3:
                polygon = unpack_from(_struct(entry, length), body, offset)
                for second, third in zip(polygon[1:], polygon[2:], strict=False):
                    corners.extend((polygon[0], second, third))
                if len(corners) > 3 * limits.max_faces:
                    limits.check_faces(medium, len(corners) // 3)
            offset = end
    return np.array(corners, dtype=np.int64).reshape(-1, 3)


def _struct(kind: str, count: int = 1) -> str:
    """A numpy type such as `<u4` in the words of the struct module."""
    return f"{kind[0]}{count}{np.dtype(kind).char.replace('l', 'i').replace('L', 'I')}"
