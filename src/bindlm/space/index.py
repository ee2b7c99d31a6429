"""A searchable collection of joint embeddings that stays on disk: which file each came from, and when."""

import json
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.checkpoints.home import disk_error, disk_errors
from bindlm.checkpoints.state import atomic_folder, load_state, save_state_atomic
from bindlm.errors import CheckpointError, ConfigError

VERSION = 1
"""Of the three files' layout; another one is refused, never guessed at."""
VECTORS, FAISS, ENTRIES = "vectors.safetensors", "index.faiss", "entries.json"

_FAISS_HEADER = struct.Struct("<4siqqqBiQ")
"""Of FAISS's flat index: "IxFI", width, rows, two fillers, is trained, metric, number of floats."""
_INNER_PRODUCT = 0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileStamp:
    """How a file looked when it was embedded."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of its last change, nanoseconds since 1970."""
    sha256: str = ""
    """Of its content; empty where it changed while it was read, which counts as changed next time."""


@dataclass(frozen=True)
class IndexEntry:
    """What one row is an embedding of."""

    key: str
    """Its name, unique in the index: for a file the path under the folder, with `/`."""
    modality: str
    """The sense: image, audio, …"""
    stamp: FileStamp = FileStamp(0, 0)


@dataclass(frozen=True)
class UnreadableEntry:
    """A file that could not be embedded, remembered so that it is not tried again until it changes."""

    key: str
    modality: str
    stamp: FileStamp
    reason: str
    """The message of its MediaError."""


@dataclass(frozen=True)
class Hit:
    """One result of a search."""

    key: str
    modality: str
    score: float
    """Cosine, -1 to 1."""


class EmbeddingIndex:
    """Joint embeddings with names, searched exactly by inner product (FAISS `IndexFlatIP`).

    An index never changes: `updated` gives another one, and `save` replaces the folder as a whole.

    Args:
        vectors: `(N, D_joint)` fp32, unit length.
        entries: one for each row, with different keys.
        fingerprint: of the weights and the preprocessing that made the vectors; vectors of two never mix.
        model: their name, for messages.
        unreadable: files that were tried in vain.
        version: of bindlm when `unreadable` was written.

    Raises:
        ConfigError: rows and entries that do not fit together.
    """

    def __init__(
        self,
        vectors: Tensor,
        entries: Sequence[IndexEntry],
        *,
        fingerprint: str,
        model: str = "",
        unreadable: Sequence[UnreadableEntry] = (),
        version: str = "",
    ) -> None:
        if vectors.ndim != 2 or vectors.dtype != torch.float32 or len(vectors) != len(entries):
            raise ConfigError(
                f"An index needs fp32 vectors (N, D) with one entry each, got {tuple(vectors.shape)} of "
                f"{vectors.dtype} and {len(entries)} entries."
            )
        if len({entry.key for entry in entries}) < len(entries):
            raise ConfigError("An index needs entries with different keys; one is there twice.")
        self.vectors = vectors
        self.entries = tuple(entries)
        self.fingerprint = fingerprint
        self.model = model
        self.unreadable = tuple(unreadable)
        self.version = version
        self._faiss: Any = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def dim(self) -> int:
        """D_joint."""
        return self.vectors.shape[1]

    def search(self, query: Tensor, top_k: int = 10, *, modality: str | None = None) -> list[list[Hit]]:
        """The nearest entries of each row.

        Args:
            query: `(B, D_joint)`, or `(D_joint,)` for one; brought to unit length, so that scores are cosines.
            top_k: how many; of fewer, all.
            modality: the only sense to look among.

        Returns:
            For each row its hits, nearest first; of equally near ones the lowest row first.

        Raises:
            ConfigError: a query of another width, or with a length of 0 or no length at all.
        """
        import numpy as np

        rows = torch.nn.functional.normalize(torch.atleast_2d(query.detach().float().cpu()), dim=-1)  # (B, D_joint)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ConfigError(f"A query must be (B, {self.dim}) as the index is, got {tuple(query.shape)}.")
        if not bool(torch.isfinite(rows).all() and (rows.norm(dim=-1) > 0.5).all()):
            raise ConfigError("A query must be finite and not all 0.")
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}.")
        among = [row for row, entry in enumerate(self.entries) if modality in (None, entry.modality)]
        if not among:
            return [[] for _ in rows]
        options = {}
        if len(among) < len(self):
            import faiss

            # FAISS's own keyword, which its types do not know.
            options = {"params": faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.array(among)))}  # type: ignore
        scores, found = self._searcher().search(rows.numpy(), min(top_k, len(among)), **options)  # (B, K)
        return [
            [Hit(self.entries[row].key, self.entries[row].modality, -score) for score, row in sorted(pairs)]
            for pairs in (zip((-one).tolist(), rows.tolist(), strict=True) for one, rows in zip(scores, found))
        ]

    def updated(
        self,
        *,
        drop: Collection[str] = (),
        add: Sequence[tuple[IndexEntry, Tensor]] = (),
        unreadable: Sequence[UnreadableEntry] | None = None,
        version: str | None = None,
    ) -> "EmbeddingIndex":
        """This index without some keys and with new rows; a key that is added replaces its old row.

        Args:
            drop: keys to leave out.
            add: entries with their `(D_joint,)` unit vectors.
            unreadable: in place of what is remembered; None keeps it.
            version: of bindlm that wrote `unreadable`.
        """
        gone = {*drop, *(entry.key for entry, _ in add)}
        kept = [row for row, entry in enumerate(self.entries) if entry.key not in gone]
        vectors = self.vectors if len(kept) == len(self) else self.vectors[kept]
        if add:
            vectors = torch.cat([vectors, torch.stack([vector.float().cpu() for _, vector in add])])
        entries = [*(self.entries[row] for row in kept), *(entry for entry, _ in add)]
        return self._like(vectors, entries, self.unreadable if unreadable is None else unreadable, version)

    def restamped(self, stamps: Mapping[str, FileStamp]) -> "EmbeddingIndex":
        """This index with other stamps for some keys: files that were touched and still hold what they held."""
        entries = [replace(entry, stamp=stamps.get(entry.key, entry.stamp)) for entry in self.entries]
        return self._like(self.vectors, entries, self.unreadable)

    def _like(
        self,
        vectors: Tensor,
        entries: Sequence[IndexEntry],
        unreadable: Sequence[UnreadableEntry],
        version: str | None = None,
    ) -> "EmbeddingIndex":
        index = EmbeddingIndex(
            vectors,
            entries,
            fingerprint=self.fingerprint,
            model=self.model,
            unreadable=unreadable,
            version=self.version if version is None else version,
        )
        if vectors is self.vectors:
            index._faiss = self._faiss  # which may be mapped: made anew it would be a copy in memory
        return index

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as a folder; a reader sees the old one or the new one, never a part.

        Raises:
            CheckpointError: the disk is full or not writable; what was there is as it was. A folder that is no index
                is never replaced.
        """
        path = Path(path)
        if path.exists() and not (path.is_dir() and ((path / ENTRIES).is_file() or not any(path.iterdir()))):
            raise CheckpointError(f"{path} is there and is no index; name another place")
        with atomic_folder(path) as folder:
            save_state_atomic(folder / VECTORS, {"vectors": self.vectors})
            self._write_faiss(folder / FAISS)
            content = {
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "model": self.model,
                "bindlm": self.version,
                "dim": self.dim,
                "files": {name: checksum(folder / name) for name in (VECTORS, FAISS)},
                "entries": [_as_list(entry) for entry in self.entries],
                "unreadable": [[*_as_list(entry), entry.reason] for entry in self.unreadable],
            }
            with disk_errors(path.parent):
                # ASCII: a name that is not UTF-8 holds halves of surrogate pairs, which only escapes can carry.
                (folder / ENTRIES).write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, fingerprint: str | None = None, model: str = ""
    ) -> "EmbeddingIndex":
        """Open a saved index; its vectors are mapped, not read.

        Args:
            path: the folder.
            fingerprint: of the embedder that will be searched with; None takes an index of any.
            model: the embedder's name, for the message.

        Raises:
            CheckpointError: there is none, a part is damaged or missing, or another model made it.
        """
        path = Path(path)
        if not path.is_dir() or not any(path.iterdir()):
            raise CheckpointError(f"{path} holds no index; it is made by searching its folder once")
        content = _read_entries(path)
        if fingerprint is not None and content["fingerprint"] != fingerprint:
            raise CheckpointError(
                f"{path} was made with another model ({content['model'] or 'unnamed'}, "
                f"{content['fingerprint'][:12]}; this is {model or 'unnamed'}, {fingerprint[:12]}); search with that "
                "model, name another index, or delete the folder to have it built anew"
            )
        for name in (VECTORS, FAISS):
            if not (path / name).is_file() or checksum(path / name) != content["files"][name]:
                raise _damaged(path, f"{name} is missing or not what was written")
        entries = content["entries"]
        try:
            vectors = load_state(path / VECTORS, expected={"vectors": (len(entries), content["dim"])})["vectors"]
            index = cls(
                vectors,
                entries,
                fingerprint=content["fingerprint"],
                model=content["model"],
                unreadable=content["unreadable"],
                version=content["bindlm"],
            )
        except (CheckpointError, ConfigError):
            raise _damaged(path, "its vectors and entries do not fit together") from None
        index._faiss = _read_faiss(path, len(entries), content["dim"])
        return index

    def _searcher(self) -> Any:
        if self._faiss is None:
            import faiss

            self._faiss = faiss.IndexFlatIP(self.dim)
            self._faiss.add(self.vectors.numpy())
        return self._faiss

    def _write_faiss(self, path: Path) -> None:
        import faiss

        try:
            faiss.write_index(self._searcher(), os.fspath(path))
        except RuntimeError:  # FAISS tells neither a full disk nor a missing permission apart
            raise disk_error(OSError(), path.parent) from None


def checksum(path: Path) -> int:
    """CRC-32 of a file: against a bad disk or a half-made copy, not against an enemy, and twice as fast as SHA-256.

    Raises:
        CheckpointError: the file cannot be read.
    """
    value = 0
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                value = zlib.crc32(chunk, value)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read; check its permissions and the disk") from error
    return value


def _as_list(entry: IndexEntry | UnreadableEntry) -> list[Any]:
    return [entry.key, entry.modality, entry.stamp.size, entry.stamp.mtime_ns, entry.stamp.sha256]


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the index {path} is damaged: {what}; delete the folder, and it is built anew")


def _read_entries(path: Path) -> dict[str, Any]:
    """The checked content of `entries.json`, with entries as objects."""
    try:
        content = json.loads((path / ENTRIES).read_text(encoding="ascii"))
    except FileNotFoundError:
        raise _damaged(path, f"{ENTRIES} is missing") from None
    except OSError:
        raise CheckpointError(f"{path / ENTRIES} cannot be read; check its permissions and the disk") from None
    except (ValueError, RecursionError):
        raise _damaged(path, f"{ENTRIES} is no JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("version"), int):
        raise _damaged(path, f"{ENTRIES} is not what was written")
    if content["version"] != VERSION:
        raise CheckpointError(
            f"the index {path} has version {content['version']}, and this bindlm reads {VERSION}; delete the folder, "
            "and it is built anew"
        )
    try:
        texts = [content["fingerprint"], content["model"], content["bindlm"]]
        if not all(isinstance(text, str) for text in texts) or set(content["files"]) != {VECTORS, FAISS}:
            raise TypeError
        if type(content["dim"]) is not int or content["dim"] < 1:
            raise TypeError
        content["entries"] = [IndexEntry(*_parsed(row)) for row in content["entries"]]
        content["unreadable"] = [UnreadableEntry(*_parsed(row[:-1]), _text(row[-1])) for row in content["unreadable"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise _damaged(path, f"{ENTRIES} is not what was written") from None
    return content


def _parsed(row: Iterable[Any]) -> tuple[str, str, FileStamp]:
    key, modality, size, mtime_ns, sha256 = row
    if type(size) is not int or type(mtime_ns) is not int:
        raise TypeError
    return _text(key), _text(modality), FileStamp(size, mtime_ns, _text(sha256))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_faiss(path: Path, rows: int, dim: int) -> Any:
    """The FAISS index, mapped, once its header is known to be that of a flat one of the right size.

    FAISS trusts the sizes and the type that a file names; ours can be only one.
    """
    file = path / FAISS
    with file.open("rb") as stream:
        header = stream.read(_FAISS_HEADER.size)
    if len(header) < _FAISS_HEADER.size or file.stat().st_size != _FAISS_HEADER.size + 4 * rows * dim:
        raise _damaged(path, f"{FAISS} has another size than its entries")
    kind, held_dim, held_rows, _, _, _, metric, floats = _FAISS_HEADER.unpack(header)
    if (kind, held_dim, held_rows, metric, floats) != (b"IxFI", dim, rows, _INNER_PRODUCT, rows * dim):
        raise _damaged(path, f"{FAISS} is no flat index of these entries")
    import faiss

    try:
        return faiss.read_index(os.fspath(file), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:
        raise _damaged(path, f"{FAISS} cannot be read") from None
