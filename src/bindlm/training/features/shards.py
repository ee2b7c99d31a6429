"""Files of embeddings: what is in one, what it is called, and that a damaged one is found out."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from bindlm import __version__
from bindlm.checkpoints import load_state, save_state_atomic
from bindlm.errors import CheckpointError
from bindlm.space.index import checksum
from bindlm.training.features.digests import DIGEST_BYTES, as_rows
from bindlm.training.features.record import AGAIN, KEYS, MEND, SHARDS, FileRecord, ShardRecord, StoreRecord

_METADATA = "bindlm"
"""The one key of a shard's metadata: safetensors writes several in an order that differs from run to run."""


@dataclass(frozen=True)
class Shard:
    """The media of one file."""

    embedding: NDArray[np.float16]
    """`(N, V, D_joint)`, unit length; memory-mapped where it was read."""
    content: NDArray[np.uint8]
    """`(N, 16)`, digests of the media."""
    unreadable: Mapping[str, str]
    """Digest, in hexadecimal, of each medium that cannot be embedded, and why."""
    version: str = __version__
    """Of bindlm that found it unreadable; another one tries again."""


def shard_name(record: StoreRecord, modality: str, contents: Iterable[bytes]) -> str:
    """The name of a file: a function of the encoder, the views and the media in it."""
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    hasher.update(json.dumps([record.fingerprint, record.views, modality], sort_keys=True).encode())
    for content in contents:
        hasher.update(content)
    return f"{SHARDS}/{hasher.hexdigest()}.safetensors"


def write_shard(path: Path, name: str, shard: Shard, modality: str, *, is_open: bool) -> ShardRecord:
    """Write a file of embeddings.

    Raises:
        CheckpointError: the disk refuses.
    """
    metadata = {_METADATA: json.dumps({"unreadable": dict(shard.unreadable), "version": shard.version})}
    tensors = {"embedding": torch.from_numpy(shard.embedding), "content": torch.from_numpy(shard.content)}
    save_state_atomic(path / name, tensors, metadata=metadata)
    return ShardRecord(**vars(file_record(path, name, len(shard.content))), modality=modality, is_open=is_open)


def read_shard(path: Path, record: StoreRecord, file: FileRecord) -> Shard:
    """A file of embeddings, memory-mapped.

    Raises:
        CheckpointError: it is missing, damaged or not as long as it was.
    """
    shapes = {"embedding": (file.rows, record.num_views, record.dim), "content": (file.rows, DIGEST_BYTES)}
    try:
        state = load_state(path / file.file, expected=shapes)
        with safe_open(path / file.file, framework="pt") as opened:
            described: dict[str, Any] = json.loads((opened.metadata() or {})[_METADATA])
        if state["embedding"].dtype != torch.float16 or state["content"].dtype != torch.uint8:
            raise TypeError
        return Shard(
            state["embedding"].numpy(), state["content"].numpy(), dict(described["unreadable"]), described["version"]
        )
    except (CheckpointError, SafetensorError, KeyError, TypeError, ValueError):
        raise damaged(path, file) from None


def damaged(path: Path, file: FileRecord) -> CheckpointError:
    """The error about a file of a store that is not what was written."""
    if not (path / file.file).is_file():
        return CheckpointError(f"the feature store {path} lacks {file.file}; {AGAIN}, which makes it anew")
    return CheckpointError(f"the feature store {path} is damaged: {file.file} is not what was written; {MEND}")


def write_keys(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileRecord:
    """Write a file of keys, named by what is in it.

    Raises:
        CheckpointError: the disk refuses.
    """
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(tensors):
        hasher.update(tensors[name].numpy().tobytes())
    name = f"{KEYS}/{hasher.hexdigest()}.safetensors"
    save_state_atomic(path / name, tensors)
    return file_record(path, name, len(tensors["ends"]))


def file_record(path: Path, name: str, rows: int) -> FileRecord:
    """How a file that has just been written is to be recognised."""
    return FileRecord(name, rows, (path / name).stat().st_size, checksum(path / name))


def contents_of(shard: Shard) -> NDArray[np.uint8]:
    """Digests `(N + U, 16)` of all media of a shard, those that cannot be embedded last."""
    return np.concatenate([shard.content, as_rows([bytes.fromhex(digest) for digest in shard.unreadable])])
