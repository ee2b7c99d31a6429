"""Weight files as they lie on the disk: names and shapes first, tensors only where asked for.

A published checkpoint holds more than most users want (ImageBind: 4.8 GB for six towers). The file is mapped, so a
tower that nobody asks for is never read, and what is kept in the file's own dtype needs no second copy.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bindlm.checkpoints.state import load_pickled_state, load_state

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MADV_DONTNEED = 4


class MappedState:
    """Tensors of one file, mapped.

    Attributes:
        path: the file.
        shapes: shape of each tensor by name.
    """

    def __init__(self, path: Path, tensors: Mapping[str, "Tensor"]) -> None:
        self.path = path
        self._tensors = dict(tensors)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def tensors(self) -> dict[str, "Tensor"]:
        """All of them, mapped: nothing is read before it is touched."""
        return dict(self._tensors)

    def take(self, names: Iterable[str], dtype: "torch.dtype | None" = None) -> dict[str, "Tensor"]:
        """Tensors by name.

        Args:
            names: which.
            dtype: of floating-point tensors; None, or the file's own, leaves them mapped. A converted tensor's pages
                of the file are given back at once, so the peak stays near the size of the result.
        """
        taken = {}
        mapped: list[tuple[int, int]] | None = None  # looked up once, and only if something is converted
        for name in names:
            tensor = self._tensors[name]
            if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
                taken[name] = tensor
            else:
                taken[name] = tensor.to(dtype)
                mapped = _mapped_files() if mapped is None else mapped
                _forget_pages(tensor, mapped)
        return taken


def open_mapped(path: str | os.PathLike[str], entry: str | int | None = None) -> MappedState:
    """Open `.safetensors`, or a published `.pth`, `.pt` or `.bin` of which only tensors are let through.

    Args:
        path: the file.
        entry: where a `.pth` holds more than one thing, the key of the state to take.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or its pickle holds more than tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return MappedState(path, load_state(path))
    return MappedState(path, load_pickled_state(path, entry=entry))


def forget(tensors: Iterable["Tensor"]) -> None:
    """Give back the pages of files under mapped tensors that have been used; tensors in memory of our own are left."""
    mapped = _mapped_files()
    for tensor in tensors:
        _forget_pages(tensor, mapped)


def _forget_pages(tensor: "Tensor", mapped: list[tuple[int, int]]) -> None:
    """Tell the system that the mapped pages under a tensor are not needed; they are read again if they are touched.

    Without it each page counts as resident: converting fp32 to bf16 would peak at three times the result. Only whole
    pages inside the tensor are given back, and only on Linux; elsewhere the system drops them under pressure.
    """
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if tensor.is_contiguous() and end > begin and any(low <= begin and end <= high for low, high in mapped):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of this process that are mapped files: the same call on memory of our own would clear it."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return []
    ranges = []
    for line in maps.splitlines():
        if line.rstrip().split(maxsplit=5)[-1].startswith("/"):
            low, high = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
            ranges.append((low, high))
    return ranges
