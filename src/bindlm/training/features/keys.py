"""Which medium has which content: files of keys, and the sorted index through which a key is found."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bindlm.checkpoints import load_state
from bindlm.checkpoints.state import check_shapes
from bindlm.training.features.digests import DIGEST_BYTES, as_rows, key_digest


@dataclass(frozen=True)
class KeyEntry:
    """A medium as it was when its content was last looked at."""

    key: str
    content: bytes
    """Digest of its bytes and sense, 16 bytes."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the file's last change, nanoseconds since 1970; -1 for a medium that is no file of its own."""


def key_tensors(entries: Sequence[KeyEntry]) -> dict[str, Tensor]:
    """Entries as tensors for a file."""
    texts = [entry.key.encode("utf-8", "surrogatepass") for entry in entries]
    arrays = {
        "text": np.array(bytearray(b"".join(texts)), dtype=np.uint8),
        "ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "digest": as_rows([key_digest(entry.key) for entry in entries]),
        "content": as_rows([entry.content for entry in entries]),
        "size": np.array([entry.size for entry in entries], dtype=np.int64),
        "mtime_ns": np.array([entry.mtime_ns for entry in entries], dtype=np.int64),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class KeyFile:
    """A file of keys, memory-mapped.

    Raises:
        CheckpointError: it is damaged.
    """

    def __init__(self, path: Path, rows: int) -> None:
        state = load_state(path)
        text = state.get("text", torch.zeros(0))
        shapes: dict[str, tuple[int, ...]] = {"text": tuple(text.shape)}
        shapes |= dict.fromkeys(("ends", "size", "mtime_ns"), (rows,))
        shapes |= dict.fromkeys(("digest", "content"), (rows, DIGEST_BYTES))
        check_shapes(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, shapes)
        self._text: NDArray[np.uint8] = text.numpy()
        self._ends: NDArray[np.int64] = state["ends"].numpy()
        self.digests: NDArray[np.uint8] = state["digest"].numpy()
        """`(N, 16)`"""
        self.contents: NDArray[np.uint8] = state["content"].numpy()
        """`(N, 16)`"""
        self._size: NDArray[np.int64] = state["size"].numpy()
        self._mtime_ns: NDArray[np.int64] = state["mtime_ns"].numpy()

    def __len__(self) -> int:
        return len(self._ends)

    def key(self, position: int) -> bytes:
        """The key at a place, as it is written."""
        begin = int(self._ends[position - 1]) if position else 0
        return self._text[begin : int(self._ends[position])].tobytes()

    def entry(self, position: int) -> KeyEntry:
        """All about the key at a place."""
        return KeyEntry(
            self.key(position).decode("utf-8", "surrogatepass"),
            self.contents[position].tobytes(),
            int(self._size[position]),
            int(self._mtime_ns[position]),
        )


class KeyTable:
    """Several files of keys as one list; each is mapped when it is first asked for."""

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self._files = list(files)
        self._mapped: list[KeyFile | None] = [None] * len(self._files)
        self._starts = [0, *np.cumsum([rows for _, rows in self._files], dtype=np.int64).tolist()]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def parts(self) -> list[KeyFile]:
        """All files, mapped."""
        return [self._part(number) for number in range(len(self._files))]

    def key(self, position: int) -> bytes:
        """See `KeyFile.key`."""
        number = bisect.bisect_right(self._starts, position) - 1
        return self._part(number).key(position - self._starts[number])

    def entry(self, position: int) -> KeyEntry:
        """See `KeyFile.entry`."""
        number = bisect.bisect_right(self._starts, position) - 1
        return self._part(number).entry(position - self._starts[number])

    def _part(self, number: int) -> KeyFile:
        mapped = self._mapped[number]
        if mapped is None:
            mapped = self._mapped[number] = KeyFile(*self._files[number])
        return mapped


def latest_positions(table: KeyTable) -> NDArray[np.int64]:
    """Places of the keys that count, `(N,)`, sorted by the first half of their digests: of a key that is there several
    times, the last."""
    parts = table.parts()
    if not len(table):
        return np.zeros(0, dtype=np.int64)
    words = np.concatenate([part.digests for part in parts]).view(np.int64).reshape(-1, 2)  # (N, 2)
    order = np.lexsort((np.arange(len(words)), words[:, 1], words[:, 0]))
    ordered = words[order]
    is_last = np.ones(len(ordered), dtype=bool)
    is_last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return order[is_last]
