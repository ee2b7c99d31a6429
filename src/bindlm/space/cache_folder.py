"""A visual cache on disk: millions of pictures behind an embedding, of which little is in memory.

The index says which entries may be nearest; the vectors beside it, mapped from disk, say which are, and how near. So
cosines and what is mixed in are exact (to fp16) even when the index is quantised.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bindlm.checkpoints.state import sha256_of
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache import CacheEntry, VisualCacheBase, VisualCacheConfig
from bindlm.space.cache_files import CacheIndex, CacheNames, CacheValues, damaged, open_checked
from bindlm.space.cache_format import CacheRecord, is_graph, read_record

if TYPE_CHECKING:
    import numpy as np

_MARGIN = 8
"""Candidates beyond those wanted: a tie at the edge shows, and fp16 may order two neighbours otherwise."""
_MOST_TIED = 4096
"""Entries of one cosine among which the lowest rows are looked for; the picture of a caught camera may be there often,
and more equal ones than this are as good as each other."""
_OPENINGS = 5
"""Attempts to open a folder whose writers replace it meanwhile."""


class CacheFolder:
    """The open files of a cache folder. It never changes, so that any number of threads may read it, and copies of a
    model share it; pickled, it is opened anew where it is loaded."""

    def __init__(
        self, path: Path, record: CacheRecord, *, fingerprint: str | None, verify: bool, memory_map: bool
    ) -> None:
        self.path = path
        self.record = record
        self._options = {"fingerprint": fingerprint, "memory_map": memory_map}
        if fingerprint is not None and record.fingerprint != fingerprint:
            raise CheckpointError(
                f"the visual cache {path} was made with another encoder ({record.encoder or 'unnamed'}, "
                f"{record.fingerprint}; the model's picture tower is {fingerprint}): its neighbours would mean "
                "nothing; use the model it was made with, or build a cache with this one: bindlm cache build"
            )
        self.index = CacheIndex(path, record, memory_map=memory_map)
        self.values = CacheValues(path, record, memory_map=memory_map)
        self.names = CacheNames(path, record)
        self.removed = removed_rows(path, record)
        if verify:
            check_content(path, record)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        verify: bool = False,
        memory_map: bool = True,
    ) -> "CacheFolder":
        """See `StoredVisualCache.open`."""
        path = Path(os.path.abspath(folder))
        record = read_record(path)
        for _ in range(_OPENINGS):
            try:
                return cls(path, record, fingerprint=fingerprint, verify=verify, memory_map=memory_map)
            except CheckpointError:
                newer = read_record(path)
                if newer == record:
                    raise
                record = newer  # a writer replaced the cache, and removed the old one's files
        raise CheckpointError(f"the visual cache {path} is replaced again and again; try again when its writers rest")

    def __deepcopy__(self, memo: dict[int, Any]) -> "CacheFolder":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._options)


def _reopened(path: Path, options: dict[str, Any]) -> CacheFolder:
    return CacheFolder.open(path, **options)


class StoredVisualCache(VisualCacheBase):
    """A visual cache on disk; it does what `VisualCache` does, by the same formula.

    It has neither parameters nor buffers: it stays where it is when its model moves to another device, copies of a
    model share its files, and `state_dict` does not hold it.

    Args:
        files: an open cache folder.
        **settings: `top_k`, `alpha`, `temperature`, `weighting` and `modalities` in place of the folder's own.

    Example:
        >>> cache = StoredVisualCache.open("photos-cache")
        >>> [neighbour.caption for neighbour in cache.explain(embedding)[0]]
        ['a dog on a beach', 'two dogs', …]
    """

    def __init__(self, files: CacheFolder, **settings: Any) -> None:
        record = files.record
        chosen = {**vars(record.settings), **settings}
        if "top_k" not in settings:
            chosen["top_k"] = min(chosen["top_k"], record.num_entries)
        try:
            super().__init__(VisualCacheConfig(num_entries=record.num_entries, dim=record.dim, **chosen))
        except TypeError:
            raise ConfigError(
                f"A cache takes {', '.join(vars(record.settings))}, got {', '.join(sorted(settings))}."
            ) from None
        self.files = files

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        verify: bool = False,
        memory_map: bool = True,
        **settings: Any,
    ) -> "StoredVisualCache":
        """Open a cache folder, as `bindlm cache build` makes them.

        Args:
            folder: its path.
            fingerprint: of the picture tower that queries come from, `Embedder.fingerprint_of("image")`; None takes a
                cache of any.
            verify: whether every byte is compared with its checksum. Without it, sizes and heads are.
            memory_map: whether vectors and index stay on disk and are read as needed; otherwise they are loaded.
            **settings: see the class.

        Raises:
            CheckpointError: there is no cache, it is damaged, a later bindlm wrote it, or another encoder made it.
            ConfigError: an impossible setting.
        """
        files = CacheFolder.open(folder, fingerprint=fingerprint, verify=verify, memory_map=memory_map)
        return cls(files, **settings)

    @property
    def record(self) -> CacheRecord:
        """What the folder says about itself."""
        return self.files.record

    @property
    def path(self) -> Path:
        """The folder."""
        return self.files.path

    def search(self, joint_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """See `VisualCacheBase.search`. Cosines are taken from the exact vectors, whatever the index.

        Raises:
            ConfigError: a query of another width, or one that is not finite.
            CheckpointError: the index and the vectors do not fit together.
        """
        import numpy as np

        if joint_embedding.ndim != 2 or joint_embedding.shape[1] != self.config.dim:
            raise ConfigError(f"A query must be (B, {self.config.dim}), got {tuple(joint_embedding.shape)}.")
        queries = np.ascontiguousarray(joint_embedding.detach().float().cpu().numpy())
        if not np.isfinite(queries).all():
            raise ConfigError("A query must be finite.")
        top_k = self.config.top_k
        count = min(top_k * self.record.index.oversampling + _MARGIN, self.record.num_entries)
        found = self.files.index.candidates(queries, count)
        cosines = np.empty((len(queries), top_k), dtype="float32")
        entries = np.empty((len(queries), top_k), dtype="int64")
        for row, (query, candidates) in enumerate(zip(queries, found, strict=True)):
            cosines[row], entries[row] = self._nearest(query, candidates)
        device = joint_embedding.device
        return torch.from_numpy(cosines).to(device), torch.from_numpy(entries).to(device)

    def values_of(self, entries: Tensor) -> Tensor:
        """See `VisualCacheBase.values_of`."""
        import numpy as np

        values = self.files.values.take(entries.cpu().flatten().numpy()).astype(np.float32)
        return torch.from_numpy(values).view(*entries.shape, self.config.dim).to(entries.device)

    def names_of(self, entries: Sequence[int]) -> list[CacheEntry]:
        """See `VisualCacheBase.names_of`; of the file, only what these need is read."""
        return self.files.names.take(entries)

    def _nearest(self, query: "np.ndarray", candidates: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        """Cosines `(K,)` and entries `(K,)`; candidates that leave the choice open are asked for more."""
        held = self.record.index.rows
        top_k, most = self.config.top_k, min(held, max(_MOST_TIED, len(candidates)))
        is_thorough = False
        while True:
            cosines, entries = self._ranked(query, candidates)
            count = len(candidates)
            if len(entries) < top_k:  # few lists, of which the nearest hold little, or most of a graph is removed
                if is_thorough and count == held:
                    raise damaged(self.path, "its index finds fewer entries than it holds")
                is_thorough, count = True, min(8 * count, held)
            elif cosines[top_k - 1] > cosines[-1] or candidates[-1] < 0 or count == most:
                return cosines[:top_k], entries[:top_k]
            else:
                count = min(4 * count, most)
            candidates = self.files.index.candidates(query[None], count, is_thorough=is_thorough)[0]

    def _ranked(self, query: "np.ndarray", candidates: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        """Candidates in order, each once: by the cosine of the exact vectors, then by number."""
        import numpy as np

        entries = np.unique(candidates[candidates >= 0])
        is_gone = np.isin(entries, self.files.removed)
        if is_graph(self.record.index.key):
            entries, is_gone = entries[~is_gone], is_gone[:0]  # waypoints that nobody is shown
        if is_gone.any() or (len(entries) and entries[-1] >= self.record.num_rows):
            raise damaged(self.path, "its index names rows that are not there")
        cosines = self.files.values.cosines(entries, query, self.config.top_k)
        order = np.lexsort((entries, -cosines))
        return cosines[order], entries[order]


def check_content(folder: Path, record: CacheRecord) -> None:
    """Compare every file of a cache with its checksum.

    Raises:
        CheckpointError: one is missing or does not hold what was written.
    """
    for file in record.files():
        open_checked(folder, file).close()
        if sha256_of(folder / file.file) != file.sha256:
            raise damaged(folder, f"{file.file} is not what was written")


def removed_rows(folder: Path, record: CacheRecord) -> "np.ndarray":
    """Rows of a cache that are gone, `(n,)` int64, rising.

    Raises:
        CheckpointError: their file is missing or damaged, or does not list rows of this cache.
    """
    import numpy as np

    if record.removed is None:
        return np.zeros(0, dtype="int64")
    with open_checked(folder, record.removed) as stream:
        try:
            rows = np.load(stream, allow_pickle=False)
        except (ValueError, EOFError):
            raise damaged(folder, f"{record.removed.file} is no array") from None
    is_rising = rows.ndim == 1 and rows.dtype == np.dtype("<i8") and bool(np.all(np.diff(rows) > 0))
    if not is_rising or len(rows) != record.removed.rows or rows[0] < 0 or rows[-1] >= record.num_rows:
        raise damaged(folder, f"{record.removed.file} does not list rows of this cache")
    return rows
