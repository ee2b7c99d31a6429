"""Reading a feature store: rows by media key, memory-mapped, and never one that is not what it should be.

from bindlm.training.features import FeatureStore

store = FeatureStore.open("runs/features")
rows = [store.row_of("cc3m/00001.jpg")]
store.get(rows, views=[0])  # (1, 1024)
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bindlm.checkpoints import load_state
from bindlm.errors import CheckpointError, ConfigError, MediaError
from bindlm.media.names import printable
from bindlm.space.index import checksum
from bindlm.training.features.digests import ABSENT, as_rows, as_words, file_digest, key_digest
from bindlm.training.features.keys import KeyEntry, KeyTable
from bindlm.training.features.record import (
    AGAIN,
    UNREADABLE_FILE,
    FileRecord,
    StoreRecord,
    describe_views,
    is_whole,
    read_record,
)
from bindlm.training.features.scan import MediaSource, media_of
from bindlm.training.features.shards import damaged, read_shard
from bindlm.training.stage_recipe import ViewsConfig


class FeatureStore:
    """The joint embeddings of a data set's media, made by one frozen encoder. Opened by `FeatureStore.open`."""

    def __init__(self, path: Path, record: StoreRecord, index: dict[str, Tensor]) -> None:
        self.path = path
        self._record = record
        self._hash: NDArray[np.int64] = index["hash"].numpy()
        self._position: NDArray[np.int64] = index["position"].numpy()
        self._row: NDArray[np.int64] = index["row"].numpy()
        self._keys = KeyTable([(path / keys.file, keys.rows) for keys in record.keys])
        self._ends = np.cumsum([shard.rows for shard in record.shards], dtype=np.int64)
        self._shards: dict[int, NDArray[np.float16]] = {}
        for number, shard in enumerate(record.shards):
            if shard.is_open:  # the only ones that an extraction may remove while they are read here
                self._embedding(number)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        fingerprint: str | None = None,
        views: ViewsConfig | None = None,
        name: str = "",
    ) -> "FeatureStore":
        """Open a store that an extraction has finished.

        Args:
            path: its folder.
            fingerprint: of the encoder whose embeddings are wanted; None takes those of any.
            views: how pictures are to be cropped; None takes what is there.
            name: of the encoder, for the message.

        Raises:
            CheckpointError: there is none, or a file of it is missing, cut short or damaged.
            ConfigError: it was made by another encoder, or with other views.
        """
        path = Path(path)
        record = read_record(path)
        if record is None:
            raise CheckpointError(f"{path} holds no feature store; {AGAIN}")
        wanted = None if views is None else describe_views(views)
        record.check(path, fingerprint=fingerprint, name=name, views=wanted)
        if record.index is None:
            raise CheckpointError(f"the feature store {path} is not finished; {AGAIN}, which goes on from there")
        for file in (*record.shards, *record.keys, record.index):
            if not is_whole(path, file):
                raise damaged(path, file)
        shapes = dict.fromkeys(("hash", "position", "row"), (record.index.rows,))
        try:
            index = load_state(path / record.index.file, expected=shapes)
        except CheckpointError:
            raise damaged(path, record.index) from None
        return cls(path, record, index)

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapped files would be copied into the worker's memory; and rows are counted by this index and no other.
        return _reopen, (self.path, self._record.index)

    def __len__(self) -> int:
        """Number of embedded keys."""
        return len(self._hash)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) != ABSENT

    @property
    def dim(self) -> int:
        """D_joint."""
        return self._record.dim

    @property
    def num_views(self) -> int:
        """V; of media other than pictures all views are the same."""
        return self._record.num_views

    @property
    def fingerprint(self) -> str:
        """Of the encoder."""
        return self._record.fingerprint

    @property
    def encoder(self) -> str:
        """The encoder's name."""
        return self._record.encoder

    @property
    def modalities(self) -> dict[str, int]:
        """Senses, and how many different media of each there are."""
        counts: dict[str, int] = {}
        for shard in self._record.shards:
            counts[shard.modality] = counts.get(shard.modality, 0) + shard.rows
        return counts

    @property
    def num_bytes(self) -> int:
        """Size of the embeddings on disk."""
        return sum(shard.num_bytes for shard in self._record.shards)

    def row_of(self, key: str) -> int:
        """The row of a medium.

        Raises:
            ConfigError: it has none.
        """
        if (row := self._find(key)) == ABSENT:
            raise ConfigError(
                f"The feature store {self.path} has no embedding of {printable(key)!r}: {AGAIN}. Media that cannot be "
                "read have none; they are listed there."
            )
        return row

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The rows of many media, `(N,)`; -1 for those that have none."""
        if not keys:
            return np.zeros(0, dtype=np.int64)
        hashes = as_words(as_rows([key_digest(key) for key in keys]))[:, 0]
        places = np.searchsorted(self._hash, hashes)
        return np.array([self._at(key, place) for key, place in zip(keys, places.tolist(), strict=True)])

    def get(self, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        """Joint embeddings `(B, D_joint)` fp32, of unit length but for the rounding to fp16.

        Args:
            rows: B rows, as `row_of` gives them.
            views: B views, 0 to `num_views` - 1.

        Raises:
            ConfigError: a row or a view that is not there, or not as many views as rows.
            CheckpointError: a shard is damaged.
        """
        wanted, cut = np.asarray(rows, dtype=np.int64), np.asarray(views, dtype=np.int64)
        total = int(self._ends[-1]) if len(self._ends) else 0
        if wanted.shape != cut.shape or wanted.ndim != 1:
            raise ConfigError(f"FeatureStore.get needs as many views as rows, got {len(rows)} and {len(views)}.")
        if len(wanted) and not (0 <= wanted.min() and wanted.max() < total):
            raise ConfigError(f"FeatureStore.get: rows must lie in 0..{total - 1}.")
        if len(cut) and not (0 <= cut.min() and cut.max() < self.num_views):
            raise ConfigError(f"FeatureStore.get: views must lie in 0..{self.num_views - 1}.")
        found = np.empty((len(wanted), self.dim), dtype=np.float16)  # (B, D_joint)
        numbers = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            start = int(self._ends[number - 1]) if number else 0
            found[here] = self._embedding(number)[wanted[here] - start, cut[here]]
        return torch.from_numpy(found).float()

    def verify(self, full: bool = False) -> None:
        """Check that the files are those that were written.

        Args:
            full: whether to read all of them, rather than compare lengths.

        Raises:
            CheckpointError: one is not.
        """
        assert self._record.index is not None
        for file in (*self._record.shards, *self._record.keys, self._record.index):
            if not is_whole(self.path, file) or (full and checksum(self.path / file.file) != file.checksum):
                raise damaged(self.path, file)

    @property
    def unreadable_path(self) -> Path:
        """The list of media that the last extraction could not use; there is none if it could use all."""
        return self.path / UNREADABLE_FILE

    def unreadable(self) -> set[str]:
        """Keys of these media."""
        try:
            lines = self.unreadable_path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return set()
        return {json.loads(line)["key"] for line in lines}

    def stale(self, sources: Iterable[MediaSource]) -> list[str]:
        """Keys of files that hold something else than when they were embedded; files that are gone are not among them.

        Only files whose size or time of change differs are read. Members of archives are not looked at.
        """
        changed: dict[str, None] = {}
        for source in sources:
            for media, modality in media_of(source.rows):
                key = f"{source.name}/{media}"
                if media is None or key in changed or (entry := self.entry(key)) is None or entry.mtime_ns < 0:
                    continue
                if _is_changed(source, media, modality, entry):
                    changed[key] = None
        return list(changed)

    def entry(self, key: str) -> KeyEntry | None:
        """What is known of an embedded medium: its content's digest, size and time of change."""
        place = self._place(key, self._first(key))
        return None if place == ABSENT else self._keys.entry(int(self._position[place]))

    def _find(self, key: str) -> int:
        return self._at(key, self._first(key))

    def _first(self, key: str) -> int:
        return int(np.searchsorted(self._hash, np.frombuffer(key_digest(key), dtype=np.int64)[0]))

    def _at(self, key: str, place: int) -> int:
        place = self._place(key, place)
        return ABSENT if place == ABSENT else int(self._row[place])

    def _place(self, key: str, place: int) -> int:
        """The place of a key in the index, from the first that has its hash on."""
        text = key.encode("utf-8", "surrogatepass")
        begin = place
        while place < len(self._hash) and self._hash[place] == self._hash[begin]:
            if self._keys.key(int(self._position[place])) == text:
                return place
            place += 1
        return ABSENT

    def _embedding(self, number: int) -> NDArray[np.float16]:
        if number not in self._shards:
            self._shards[number] = read_shard(self.path, self._record, self._record.shards[number]).embedding
        return self._shards[number]


def _reopen(path: Path, index: FileRecord) -> FeatureStore:
    """The same store in another process."""
    store = FeatureStore.open(path)
    if store._record.index != index:
        raise CheckpointError(f"the feature store {path} has changed while it was in use; start again")
    return store


def _is_changed(source: MediaSource, media: str, modality: str, entry: KeyEntry) -> bool:
    try:
        found = source.read_media(media)
        if isinstance(found, bytes):
            return False
        status = found.stat()
        if (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns):
            return False
        return file_digest(found, modality)[0] != entry.content
    except (MediaError, OSError):
        return False
