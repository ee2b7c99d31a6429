"""Changing a cache that is there: rows go, caches become one. The old cache stays until the new one is whole."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bindlm.caching import journal as journals
from bindlm.caching.build import check_fits, finish, finished, keep_whole_files
from bindlm.caching.indexing import Budget, make_index
from bindlm.caching.journal import Journal, Plan
from bindlm.caching.lists import IndexLists, empty_bytes, open_index, write_flat, write_lists
from bindlm.caching.shards import Ids, ValueFiles, id_batches, removed_rows
from bindlm.caching.tables import parquet
from bindlm.caching.training import check_key, is_inverted_file
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.state import replacing_file, sha256_of
from bindlm.errors import ConfigError
from bindlm.media.names import printable
from bindlm.space.cache_format import (
    CacheFile,
    CacheIndexFile,
    CacheRecord,
    entries_name,
    index_name,
    is_graph,
    read_record,
    removed_name,
    values_name,
)
from bindlm.space.cache_writing import write_removed

_SHOWN = 5
"""Ids that a message names."""


def remove_from_cache(ids: Iterable[str], cache: str | os.PathLike[str], *, progress: bool = True) -> CacheRecord:
    """Take entries out of a cache: they leave the index (a graph keeps them as waypoints), and are listed as gone.

    Args:
        ids: of entries, all of which must be there.
        cache: the folder.
        progress: whether to say that another writer is waited for.

    Raises:
        ConfigError: an id that is not there, or nothing would be left.
        CheckpointError: the disk refuses; the cache is as it was.
    """
    wanted = dict.fromkeys(ids)
    if not wanted:
        raise ConfigError("no ids are given; name the entries that are to go")
    parquet()
    read_record(cache)
    with journals.writing(cache, "changing", progress=progress) as folder:
        journals.check_free(folder, "removing entries")
        journals.clear(folder)
        base = read_record(folder)
        check_key(base.index.key)
        before = removed_rows(folder, base)
        gone = _rows_of(wanted, folder, base, before)
        removed = np.union1d(before, gone)
        if len(removed) == base.num_rows:
            raise ConfigError(f"nothing would be left of {cache}; delete the folder instead")
        generation = journals.next_generation(folder)
        index = _index_without(folder, base, removed, generation)
        named = write_removed(folder / removed_name(generation), removed)
        record = dataclasses.replace(base, num_entries=base.num_rows - len(removed), index=index, removed=named)
        return finish(folder, Journal(Plan("remove", "", "", 0, base.dim, "")), record)


def _rows_of(
    wanted: dict[str, None], folder: Path, base: CacheRecord, removed: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Rows of ids. The entries are read through; only the ids that are wanted are kept."""
    rows: dict[str, int] = {}
    for first, (texts,) in id_batches(folder, base.entries):
        is_kept = ~np.isin(np.arange(first, first + len(texts)), removed)
        rows |= {text: first + place for place, text in enumerate(texts) if text in wanted and is_kept[place]}
    missing = [each for each in wanted if each not in rows]
    if missing:
        shown = ", ".join(repr(printable(each)) for each in missing[:_SHOWN]) + (
            ", …" if len(missing) > _SHOWN else ""
        )
        raise ConfigError(f"{len(missing)} of {len(wanted)} ids are not in {folder}: {shown}; nothing was removed")
    return np.array(sorted(rows.values()), dtype=np.int64)


def _index_without(folder: Path, base: CacheRecord, removed: NDArray[np.int64], generation: int) -> CacheIndexFile:
    if is_graph(base.index.key):
        return base.index  # its reader leaves them out
    path = folder / index_name(generation)
    with disk_errors(folder), replacing_file(path) as temporary:
        if is_inverted_file(base.index.key):
            import faiss

            index = open_index(folder / base.index.file)
            empty, inner = empty_bytes(index), faiss.extract_index_ivf(index)
            lists = IndexLists(folder / base.index.file, empty, int(inner.nlist), int(inner.code_size), removed)
            rows = write_lists(temporary, empty, index, [lists])
        else:
            values = ValueFiles(folder, base.values, removed)
            rows = values.num_kept
            write_flat(temporary, base.dim, values.chunks(), rows)
        size, checksum = temporary.stat().st_size, sha256_of(temporary)
    return dataclasses.replace(base.index, file=path.name, rows=rows, bytes=size, sha256=checksum)


def merge_caches(
    caches: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    budget: Budget | None = None,
    is_fresh: bool = False,
    progress: bool = True,
) -> CacheRecord:
    """Make one cache of several, such as the shards that many machines embedded, or go on with that.

    Values and names are linked where the file system can, else copied; the index is chosen and trained anew. Settings
    and notices are those of the first, and notices of others are added.

    Args:
        caches: folders, at least one, of the same encoder.
        out: a new or empty folder, or one with an unfinished merge.
        budget: what the index may cost.
        is_fresh: whether what an unfinished merge made is thrown away first.
        progress: whether to say on stderr what is done.

    Raises:
        ConfigError: an id that two of them have, other widths, or a folder that is in use.
        CheckpointError: other encoders, a damaged cache, or the disk refuses.
    """
    parquet()
    if not caches:
        raise ConfigError("no caches are given; name those that are to become one")
    budget = budget or Budget()
    folders = [Path(os.path.abspath(cache)) for cache in caches]
    records = [read_record(folder) for folder in folders]
    base = records[0]
    for folder, record in zip(folders, records, strict=True):
        check_fits(base, str(folder), record.dim, record.fingerprint, str(folders[0]))
        if not record.entries:
            raise ConfigError(f"the entries of {folder} have no ids, so they cannot be merged; build it anew")
    if Path(os.path.abspath(out)) in folders:
        raise ConfigError(f"{out} is one of the caches that are merged; name a new folder")
    digest = hashlib.sha256("".join(map(journals.record_digest, folders)).encode()).hexdigest()
    rows = sum(record.num_rows for record in records)
    plan = Plan("merge", ", ".join(map(str, caches)), digest, rows, base.dim, json.dumps({"index": budget.as_json()}))
    with journals.writing(out, "building", progress=progress) as folder:
        if (done := finished(folder, is_fresh)) is not None:
            return done
        others = {each.name for each in folder.iterdir()} - {journals.WORK}
        if others and journals.read_journal(folder) is None:
            raise ConfigError(f"{out} is not empty; name a new folder for the merged cache")
        journal = journals.start(folder, plan, is_fresh=is_fresh)
        removed = _adopt(folder, journal, folders, records)
        make_index(folder, journal, journal.values, removed, budget, progress)
        assert journal.index is not None
        notices = list(dict.fromkeys(record.notice for record in records if record.notice))
        gone = write_removed(folder / removed_name(journal.generation), removed) if len(removed) else None
        record = dataclasses.replace(
            base,
            num_entries=rows - len(removed),
            index=journal.index,
            values=tuple(journal.values),
            entries=tuple(journal.entries),
            removed=gone,
            notice="\n".join(notices) or None,
        )
        return finish(folder, journal, record)


def _adopt(
    folder: Path, journal: Journal, folders: Sequence[Path], records: Sequence[CacheRecord]
) -> NDArray[np.int64]:
    """Take over the files of other caches under new names, and say which rows are gone.

    Raises:
        ConfigError: an id that two of them have.
    """
    ids, removed, first = Ids(), [np.zeros(0, dtype=np.int64)], 0
    for source, record in zip(folders, records, strict=True):
        gone = removed_rows(source, record)
        for start, (texts,) in id_batches(source, record.entries):
            rows = np.arange(start, start + len(texts), dtype=np.int64)
            is_kept = ~np.isin(rows, gone)
            kept = [text for text, is_here in zip(texts, is_kept, strict=True) if is_here]
            ids.add(kept, rows[is_kept] + first, str(source))
        removed.append(gone + first)
        first += record.num_rows
    keep_whole_files(folder, journal)
    pairs = [(source, *pair) for source, record in zip(folders, records, strict=True)
             for pair in zip(record.values, record.entries, strict=True)]  # fmt: skip
    for number in range(len(journal.values), len(pairs)):
        source, values, entries = pairs[number]
        journal.values.append(_taken(source, values, folder, values_name(number)))
        journal.entries.append(_taken(source, entries, folder, entries_name(number)))
        journal.save(folder)
    return np.concatenate(removed)


def _taken(source: Path, file: CacheFile, folder: Path, name: str) -> CacheFile:
    """A file of another cache under a new name; files of caches never change, so both may have the same."""
    if not journals.is_whole(source, file):
        raise ConfigError(f"{source / file.file} is missing or cut off; build that cache anew")
    with disk_errors(folder), replacing_file(folder / name) as temporary:
        try:
            os.link(source / file.file, temporary)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source / file.file, temporary)
    return dataclasses.replace(file, file=name)
