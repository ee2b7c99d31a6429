"""Where the pictures of a cache come from: told by what a path holds, or said."""

import os
from pathlib import Path

from bindlm.caching.arrays import ArraySource, Columns, ParquetSource, numbered_files
from bindlm.caching.chunks import CacheSource
from bindlm.caching.stores import StoreSource
from bindlm.errors import ConfigError
from bindlm.folder import SUFFIXES

IMAGE_EMBEDDINGS, METADATA = "img_emb", "metadata"
"""Folders of clip-retrieval's output."""
STORE = "store.json"
_PARQUET, _NPY = ".parquet", ".npy"


def source_kind(path: str | os.PathLike[str]) -> str:
    """What a path holds: `features`, `clip-retrieval`, `parquet`, `npy`, or `pictures` where it is another folder.

    Raises:
        ConfigError: there is nothing there, or a file that no cache is made of.
    """
    path = Path(path)
    if path.is_dir():
        if (path / STORE).is_file():
            return "features"
        if (path / IMAGE_EMBEDDINGS).is_dir():
            return "clip-retrieval"
        suffixes = {os.path.splitext(name)[1].lower() for name in os.listdir(path) if not name.startswith(".")}
        if suffixes & set(SUFFIXES["image"]):
            return "pictures"
        return "npy" if _NPY in suffixes else "parquet" if _PARQUET in suffixes else "pictures"
    if path.is_file() and path.suffix in (_NPY, _PARQUET):
        return path.suffix[1:]
    what = "is a file that is neither .npy nor .parquet" if path.exists() else "is not there"
    raise ConfigError(
        f"{path} {what}; give a folder of pictures, a feature store, clip-retrieval's output, or .npy or .parquet "
        "files of embeddings"
    )


def open_embeddings(
    path: str | os.PathLike[str],
    metadata: str | os.PathLike[str] | None = None,
    *,
    embedding_column: str | None = None,
    columns: Columns = (None, None, None),
) -> CacheSource:
    """Embeddings that are there already.

    Args:
        path: a feature store; clip-retrieval's folder, or its `img_emb`; `.npy` or Parquet, a file or a folder.
        metadata: Parquet with the names of the rows of `.npy` files, a file or a folder of as many files.
        embedding_column: of Parquet; None takes a usual one.
        columns: of ids, captions and sources; None takes usual ones.

    Raises:
        ConfigError: nothing of the kind is there, or files do not fit together.
        CheckpointError: a feature store is unfinished or damaged.
    """
    path, kind = Path(path), source_kind(path)
    if kind == "features":
        return StoreSource(path)
    if kind == "clip-retrieval":
        metadata = path / METADATA if metadata is None and (path / METADATA).is_dir() else metadata
        path, kind = path / IMAGE_EMBEDDINGS, "npy"
    elif kind == "npy" and metadata is None and path.name == IMAGE_EMBEDDINGS and (path.parent / METADATA).is_dir():
        metadata = path.parent / METADATA
    if kind == "parquet":
        if metadata is not None:
            raise ConfigError(f"{path} is Parquet, which holds its own names; --metadata goes with .npy files")
        return ParquetSource(_files(path, _PARQUET), embedding_column, columns)
    if kind == "npy":
        return ArraySource(_files(path, _NPY), _files(Path(metadata), _PARQUET) if metadata else (), columns)
    raise ConfigError(f"{path} holds no embeddings: no {STORE}, no {IMAGE_EMBEDDINGS}, no .npy and no .parquet files")


def _files(path: Path, suffix: str) -> list[Path]:
    return numbered_files(path, suffix) if path.is_dir() else [path]
