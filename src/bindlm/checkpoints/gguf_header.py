"""What a GGUF file says about itself, read without its arrays: a vocabulary of 50,000 strings is skipped, not built.

The format is public (ggml, docs/gguf.md): magic, version, two counts, key-value pairs, then one record a tensor.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindlm.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufHeader:
    """Scalars and strings of a GGUF file, and the names of its tensors."""

    metadata: dict[str, Any]
    """By key, such as ``"general.architecture"``; arrays are left out."""
    tensor_names: tuple[str, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))


def read_header(path: Path) -> GgufHeader:
    """Read the header of the GGUF file ``path``.

    Raises:
        CheckpointError: the file is missing, no GGUF, of an unknown version, or cut short inside the header.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) != _MAGIC:
                raise CheckpointError(f"{path} is no GGUF file; get it again, or give a folder with safetensors")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Cursor(content).header()
    except (struct.error, UnicodeDecodeError, KeyError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged or of an unknown GGUF version; get it again") from error
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} is missing or cannot be read; expected a GGUF file") from error


class _Cursor:
    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = len(_MAGIC)

    def header(self) -> GgufHeader:
        if self._scalar("<I") not in _VERSIONS:
            raise ValueError
        num_tensors, num_pairs = self._scalar("<Q"), self._scalar("<Q")
        metadata = {}
        for _ in range(num_pairs):
            key = self._string()
            value = self._value(self._scalar("<I"))
            if value is not None:
                metadata[key] = value
        names = []
        for _ in range(num_tensors):
            names.append(self._string())
            num_dimensions = self._scalar("<I")
            self._skip(8 * num_dimensions + 4 + 8)  # shape, type, offset
        return GgufHeader(metadata, tuple(names))

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return value

    def _skip(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._content):
            raise ValueError

    def _string(self) -> str:
        length = self._scalar("<Q")
        start = self._at
        self._skip(length)
        return self._content[start : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        """A scalar or string; an array is skipped and gives None."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        element, count = self._scalar("<I"), self._scalar("<Q")
        if element in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[element]))
        else:
            for _ in range(count):
                if element == _STRING:
                    self._skip(self._scalar("<Q"))
                else:
                    self._value(element)
        return None
