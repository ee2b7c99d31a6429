"""Read numpy's `.npy` files without numpy's reader: no pickle, no evaluated header, nothing allocated on its word."""

from __future__ import annotations

import math
import re

import numpy as np

from bindlm.media.names import Medium

MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 1024
_MAX_DIMENSIONS = 8
_HEADER = re.compile(
    r"\{\s*'descr':\s*'([<>|=]?[a-zA-Z][0-9]*)',\s*'fortran_order':\s*(True|False),"
    r"\s*'shape':\s*\(([0-9L, ]{0,200})\),?\s*\}\s*"
)
_NUMBERS = re.compile(r"[<>|=]?(u1|i1|[uif]2|[uif]4|[uif]8)")


def read_npy(data: bytes, medium: Medium) -> np.ndarray:
    """The array in the bytes of an `.npy` file: whole numbers or floats of up to 64 bits, read-only, no copy.

    Raises:
        MediaError: It is no such file, is cut off or too long, or holds objects, text, or complex numbers.
    """
    if not data.startswith(MAGIC):
        raise medium.error("it is no .npy file", "Write it with numpy.save")
    version = data[6:7]
    num_length_bytes = 2 if version == b"\x01" else 4
    begin = 8 + num_length_bytes
    end = begin + int.from_bytes(data[8:begin], "little")
    if version not in (b"\x01", b"\x02") or end > len(data) or end - begin > _MAX_HEADER_BYTES:
        raise _damaged(medium)
    match = _HEADER.fullmatch(data[begin:end].decode("latin-1"))
    if match is None:
        raise medium.error("its header describes no plain array of numbers", "Write it anew with numpy.save")
    descr, is_fortran, dimensions = match.groups()
    if not _NUMBERS.fullmatch(descr):
        raise medium.error(
            f"it holds {descr}, and whole numbers or floats of up to 64 bits are expected",
            "Convert it, for example with array.astype('float32')",
        )
    shape = tuple(int(side.rstrip("L") or -1) for side in dimensions.replace(" ", "").split(",") if side)
    if len(shape) > _MAX_DIMENSIONS or min(shape, default=0) < 0:
        raise _damaged(medium)
    dtype = np.dtype(descr)
    if math.prod(shape) * dtype.itemsize != len(data) - end:  # before anything is reserved
        raise _damaged(medium)
    flat = np.frombuffer(data, dtype=dtype, offset=end)
    return flat.reshape(shape, order="F" if is_fortran == "True" else "C")


def _damaged(medium: Medium) -> Exception:
    return medium.error("the .npy file is damaged or cut off", "Copy it again, or write it anew with numpy.save")
