"""Small sources, kinds of index that are chosen by hand, and what is compared of a cache folder."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FINGERPRINT = "0123456789abcdef"


@dataclass(frozen=True)
class Choice:
    """What `choose_index` gives, made by hand."""

    key: str = "IDMap2,Flat"
    search: dict = field(default_factory=dict)
    oversampling: int = 1
    num_training: int = 500
    reason: str = "chosen by the test"


LISTS = Choice("IVF8,SQ8", {"nprobe": 8}, 4)
GRAPH = Choice("HNSW8,SQ8", {"efSearch": 64}, 4)


def vectors(rows, dim=16, seed=0):
    """Rows of random length and direction."""
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def save_embeddings(folder, counts, *, dim=16, dtype=np.float32, seed=0):
    """Files as clip-retrieval writes them, less the metadata; all rows of all files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = vectors(sum(counts), dim, seed)
    start = 0
    for number, count in enumerate(counts):
        np.save(folder / f"img_emb_{number}.npy", rows[start : start + count].astype(dtype))
        start += count
    return rows


def unit(rows):
    """At unit length."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def files_of(folder):
    """Every file of a folder with its bytes, hidden ones too."""
    folder = Path(folder)
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}
