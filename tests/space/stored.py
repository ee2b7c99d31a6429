"""Small visual caches on disk."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.space import CacheRecord, StoredVisualCache, VisualCache, VisualCacheConfig
from bindlm.space.cache_writing import write_cache_folder

from ..tiny import unit_rows

FINGERPRINT = "0123456789abcdef"
DIM = 32


def half(vectors: Tensor) -> Tensor:
    """What is left of vectors on disk, at unit length."""
    return torch.nn.functional.normalize(vectors.half().float(), dim=-1)


def written(folder: Path, vectors: Tensor | None = None, **settings: Any) -> CacheRecord:
    """A cache folder with names for each row, in shards of a few rows."""
    vectors = unit_rows(60, DIM, seed=1) if vectors is None else vectors
    ids = [f"id-{row}" for row in range(len(vectors))]
    captions = [f"picture {row}" if row % 3 else None for row in range(len(vectors))]
    sources = [f"http://pictures/{row}.jpg" for row in range(len(vectors))]
    given = {"ids": ids, "captions": captions, "sources": sources, "rows_in_shard": 25}
    return write_cache_folder(
        folder, vectors.numpy(), **{**given, "fingerprint": FINGERPRINT, "encoder": "tiny", **settings}
    )


def opened(folder: Path, vectors: Tensor | None = None, **settings: Any) -> StoredVisualCache:
    written(folder, vectors)
    return StoredVisualCache.open(folder, **settings)


def in_memory(vectors: Tensor, **settings: Any) -> VisualCache:
    cache = VisualCache(VisualCacheConfig(num_entries=vectors.shape[0], dim=vectors.shape[1], **settings))
    cache.keys.copy_(vectors)
    return cache
