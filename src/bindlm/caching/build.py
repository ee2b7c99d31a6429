"""Building a visual cache of any size in bounded memory: stopped or killed at any moment, the next run goes on.

from bindlm.caching import build_cache, open_embeddings

source = open_embeddings("laion/img_emb")
build_cache(source, "cache", fingerprint=embedder.fingerprint_of("image"), encoder="ViT-B/32")

1. The source's rows become files of fp16 values and files of names, `ROWS_A_FILE` rows each.
2. The index is trained on a sample of the values, read back from these files.
3. Parts of the values are coded, and the parts become the index, list by list.
4. `config.json` is replaced: only now is there a new cache.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bindlm.caching import journal as journals
from bindlm.caching.choice import FLAT
from bindlm.caching.chunks import CacheSource, Chunk, Rest, exactly
from bindlm.caching.indexing import Budget, make_index
from bindlm.caching.journal import WORK, Journal, Plan
from bindlm.caching.shards import ROWS_A_FILE, Ids, id_batches, known_ids, removed_rows, write_shard
from bindlm.caching.tables import parquet
from bindlm.checkpoints.notice import say
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache_format import (
    CONFIG,
    MODEL_TYPE,
    CacheRecord,
    CacheSettings,
    read_record,
    write_record,
)


def build_cache(
    source: CacheSource,
    out: str | os.PathLike[str],
    *,
    fingerprint: str,
    encoder: str = "",
    budget: Budget | None = None,
    settings: CacheSettings | None = None,
    notice: str | None = None,
    is_fresh: bool = False,
    replaces: bool = False,
    progress: bool = True,
) -> CacheRecord:
    """Make a cache folder of a source, or go on with one that was stopped.

    Memory: a few chunks of 4,096 rows, the trained index without rows, the sample it is trained on in fp16, and 24
    bytes an entry for the ids. Disk: 2 bytes a number, the names, and the index twice while it is put together.

    Args:
        source: rows in a fixed order.
        out: a new or empty folder, one with an unfinished build, or with ``replaces`` a cache.
        fingerprint: of the picture tower that made the vectors, `Embedder.fingerprint_of("image")`.
        encoder: its name.
        budget: what the index may cost.
        settings: how the cache is consulted where nobody says otherwise.
        notice: what a user must be told, such as a licence.
        is_fresh: whether what an unfinished build made is thrown away first.
        replaces: whether a cache that is there makes way for the new one, once that is whole.
        progress: whether to say on stderr what is done.

    Raises:
        ConfigError: rows that no cache can hold (not finite, zero, an id twice), a source that is not as it was when
            an unfinished build began, or a folder that is in use.
        CheckpointError: the disk is full or refuses. What is done stays, and an old cache is as it was.
    """
    parquet()  # before hours of work
    budget = budget or Budget()
    plan = Plan(
        "build",
        source.name,
        source.digest(),
        source.num_rows,
        source.dim,
        json.dumps({"fingerprint": fingerprint, "encoder": encoder, "notice": notice, "index": budget.as_json(),
                    "settings": dataclasses.asdict(settings or CacheSettings())}),
    )  # fmt: skip
    if not source.num_rows:
        raise ConfigError(f"{source.name} holds no rows; a cache needs some")
    check_out(out, replaces)
    with journals.writing(out, "building", progress=progress) as folder:
        plan.base = journals.record_digest(folder)
        if (done := finished(folder, is_fresh)) is not None:
            return done
        check_out(folder, replaces)  # again: another process may have built one meanwhile
        journal = journals.start(folder, plan, is_fresh=is_fresh)
        fill(folder, journal, source, Ids(), 0, progress)
        make_index(folder, journal, journal.values, np.zeros(0, dtype=np.int64), budget, progress)
        assert journal.index is not None
        record = CacheRecord(
            num_entries=plan.num_rows,
            dim=plan.dim,
            fingerprint=fingerprint,
            encoder=encoder,
            index=journal.index,
            values=tuple(journal.values),
            entries=tuple(journal.entries),
            settings=settings or CacheSettings(),
            notice=notice,
        )
        return finish(folder, journal, record)


def add_to_cache(
    source: CacheSource,
    cache: str | os.PathLike[str],
    *,
    fingerprint: str,
    budget: Budget | None = None,
    reindexes: bool = False,
    is_fresh: bool = False,
    progress: bool = True,
) -> CacheRecord:
    """Put the rows of a source into a cache, or go on with that where it was stopped.

    The old rows' codes are taken over as they are; only a flat index that has become too slow is made anew.

    Args:
        source: rows of the same encoder, with ids that are not there yet.
        cache: the folder.
        fingerprint: of the picture tower that made the vectors.
        budget: what an index may cost that is made anew.
        reindexes: whether the index is chosen and trained anew, as a cache that has grown many times over needs it.
        is_fresh: whether what an unfinished addition made is thrown away first.
        progress: whether to say on stderr what is done.

    Raises:
        ConfigError: rows that no cache can hold, another width, an id that is there, or a changed source.
        CheckpointError: another encoder, or the disk refuses; the cache is as it was.
    """
    parquet()
    budget = budget or Budget()
    content = {"fingerprint": fingerprint, "index": budget.as_json(), "reindexes": reindexes}
    plan = Plan("add", source.name, source.digest(), source.num_rows, source.dim, json.dumps(content))
    read_record(cache)  # a folder without a cache is said before it is made
    with journals.writing(cache, "changing", progress=progress) as folder:
        plan.base = journals.record_digest(folder)
        if (done := finished(folder, is_fresh)) is not None:
            return done
        base = read_record(folder)
        check_fits(base, source.name, source.dim, fingerprint, str(cache))
        if not base.entries:
            raise ConfigError(
                f"the entries of {cache} have no ids, so none could be told from a new one; build it anew"
            )
        journal = journals.start(folder, plan, is_fresh=is_fresh)
        removed = removed_rows(folder, base)
        fill(folder, journal, source, known_ids(folder, base.entries, removed), base.num_rows, progress)
        values = [*base.values, *journal.values]
        total = base.num_entries + plan.num_rows
        is_outgrown = base.index.key == FLAT and budget.choose(total, plan.dim).key != FLAT
        kept = None if reindexes or is_outgrown else base
        make_index(folder, journal, values, removed, budget, progress, base=kept)
        assert journal.index is not None
        record = dataclasses.replace(
            base, num_entries=total, index=journal.index, values=tuple(values),
            entries=(*base.entries, *journal.entries),
        )  # fmt: skip
        return finish(folder, journal, record)


def check_fits(base: CacheRecord, name: str, dim: int, fingerprint: str, cache: str) -> None:
    """Refuse vectors of another space.

    Raises:
        ConfigError: another width.
        CheckpointError: another encoder.
    """
    if dim != base.dim:
        raise ConfigError(
            f"{name} holds vectors of {dim} numbers and {cache} of {base.dim}; one cache takes one encoder's"
        )
    if fingerprint != base.fingerprint:
        raise CheckpointError(
            f"{name} was made with another encoder than {cache} ({fingerprint}, and the cache has {base.fingerprint} "
            f"of {base.encoder or 'an unnamed one'}), so their vectors do not compare; embed them with that one"
        )


def finished(folder: Path, is_fresh: bool) -> CacheRecord | None:
    """The cache, where a build was killed after its last step and only had to tidy up."""
    journal = None if is_fresh else journals.read_journal(folder)
    if journal is None or not journals.is_done(folder, journal):
        return None
    journals.clear(folder)
    return read_record(folder)


def finish(folder: Path, journal: Journal, record: CacheRecord) -> CacheRecord:
    """Make a record the cache of a folder, and remove what it does not name."""
    write_record(folder, record)
    journals.clear(folder)
    return record


def fill(folder: Path, journal: Journal, source: CacheSource, ids: Ids, first: int, progress: bool) -> None:
    """Write what is missing of a source's values and names.

    Args:
        ids: of rows that are there already; it takes the new ones in.
        first: number of the source's first row in the cache.

    Raises:
        ConfigError: rows that no cache can hold, or a source that changes while it is read.
        CheckpointError: the disk refuses.
    """
    from tqdm import tqdm

    keep_whole_files(folder, journal)
    done = sum(file.rows for file in journal.values)
    for start, (texts,) in id_batches(folder, journal.entries):
        rows = np.arange(first + start, first + start + len(texts), dtype=np.int64)
        ids.add(texts, rows, source.name)
    if done:
        say(f"going on after {done:,} of {journal.plan.num_rows:,} rows", progress=progress)
    rest = Rest(iter(source.chunks(done)))
    bar = tqdm(
        total=source.num_rows, initial=done, desc="bindlm: values", unit="row", disable=None if progress else True
    )
    try:
        while done < source.num_rows:
            rows_here = min(ROWS_A_FILE, source.num_rows - done)
            chunks = _checked(exactly(rest, rows_here), ids, first + done, source, bar)
            number = journal.first + len(journal.values)
            values, entries = write_shard(folder, number, chunks, rows_here, source.dim)
            journal.values.append(values)
            journal.entries.append(entries)
            journal.save(folder)
            done += rows_here
    finally:
        rest.close()
        bar.close()
    if source.digest() != journal.plan.digest:
        raise ConfigError(
            f"{source.name} has changed while it was read; run it again with --fresh once it stays as it is"
        )


def keep_whole_files(folder: Path, journal: Journal) -> None:
    """Forget files from the first on that is not there as it was written."""
    pairs = zip(journal.values, journal.entries, strict=True)
    whole = 0
    for values, entries in pairs:
        if not (journals.is_whole(folder, values) and journals.is_whole(folder, entries)):
            break
        whole += 1
    if whole < len(journal.values):
        del journal.values[whole:], journal.entries[whole:], journal.parts[:]
        journal.choice, journal.trained, journal.index = None, 0, None


def _checked(chunks: Iterator[Chunk], ids: Ids, first: int, source: CacheSource, bar: Any) -> Iterator[Chunk]:
    for chunk in chunks:
        if chunk.vectors.shape != (len(chunk.ids), source.dim):
            raise ConfigError(f"{source.name} gave vectors {chunk.vectors.shape} for {len(chunk.ids)} ids")
        rows = np.arange(first, first + len(chunk.ids), dtype=np.int64)
        ids.add(chunk.ids, rows, source.name)
        yield chunk
        first += len(chunk.ids)
        bar.update(len(chunk.ids))


def check_out(out: str | os.PathLike[str], replaces: bool = False) -> None:
    """Refuse a folder that a cache cannot be built in.

    Raises:
        ConfigError: it is a file, holds something else, or a cache that is not to make way.
    """
    out = Path(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the cache")
    names = {each.name for each in out.iterdir()}
    if CONFIG not in names:
        if names and WORK not in names:
            raise ConfigError(f"{out} is there and is no cache; name a new or empty folder")
        return
    content = (out / CONFIG).read_text(encoding="utf-8", errors="replace")
    if MODEL_TYPE not in content:
        raise ConfigError(f"{out} is there and is no cache; name a new or empty folder")
    if not replaces and journals.read_journal(out) is None:
        raise ConfigError(
            f"{out} is a cache already: bindlm cache add puts more into it, and with --replace it makes way"
        )
