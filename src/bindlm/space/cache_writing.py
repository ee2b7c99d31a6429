"""The files of a visual cache, written one at a time, whole or not at all."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints.home import disk_error, disk_errors
from bindlm.checkpoints.state import replacing_file, sha256_of
from bindlm.errors import ConfigError
from bindlm.space.cache_format import (
    CacheFile,
    CacheIndexFile,
    CacheRecord,
    CacheSettings,
    entries_name,
    index_name,
    removed_name,
    values_name,
    write_record,
)

if TYPE_CHECKING:
    import numpy as np

ROWS_IN_GROUP = 4096
"""Rows of entries that are read together when one of them is asked for."""


def write_values(path: Path, chunks: "Iterable[np.ndarray]", num_rows: int, dim: int) -> CacheFile:
    """Write vectors as they come, as one `.npy` of fp16.

    Args:
        path: `values-<n>.npy`.
        chunks: `(n, D_joint)` each, unit length; together `num_rows`.

    Raises:
        ConfigError: the chunks do not fit together, or hold a vector that is not of unit length.
        CheckpointError: the disk is full or not writable.
    """
    import numpy as np

    header = {"descr": "<f2", "fortran_order": False, "shape": (num_rows, dim)}
    written = 0
    with disk_errors(path.parent), replacing_file(path) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for chunk in chunks:
            _check_vectors(chunk, dim)
            stream.write(np.ascontiguousarray(chunk, dtype="<f2").data)
            written += len(chunk)
        if written != num_rows:
            raise ConfigError(f"{path.name} was to have {num_rows} rows, and {written} came.")
    return _file_record(path, num_rows)


def write_entries(
    path: Path,
    ids: Sequence[str],
    captions: Sequence[str | None] | None = None,
    sources: Sequence[str | None] | None = None,
) -> CacheFile:
    """Write what rows are called, as one Parquet file.

    Raises:
        ConfigError: lists of different lengths.
        CheckpointError: the disk is full or not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": ids, "caption": captions, "source": sources}
    nothing = [None] * len(ids)
    try:
        table = pa.table(
            {name: pa.array(nothing if given is None else given, pa.string()) for name, given in columns.items()}
        )
    except pa.ArrowInvalid:
        raise ConfigError("ids, captions and sources must be texts, one of each for a row.") from None
    with disk_errors(path.parent), replacing_file(path) as temporary:
        pq.write_table(table, temporary, row_group_size=ROWS_IN_GROUP, compression="zstd")
    return _file_record(path, len(ids))


def write_removed(path: Path, rows: "np.ndarray") -> CacheFile:
    """Write which rows are gone: whole numbers, each once.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    import numpy as np

    rows = np.unique(np.asarray(rows, dtype="<i8"))
    with disk_errors(path.parent), replacing_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, rows)
    return _file_record(path, len(rows))


def write_index(
    path: Path, index: Any, key: str, *, search: dict[str, int] | None = None, oversampling: int = 1
) -> CacheIndexFile:
    """Write a FAISS index whose ids are row numbers.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    import faiss

    with disk_errors(path.parent), replacing_file(path) as temporary:
        try:
            faiss.write_index(index, os.fspath(temporary))
        except RuntimeError:  # FAISS tells neither a full disk nor a missing permission apart
            raise disk_error(OSError(), path.parent) from None
    written = _file_record(path, index.ntotal)
    return CacheIndexFile(**vars(written), key=key, search=dict(search or {}), oversampling=oversampling)


def write_cache_folder(
    out: str | os.PathLike[str],
    vectors: "np.ndarray",
    ids: Sequence[str] | None = None,
    captions: Sequence[str | None] | None = None,
    sources: Sequence[str | None] | None = None,
    *,
    fingerprint: str,
    encoder: str = "",
    index_key: str = "IDMap2,Flat",
    search: dict[str, int] | None = None,
    oversampling: int = 1,
    rows_in_shard: int = 1 << 20,
    removed: Sequence[int] = (),
    settings: CacheSettings | None = None,
    notice: str | None = None,
) -> CacheRecord:
    """Make a cache of vectors that fit in memory; `bindlm.caching.build_cache` makes one of those that do not.

    Args:
        out: a new or empty folder.
        vectors: `(N, D_joint)`, unit length.
        ids, captions, sources: one for each row; without ids there are no entries.
        fingerprint, encoder: of the picture tower that made the vectors.
        index_key: for FAISS's factory; an index that has to be trained is trained on all rows.
        search, oversampling: see `CacheIndexFile`.
        removed: rows that are in the files and not in the index.

    Raises:
        ConfigError: vectors that are not of unit length, or lists that do not fit.
        CheckpointError: the disk is full or not writable.
    """
    import faiss
    import numpy as np

    folder = Path(out)
    vectors = np.ascontiguousarray(vectors, dtype="float32")
    if vectors.ndim != 2 or len(vectors) == 0:
        raise ConfigError(f"vectors must be (N, D) with at least one row, got {vectors.shape}.")
    dim = vectors.shape[1]
    values, entries = [], []
    for number, start in enumerate(range(0, len(vectors), rows_in_shard)):
        rows = slice(start, start + rows_in_shard)
        shard = vectors[rows]
        values.append(write_values(folder / values_name(number), [shard], len(shard), dim))
        if ids is not None:
            named = (None if each is None else each[rows] for each in (captions, sources))
            entries.append(write_entries(folder / entries_name(number), ids[rows], *named))
    kept = np.setdiff1d(np.arange(len(vectors)), np.asarray(removed, dtype="int64"))
    index = faiss.index_factory(dim, index_key, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(vectors[kept])
    index.add_with_ids(vectors[kept], kept)
    record = CacheRecord(
        num_entries=len(kept),
        dim=dim,
        fingerprint=fingerprint,
        encoder=encoder,
        index=write_index(folder / index_name(0), index, index_key, search=search, oversampling=oversampling),
        values=tuple(values),
        entries=tuple(entries),
        removed=write_removed(folder / removed_name(0), np.asarray(removed)) if len(removed) else None,
        settings=settings or CacheSettings(),
        notice=notice,
    )
    write_record(folder, record)
    return record


def _file_record(path: Path, rows: int) -> CacheFile:
    return CacheFile(path.name, rows, path.stat().st_size, sha256_of(path))


def _check_vectors(vectors: "np.ndarray", dim: int) -> None:
    import numpy as np

    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ConfigError(f"Vectors must be (n, {dim}), got {vectors.shape}.")
    lengths = np.linalg.norm(vectors.astype("float32"), axis=1)
    if not bool(np.all(np.abs(lengths - 1) < 0.01)):  # false for what is no number, too
        raise ConfigError("Vectors of a cache must be finite and of unit length; normalise them first.")
