"""A feature store while it grows: what it holds, how a block is added, and how an extraction ends."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bindlm import __version__
from bindlm.checkpoints import save_state_atomic
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.scratch import remove_stale
from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.index import checksum
from bindlm.training.features.digests import ABSENT, DIGEST_BYTES, DigestMap, as_rows, as_words
from bindlm.training.features.embed import CROPPED
from bindlm.training.features.keys import KeyEntry, KeyTable, key_tensors, latest_positions
from bindlm.training.features.record import (
    KEYS,
    SHARDS,
    STORE_FILE,
    UNREADABLE_FILE,
    FileRecord,
    ShardRecord,
    StoreRecord,
    describe_views,
    is_whole,
    read_record,
)
from bindlm.training.features.scan import Block
from bindlm.training.features.shards import (
    Shard,
    contents_of,
    file_record,
    read_shard,
    shard_name,
    write_keys,
    write_shard,
)
from bindlm.training.stage_recipe import FeaturesConfig

Row = NDArray[np.float16]
_UNREADABLE = 1 << 62
"""In the place of a row: the medium was tried in vain."""


class EncoderFacts(Protocol):
    """What a store keeps of an encoder."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...


class Ledger:
    """The store of one extraction on its way. It is `bindlm.training.features.scan.Known`.

    A block is in the store from the moment that `store.json` names its files; before, they are nobody's.

    Args:
        config: where the store is, and how pictures are cropped.
        encoder: which one it is for.
        verify: whether all files are read first; what is damaged is then made anew.

    Raises:
        ConfigError: the folder holds the store of another encoder, other views, or something else.
        CheckpointError: the record of the store is damaged, or the disk refuses.
    """

    def __init__(self, config: FeaturesConfig, encoder: EncoderFacts, *, verify: bool = False) -> None:
        self.path = Path(config.path)
        self.config = config
        self.num_new = 0
        """Media embedded for the first time."""
        self.num_damaged = 0
        """Files that were missing or damaged, and are made anew."""
        views = describe_views(config.views)
        record = read_record(self.path)
        if record is None:
            self._check_is_free()
            record = StoreRecord(encoder.name, encoder.fingerprint, encoder.dim, views)
        record.check(self.path, fingerprint=encoder.fingerprint, name=encoder.name, views=views)
        self.record = record
        self._drop_damaged(verify)
        self._keys = self._table(self.record.keys)
        self._positions = DigestMap()
        self._held = DigestMap()
        self._open = DigestMap()
        self._load()

    def entry(self, digest: bytes) -> KeyEntry | None:
        """What was known of a key when the extraction began."""
        position = self._positions.get(digest)
        return None if position == ABSENT else self._keys.entry(position)

    def is_held(self, content: bytes) -> bool:
        """Whether a content is in a shard that stays as it is."""
        return content in self._held

    def is_continued(self, content: bytes) -> bool:
        """Whether a content is in a shard that further media may be added to."""
        return content in self._open

    def held_rows(self, block: Block) -> dict[int, Row | str]:
        """What need not be embedded again of a block: by number its `(V, D_joint)`, or why it cannot be embedded.

        The rows of an open shard that a block begins with are taken up to the last whole batch, since the batch in
        which a medium is encoded shows in the last bit of its embedding: so a store that grew holds the bytes of one
        that was made at once.
        """
        numbered = enumerate(block.media)
        places = {number: place for number, ref in numbered if (place := self._open.get(ref.content)) != ABSENT}
        if not places:
            return {}
        contents = [ref.content for ref in block.media]
        shards = {number: self._shard(number) for number in {place >> 32 for place in places.values()}}
        found: dict[int, Row | str] = {}
        for number, place in places.items():
            shard, row = shards[place >> 32], place & 0xFFFFFFFF
            if row < len(shard.content):
                found[number] = shard.embedding[row]
            else:
                found[number] = shard.unreadable[contents[number].hex()]
        if list(places) != list(range(len(places))):
            return found
        readable = [number for number, row in found.items() if not isinstance(row, str)]
        num_views = self.record.num_views if block.modality == CROPPED else 1
        step = self.config.batch_size // math.gcd(self.config.batch_size, num_views)
        kept = readable[: len(readable) // step * step]
        end = kept[-1] if kept else -1
        return {number: row for number, row in found.items() if number <= end}

    def add(self, block: Block, results: Mapping[int, Row | str | None], *, is_partial: bool = False) -> None:
        """Take in a block that has been embedded.

        Args:
            block: what was asked for.
            results: by number the rows, or why there are none; None, or no number, for media that were written to.
            is_partial: whether media of the block are missing, so that its shard is one to be continued.

        Raises:
            CheckpointError: the disk refuses; the store is as it was before.
        """
        with disk_errors(self.path):
            (self.path / SHARDS).mkdir(parents=True, exist_ok=True)
            (self.path / KEYS).mkdir(exist_ok=True)
        shards, keys = list(self.record.shards), list(self.record.keys)
        done = [(number, row) for number, row in sorted(results.items()) if row is not None]
        name = shard_name(self.record, block.modality, (block.media[number].content for number, _ in done))
        if done and all(name != shard.file for shard in shards):
            shards.append(self._write(name, block, done, is_open=block.is_open or is_partial))
        if block.keys:
            keys.append(write_keys(self.path, key_tensors(block.keys)))
        if (shards, keys) != (self.record.shards, self.record.keys):
            record = replace(self.record, shards=shards, keys=keys)
            record.write(self.path)
            self.record = record
        self.num_new += sum(not isinstance(row, str) and block.media[number].content not in self._open
                            for number, row in done)  # fmt: skip

    def _write(self, name: str, block: Block, done: Sequence[tuple[int, Row | str]], *, is_open: bool) -> ShardRecord:
        contents = [block.media[number].content for number, _ in done]
        rows = [(contents[at], row) for at, (_, row) in enumerate(done) if not isinstance(row, str)]
        bad = {contents[at].hex(): row for at, (_, row) in enumerate(done) if isinstance(row, str)}
        empty = np.zeros((0, self.record.num_views, self.record.dim), dtype=np.float16)
        embedding = np.stack([row for _, row in rows]) if rows else empty  # (N, V, D_joint)
        shard = Shard(embedding, as_rows([content for content, _ in rows]), bad)
        return write_shard(self.path, name, shard, block.modality, is_open=is_open)

    def finish(self, seen: DigestMap) -> list[tuple[str, str]]:
        """End the extraction: open shards whose media are in others go, and the index is made.

        Args:
            seen: digests of the keys that were gone through.

        Returns:
            Keys among them whose media cannot be embedded, and why.

        Raises:
            CheckpointError: the disk refuses.
        """
        shards = sorted(self._needed_shards(), key=lambda shard: shard.file)
        record = replace(self.record, shards=shards, keys=self._ordered_keys())
        contents, reasons = self._contents(record)
        table = self._table(record.keys)
        positions = latest_positions(table)
        digests, rows = self._rows(table, positions, contents)
        is_bad = rows == _UNREADABLE
        listed = is_bad & (seen.look_up(digests) != ABSENT)
        bad = [table.entry(position) for position in sorted(positions[listed].tolist())]
        is_row = ~is_bad & (rows != ABSENT)
        self._write_index(record, as_words(digests)[is_row, 0], positions[is_row], rows[is_row])
        self._remove_strays()
        return [(entry.key, reasons[entry.content.hex()]) for entry in bad]

    def write_unreadable(self, unreadable: Sequence[tuple[str, str]]) -> None:
        """Write the list of media that cannot be used, a JSON object a line; none if there are none."""
        path = self.path / UNREADABLE_FILE
        if unreadable:
            lines = (json.dumps({"key": key, "reason": reason}) for key, reason in unreadable)
            write_text_atomic(path, "".join(f"{line}\n" for line in lines))
        else:
            with disk_errors(self.path):
                path.unlink(missing_ok=True)

    def _check_is_free(self) -> None:
        with disk_errors(self.path.parent):
            self.path.mkdir(parents=True, exist_ok=True)
            others = {each.name for each in self.path.iterdir()} - {SHARDS, KEYS}
        if any(not name.startswith(f".{STORE_FILE}") for name in others):
            raise ConfigError(f"{self.path} is there and is no feature store; name another features.path.")

    def _drop_damaged(self, verify: bool) -> None:
        """Forget files that are missing or not what was written; their media are then embedded again."""

        def is_good(file: FileRecord) -> bool:
            return is_whole(self.path, file) and not (verify and checksum(self.path / file.file) != file.checksum)

        shards = [file for file in self.record.shards if is_good(file) and self._opens(file)]
        keys = [file for file in self.record.keys if is_good(file)]
        index = self.record.index
        is_index_good = index is not None and is_good(index)
        self.num_damaged = len(self.record.shards) - len(shards) + len(self.record.keys) - len(keys)
        self.num_damaged += index is not None and not is_index_good
        if self.num_damaged or not is_index_good:
            self.record = replace(self.record, shards=shards, keys=keys, index=None)

    def _opens(self, file: FileRecord) -> bool:
        try:
            read_shard(self.path, self.record, file)
        except CheckpointError:
            return False
        return True

    def _load(self) -> None:
        """Fill the maps of what is held."""
        positions = latest_positions(self._keys)
        if len(positions):
            digests = np.concatenate([part.digests for part in self._keys.parts()])
            self._positions.add_many(digests[positions], positions)
        for is_open, into in ((False, self._held), (True, self._open)):
            for number, file in enumerate(self.record.shards):
                if file.is_open != is_open:
                    continue
                shard = self._shard(number)
                # What another version could not read is tried again.
                contents = contents_of(shard) if shard.version == __version__ else shard.content
                is_new = into.look_up(contents) == ABSENT
                rows = np.flatnonzero(is_new)
                into.add_many(contents[rows], rows + (number << 32))

    def _shard(self, number: int) -> Shard:
        return read_shard(self.path, self.record, self.record.shards[number])

    def _needed_shards(self) -> list[ShardRecord]:
        """All shards but the open ones whose media are all in others."""
        shards = [(file, contents_of(read_shard(self.path, self.record, file))) for file in self.record.shards
                  if file.is_open]  # fmt: skip
        if not shards:
            return list(self.record.shards)
        kept = DigestMap()
        for number, file in enumerate(self.record.shards):
            if not file.is_open:
                _add_absent(kept, contents_of(self._shard(number)))
        needless = set()
        for file, contents in sorted(shards, key=lambda each: (-len(each[1]), each[0].file)):
            if len(contents) and bool((kept.look_up(contents) != ABSENT).all()):
                needless.add(file.file)
            _add_absent(kept, contents)
        return [file for file in self.record.shards if file.file not in needless]

    def _ordered_keys(self) -> list[FileRecord]:
        """Files of keys in an order that does not tell which worker was first, where their order is of no matter."""
        table = self._table(self.record.keys)
        is_free = len(latest_positions(table)) == len(table)
        return sorted(self.record.keys, key=lambda file: file.file) if is_free else self.record.keys

    def _table(self, files: Sequence[FileRecord]) -> KeyTable:
        return KeyTable([(self.path / file.file, file.rows) for file in files])

    def _contents(self, record: StoreRecord) -> tuple[DigestMap, dict[str, str]]:
        """Content to row, counted through the shards in their order; and reasons of those that have none."""
        contents, reasons, start = DigestMap(), dict[str, str](), 0
        for file in record.shards:
            shard = read_shard(self.path, record, file)
            new = np.flatnonzero(contents.look_up(shard.content) == ABSENT)
            contents.add_many(shard.content[new], new + start)
            start += len(shard.content)
            reasons |= shard.unreadable
        for digest in list(reasons):
            if contents.get(bytes.fromhex(digest)) == ABSENT:
                contents.add(bytes.fromhex(digest), _UNREADABLE)
        return contents, reasons

    def _rows(
        self, table: KeyTable, positions: NDArray[np.int64], contents: DigestMap
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Digests `(N, 16)` of the keys at some positions, and their rows `(N,)`."""
        if not len(positions):
            return np.zeros((0, DIGEST_BYTES), dtype=np.uint8), np.zeros(0, dtype=np.int64)
        parts = table.parts()
        digests = np.concatenate([part.digests for part in parts])[positions]
        return digests, contents.look_up(np.concatenate([part.contents for part in parts])[positions])

    def _write_index(
        self, record: StoreRecord, hashes: NDArray[np.int64], positions: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        tensors = {"hash": hashes, "position": positions, "row": rows}
        hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for file in (*record.shards, *record.keys):
            hasher.update(file.file.encode())
        for array in tensors.values():
            hasher.update(np.ascontiguousarray(array).tobytes())
        name = f"index-{hasher.hexdigest()}.safetensors"
        save_state_atomic(self.path / name, {key: torch.from_numpy(array) for key, array in tensors.items()})
        finished = replace(record, index=file_record(self.path, name, len(rows)))
        if finished != read_record(self.path):
            finished.write(self.path)
        self.record = finished

    def _remove_strays(self) -> None:
        """Remove files of the store that it no longer names; a reader that has them mapped keeps them."""
        named = {file.file for file in (*self.record.shards, *self.record.keys)}
        if self.record.index is not None:
            named.add(self.record.index.file)
        for folder in (self.path, self.path / SHARDS, self.path / KEYS):
            remove_stale(folder, "")
        for each in _store_files(self.path):
            if each.relative_to(self.path).as_posix() not in named:
                with contextlib.suppress(OSError):
                    each.unlink()


def _store_files(path: Path) -> Iterable[Path]:
    for pattern in (f"{SHARDS}/*.safetensors", f"{KEYS}/*.safetensors", "index-*.safetensors"):
        yield from path.glob(pattern)


def _add_absent(into: DigestMap, contents: NDArray[np.uint8]) -> None:
    is_new = into.look_up(contents) == ABSENT
    into.add_many(contents[is_new], np.zeros(int(is_new.sum()), dtype=np.int64))
