"""The index of a cache: chosen by a budget, trained on a sample, and put together from parts that survive a kill."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching import journal as journals
from bindlm.caching.chunks import CHUNK_ROWS
from bindlm.caching.graphs import write_graph
from bindlm.caching.journal import WORK, Journal
from bindlm.caching.lists import IndexLists, Lists, Part, empty_bytes, encode_rows, open_index, write_flat, write_lists
from bindlm.caching.shards import ValueFiles
from bindlm.caching.training import check_key, is_inverted_file, sample_rows, train_index
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.state import replacing_file, sha256_of
from bindlm.space.cache_format import CacheFile, CacheIndexFile, CacheRecord, index_name, is_graph

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
        if is_graph(key):
            rows = write_graph(
                temporary, folder, journal, values, None if base is None else folder / base.index.file, progress
            )
        elif is_inverted_file(key):
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
