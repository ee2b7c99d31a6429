"""Whether a cache is what was written, and what it is."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching import journal as journals
from bindlm.caching.lists import IndexLists, empty_bytes, open_index
from bindlm.caching.shards import ValueFiles, known_ids
from bindlm.caching.training import is_inverted_file, sample_rows
from bindlm.checkpoints.state import sha256_of
from bindlm.errors import BindLMError, CheckpointError
from bindlm.space.cache_folder import removed_rows
from bindlm.space.cache_format import CONFIG, CacheRecord, is_graph, read_record

SAMPLE = 256
"""Entries that are looked up by their own vectors."""
_MAY_MISS = 0.05
"""Share of them that codes which leave something out may lose; an index of other vectors loses nearly all."""
_SAME = 2e-3
"""Cosines that fp16 vectors of unit length cannot tell apart."""


@dataclass
class Verification:
    """What was looked at, and what is wrong."""

    files: int = 0
    bytes: int = 0
    entries: int = 0
    sampled: int = 0
    """Entries that were looked up by their own vectors."""
    found: int = 0
    """Those that came first, or beside another of the same vector."""
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_cache(cache: str | os.PathLike[str], *, sample: int = SAMPLE) -> Verification:
    """Read all files of a cache: checksums, ids, vectors, that the index holds each row once, and finds it.

    Args:
        cache: the folder.
        sample: entries that are looked up by their own vectors.

    Raises:
        CheckpointError: there is no cache, or its record is damaged.
    """
    folder = Path(cache)
    record = read_record(folder)
    report = Verification(entries=record.num_entries)
    for file in record.files():
        report.files += 1
        report.bytes += file.bytes
        report.problems += _file_problems(folder, file.file, file.bytes, file.sha256)
    if report.problems:  # what is damaged says nothing about the rest
        return report
    try:
        removed = removed_rows(folder, record)
        values = ValueFiles(folder, record.values, removed)
        report.problems += _value_problems(values, record)
        if record.entries:
            known_ids(folder, record.entries, removed)
        report.problems += _index_problems(folder, record, values)
        if not report.problems:
            _look_up(folder, record, values, sample, report)
    except BindLMError as error:
        report.problems.append(str(error))
    return report


def _file_problems(folder: Path, name: str, size: int, checksum: str) -> Iterator[str]:
    path = folder / name
    try:
        held = path.stat().st_size
    except OSError:
        yield f"{name} is missing"
        return
    if held != size:
        yield f"{name} has {held:,} bytes, expected {size:,}"
    elif sha256_of(path) != checksum:
        yield f"{name} is not what was written: its SHA-256 differs"


def _value_problems(values: ValueFiles, record: CacheRecord) -> Iterator[str]:
    if (values.num_rows, values.dim) != (record.num_rows, record.dim):
        yield f"values are {(values.num_rows, values.dim)}, expected {(record.num_rows, record.dim)}"
        return
    for rows, vectors in values.chunks():
        lengths = np.linalg.norm(vectors, axis=1)
        if not np.all(np.abs(lengths - 1) < 0.01):  # what is no number too
            yield f"row {int(rows[np.argmin(np.abs(lengths - 1) < 0.01)])} is not of unit length"
            return


def _index_problems(folder: Path, record: CacheRecord, values: ValueFiles) -> Iterator[str]:
    seen = np.zeros(values.num_rows, dtype=bool)
    count = 0
    for ids in _index_ids(folder, record):
        if len(ids) and not (ids.min() >= 0 and ids.max() < values.num_rows):
            yield f"{record.index.file} names rows that are not there"
            return
        seen[ids] = True
        count += len(ids)
    if not is_graph(record.index.key):
        seen[values.removed] ^= True  # a removed row that is seen is as wrong as one that is not
    if count != record.index.rows or not seen.all():
        yield f"{record.index.file} holds {count:,} rows, and not each of the {record.num_entries:,} entries once"


def _index_ids(folder: Path, record: CacheRecord) -> Iterator[NDArray[np.int64]]:
    import faiss

    path = folder / record.index.file
    index = open_index(path)
    if is_graph(record.index.key):
        yield np.arange(index.ntotal)
        return
    if index.d != record.dim or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise CheckpointError(f"{record.index.file} is an index of another width or measure")
    if is_inverted_file(record.index.key):
        inner = faiss.extract_index_ivf(index)
        num_lists, code_size = int(inner.nlist), int(inner.code_size)
        yield from IndexLists(path, empty_bytes(index), num_lists, code_size).ids()
    else:
        flat: Any = faiss.downcast_index(index)
        yield faiss.vector_to_array(flat.id_map)


def _look_up(folder: Path, record: CacheRecord, values: ValueFiles, sample: int, report: Verification) -> None:
    """Search for entries by their own vectors, as a model would."""
    import torch

    from bindlm.space.cache_folder import StoredVisualCache

    rows = sample_rows(values.num_rows, sample)
    rows = rows[~np.isin(rows, values.removed)]
    queries = values.pick(rows).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cosines, found = StoredVisualCache.open(folder).search(torch.from_numpy(queries))
    is_found = (found[:, 0].numpy() == rows) | (cosines[:, 0].numpy() >= 1 - _SAME)
    report.sampled, report.found = len(rows), int(is_found.sum())
    if report.found < (1 - _MAY_MISS) * len(rows):
        lost = int(rows[np.argmin(is_found)])
        report.problems.append(
            f"{len(rows) - report.found} of {len(rows)} sampled entries are not found by their own vectors, such as "
            f"row {lost}; build the index anew: bindlm cache add … --reindex, or bindlm cache merge {folder} -o NEW"
        )


def describe_cache(cache: str | os.PathLike[str]) -> dict[str, Any]:
    """What a cache is, for people and for JSON: sizes, encoder, index, settings, and whether something is unfinished.

    Raises:
        CheckpointError: there is no cache, or its record is damaged.
    """
    import json

    folder = Path(cache)
    journal = journals.read_journal(folder)
    unfinished = None
    if journal is not None and not journals.is_done(folder, journal):
        unfinished = {
            "action": journal.plan.action,
            "source": journal.plan.source,
            "rows": journal.plan.num_rows,
            "rows_written": sum(file.rows for file in journal.values),
            "index": journal.choice["key"] if journal.choice else None,
        }
    if unfinished is not None and not (folder / CONFIG).is_file():
        return {"path": str(folder), "unfinished": unfinished}
    record = read_record(folder)
    return {
        "path": str(folder),
        "num_entries": record.num_entries,
        "removed": record.removed.rows if record.removed else 0,
        "dim": record.dim,
        "encoder": record.encoder,
        "fingerprint": record.fingerprint,
        "bytes": {
            "index": record.index.bytes,
            "values": sum(file.bytes for file in record.values),
            "entries": sum(file.bytes for file in record.entries),
        },
        "files": len(record.files()) + 1,
        "unfinished": unfinished,
        **{
            name: value
            for name, value in json.loads(record.to_json()).items()
            if name in ("index", "settings", "notice")
        },
    }
