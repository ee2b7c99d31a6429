"""A safetensors file written one tensor at a time, so that no more than one is ever in memory.

The format states every name, type, shape and place in a header that stands first. Types and shapes of a checkpoint are
known before any tensor is read, so the header can be written at once and the tensors follow in its order.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bindlm.checkpoints.mapped import forget
from bindlm.checkpoints.notice import byte_bar
from bindlm.errors import CheckpointError

__all__ = ["Entry", "plain_entry", "write_streamed"]

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
"""The header is filled up with spaces to a multiple of this, as the format asks."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file to be written."""

    shape: tuple[int, ...]
    """As it will be."""
    dtype: torch.dtype
    """As it will be."""
    make: Callable[[], Tensor]
    """Reads and, where needed, converts it."""
    sources: tuple[Tensor, ...]
    """Mapped tensors that `make` reads, whose pages are given back afterwards."""

    @property
    def num_bytes(self) -> int:
        """Its share of the file."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def plain_entry(tensor: Tensor) -> Entry:
    """A tensor that is copied as it is."""
    return Entry(tuple(tensor.shape), tensor.dtype, lambda: tensor, (tensor,))


def write_streamed(path: Path, entries: Mapping[str, Entry], *, progress: bool = True) -> None:
    """Write a safetensors file.

    Args:
        path: the file.
        entries: by name.
        progress: whether to draw a bar on a terminal.

    Raises:
        CheckpointError: a tensor is of a type that the format lacks.
        OSError: the disk is full or not writable.
    """
    total = sum(entry.num_bytes for entry in entries.values())
    with path.open("wb") as file, byte_bar(total, progress=progress) as bar:
        file.write(_header(entries))
        for name, entry in entries.items():
            tensor = entry.make().contiguous()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise AssertionError(f"{name} was announced as {entry.shape} {entry.dtype}")  # the file would be wrong
            if tensor.numel():
                file.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
            forget((*entry.sources, tensor))
            bar.update(entry.num_bytes)


def _header(entries: Mapping[str, Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, entry in entries.items():
        if entry.dtype not in _TYPES:
            raise CheckpointError(f"{name} is of type {entry.dtype}, which safetensors files of weights do not hold.")
        end = place + entry.num_bytes
        header[name] = {"dtype": _TYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
