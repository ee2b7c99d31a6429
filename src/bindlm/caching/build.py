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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching import journal as journals
from bindlm.caching.chunks import CHUNK_ROWS, CacheSource, Chunk, Rest, exactly
from bindlm.caching.journal import WORK, Journal, Plan
from bindlm.caching.lists import IndexLists, Lists, Part, empty_bytes, encode_rows, open_index, write_flat, write_lists
from bindlm.caching.shards import ROWS_A_FILE, Ids, ValueFiles, known_ids, removed_rows, write_shard
from bindlm.caching.tables import parquet
from bindlm.caching.training import check_key, is_inverted_file, sample_rows, train_index
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.state import replacing_file, sha256_of
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache_format import (
    CacheFile,
    CacheIndexFile,
    CacheRecord,
    CacheSettings,
    index_name,
    read_record,
    write_record,
)

MAX_MEMORY_BYTES = 3_500_000_000
"""Of an index that nobody gave a budget."""
MAX_LATENCY_MS = 3.0
_PART_BYTES = 32 << 20
_PART_BYTES_A_LIST = 4096
"""Parts grow with the number of lists, or putting many lists together from many parts would take hours."""


@dataclass(frozen=True)
class Budget:
    """What an index may cost, or which one it is to be."""

    max_memory_bytes: int = MAX_MEMORY_BYTES
    """When it is served."""
    max_latency_ms: float = MAX_LATENCY_MS
    """Of one query on one thread."""
    choice: Any = None
    """An `IndexChoice` that is taken as it is."""

    def choose(self, num_entries: int, dim: int) -> Any:
        """The `IndexChoice` for a cache.

        Raises:
            ConfigError: nothing fits the budget.
        """
        if self.choice is not None:
            return self.choice
        from bindlm.caching.choice import choose_index

        return choose_index(
            num_entries, dim, max_memory_bytes=self.max_memory_bytes, max_latency_ms=self.max_latency_ms
        )

    def as_json(self) -> dict[str, Any]:
        """For the plan of a build."""
        choice = None if self.choice is None else dataclasses.asdict(self.choice)
        return {"max_memory_bytes": self.max_memory_bytes, "max_latency_ms": self.max_latency_ms, "choice": choice}


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
    _check_out(Path(out), replaces)
    with journals.writing(out, "building", progress=progress) as folder:
        plan.base = journals.record_digest(folder)
        if (done := finished(folder, is_fresh)) is not None:
            return done
        if plan.base and not replaces:
            raise ConfigError(
                f"{out} is a cache already: bindlm cache add puts more into it, and with --replace it makes way"
            )
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
        is_outgrown = not is_inverted_file(base.index.key) and is_inverted_file(budget.choose(total, plan.dim).key)
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

    from bindlm.caching.shards import id_batches

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


def make_index(
    folder: Path,
    journal: Journal,
    files: Sequence[CacheFile],
    removed: NDArray[np.int64],
    budget: Budget,
    progress: bool,
    *,
    base: CacheRecord | None = None,
) -> None:
    """Write the index of a cache's values, or what is missing of it.

    Args:
        files: of values, in order.
        removed: rows that get no place in it, rising.
        budget: what it may cost.
        base: a cache that these files go on from, whose index is kept and added to; None trains one anew.
    """
    if journal.index is not None and journals.is_whole(folder, journal.index):
        return
    values = ValueFiles(folder, files, removed)
    with disk_errors(folder):
        (folder / WORK).mkdir(exist_ok=True)
    if journal.choice is None:
        journal.choice = _choice(values, budget, base, progress)
        journal.save(folder)
    key = journal.choice["key"]
    check_key(key)
    with disk_errors(folder), replacing_file(folder / index_name(journal.generation)) as temporary:
        if is_inverted_file(key):
            index, empty = _trained(folder, journal, values, base, progress)
            parts = _coded(folder, journal, values, index, base, empty, progress)
            rows = write_lists(temporary, empty, index, parts)
        else:
            rows = values.num_kept
            write_flat(temporary, values.dim, values.chunks(), rows)
        size, checksum = temporary.stat().st_size, sha256_of(temporary)
    name, choice = index_name(journal.generation), journal.choice
    journal.index = CacheIndexFile(
        name, rows, size, checksum, key=key, search=dict(choice["search"]), oversampling=choice["oversampling"]
    )
    journal.save(folder)


def _choice(values: ValueFiles, budget: Budget, base: CacheRecord | None, progress: bool) -> dict[str, Any]:
    if base is not None:
        return {"key": base.index.key, "search": base.index.search, "oversampling": base.index.oversampling}
    chosen = budget.choose(values.num_kept, values.dim)
    say(f"index {chosen.key}: {chosen.reason}", progress=progress)
    return {name: getattr(chosen, name) for name in ("key", "search", "oversampling", "num_training")}


def _trained(
    folder: Path, journal: Journal, values: ValueFiles, base: CacheRecord | None, progress: bool
) -> tuple[Any, bytes]:
    """The trained index without rows, and its bytes; trained once, whatever comes between."""
    import faiss

    if base is not None:
        index = open_index(folder / base.index.file)
        return index, empty_bytes(index)
    path = folder / WORK / "trained.faiss"
    if not journal.trained or not path.is_file() or path.stat().st_size != journal.trained:
        assert journal.choice is not None
        rows = sample_rows(values.num_rows, journal.choice["num_training"])
        rows = rows[~np.isin(rows, values.removed)]
        say(f"training {journal.choice['key']} on {len(rows):,} of {values.num_kept:,} vectors", progress=progress)
        trained = empty_bytes(train_index(journal.choice["key"], values.dim, values.pick(rows)))
        with replacing_file(path) as temporary:
            temporary.write_bytes(trained)
        journal.trained = len(trained)
        journal.parts.clear()
        journal.save(folder)
    empty = path.read_bytes()
    return faiss.deserialize_index(np.frombuffer(empty, dtype=np.uint8)), empty


def _coded(
    folder: Path,
    journal: Journal,
    values: ValueFiles,
    index: Any,
    base: CacheRecord | None,
    empty: bytes,
    progress: bool,
) -> list[Lists]:
    """Parts of coded rows that together are the index: of an older one all at once, of other rows what is missing."""
    import faiss
    from tqdm import tqdm

    inner = faiss.extract_index_ivf(index)
    num_lists, code_size = int(inner.nlist), int(inner.code_size)
    found: list[Lists] = []
    first = 0
    if base is not None:
        first = base.num_rows
        found.append(IndexLists(folder / base.index.file, empty, num_lists, code_size))
    step = max(_PART_BYTES, _PART_BYTES_A_LIST * num_lists) // (code_size + 8)
    step = max(CHUNK_ROWS, step // CHUNK_ROWS * CHUNK_ROWS)
    bar = tqdm(total=values.num_rows - first, desc="bindlm: index", unit="row", disable=None if progress else True)
    with bar:
        for number, start in enumerate(range(first, values.num_rows, step)):
            path = folder / WORK / f"part-{number:06d}"
            end = min(start + step, values.num_rows)
            if number >= len(journal.parts) or not _has_size(path, journal.parts[number]):
                del journal.parts[number:]
                with replacing_file(path) as temporary:
                    _code(temporary, values, index, start, end, num_lists, code_size)
                journal.parts.append(path.stat().st_size)
                journal.save(folder)
            found.append(Part(path, num_lists, code_size))
            bar.update(end - start)
    return found


def _code(path: Path, values: ValueFiles, index: Any, start: int, end: int, num_lists: int, code_size: int) -> None:
    lists, codes, rows = [np.zeros(0, np.int64)], [np.zeros((0, code_size), np.uint8)], [np.zeros(0, np.int64)]
    for numbers, vectors in values.chunks(start, end):
        if len(numbers):
            of_list, code = encode_rows(index, vectors)
            lists.append(of_list)
            codes.append(code)
            rows.append(numbers)
    Part.write(path, np.concatenate(lists), np.concatenate(codes), np.concatenate(rows), num_lists)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _check_out(out: Path, replaces: bool) -> None:
    """Refuse a folder that holds something else.

    Raises:
        ConfigError: it does, or is a file.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder for the cache")
    names = {each.name for each in out.iterdir()}
    if names and WORK not in names and "config.json" not in names:
        raise ConfigError(f"{out} is there and is no cache; name a new or empty folder")
    if "config.json" in names:
        try:
            read_record(out)
        except CheckpointError as error:
            if not replaces:
                raise ConfigError(
                    f"{out} is there and holds another thing than a cache; name another folder"
                ) from error
            raise
