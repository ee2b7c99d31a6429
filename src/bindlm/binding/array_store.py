"""Arrays by name in one growing file, read through memory mapping; a killed writer goes on where it was.

    arrays.bin     the arrays, one after the other
    arrays.jsonl   a line for each: name, place, shape, type; or why there is none

What a run needs again and again and can make only slowly is kept in such stores: anchors, decoded media, features of
a frozen backbone.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.checkpoints.home import disk_errors
from bindlm.training.journal import Journal

__all__ = ["ArrayStore"]

DATA_FILE = "arrays.bin"
INDEX_FILE = "arrays.jsonl"
_ALIGNED = 64


class ArrayStore:
    """A folder of arrays by name.

    Args:
        folder: made where absent. Its name has to say what the arrays depend on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._index = Journal(self.folder / INDEX_FILE)
        self._data = self.folder / DATA_FILE
        self._lines: dict[str, dict[str, Any]] = {}
        self._map: NDArray[np.uint8] | None = None
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._data.touch()
            size = self._data.stat().st_size
        self._end = 0
        for line in self._index.keep_until(1):  # all, but for half a line that a kill left
            end = line.get("offset", 0) + line.get("bytes", 0)
            if end <= size:  # else the data never reached the disk
                self._lines[line["name"]] = line
                self._end = max(self._end, end)

    def __contains__(self, name: str) -> bool:
        return name in self._lines

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a process that is spawned maps the file itself

    @property
    def num_bytes(self) -> int:
        """Of the arrays."""
        return self._end

    def error(self, name: str) -> str | None:
        """Why there is no array of this name, where one was to be."""
        return self._lines[name].get("error")

    def get(self, name: str) -> NDArray[Any]:
        """The array; it lies in the file and must not be written to."""
        line = self._lines[name]
        if self._map is None or len(self._map) < line["offset"] + line["bytes"]:
            self._map = (
                np.memmap(self._data, np.uint8, mode="r") if self._data.stat().st_size else np.zeros(0, np.uint8)
            )
        raw = self._map[line["offset"] : line["offset"] + line["bytes"]]
        return raw.view(np.dtype(line["dtype"])).reshape(line["shape"])

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Add an array.

        Raises:
            CheckpointError: the disk is full or not writable.
        """
        array = np.ascontiguousarray(array)
        start = -(-self._end // _ALIGNED) * _ALIGNED
        with disk_errors(self.folder), self._data.open("r+b") as stream:
            stream.seek(start)
            stream.write(array.tobytes())
        line = {"name": name, "offset": start, "bytes": array.nbytes, "shape": array.shape, "dtype": array.dtype.str}
        self._add(line)
        self._end = start + array.nbytes

    def put_error(self, name: str, why: str) -> None:
        """Note that there can be no array of this name."""
        self._add({"name": name, "error": why})

    def put_nothing(self, name: str) -> None:
        """Note that a name has been looked at and is fine, but is not kept."""
        self._add({"name": name, "is_kept": False})

    def is_kept(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return "offset" in self._lines.get(name, {})

    def _add(self, line: dict[str, Any]) -> None:
        self._index.append(line)
        self._lines[line["name"]] = line
