"""Finding out which media a data set has and which of them are new, block by block while the encoder works."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bindlm.errors import ConfigError, MediaError
from bindlm.media.names import Medium, printable
from bindlm.training.features.digests import ABSENT, DIGEST_BYTES, DigestMap, bytes_digest, file_digest, key_digest
from bindlm.training.features.keys import KeyEntry

Item = TypeVar("Item")
Result = TypeVar("Result")
NO_FILE = -1
"""Time of change of a medium that is no file of its own, such as a member of a shard."""


class MediaSource(Protocol):
    """What is needed of a `bindlm.training.data.Source`."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> Any: ...
    def read_media(self, media: str) -> Path | bytes: ...


@dataclass(frozen=True)
class MediumRef:
    """One medium of a data set."""

    source: int
    """Number of its source."""
    media: str
    """What `read_media` takes."""
    key: str
    modality: str
    content: bytes = b""
    """Digest, 16 bytes; empty until it has been looked at."""
    size: int = 0
    mtime_ns: int = NO_FILE
    is_known: bool = False
    """Whether the store has all this written down."""


@dataclass
class Block:
    """Media that make one shard, and the keys that were met on the way to them."""

    modality: str = ""
    media: list[MediumRef] = field(default_factory=list)
    """Of different content, in the order in which they appear; empty where all is held already."""
    keys: list[KeyEntry] = field(default_factory=list)
    """New or changed ones."""
    num_rows: int = 0
    """Rows of the data gone through since the block before."""
    is_open: bool = False
    """Whether there were fewer media than a shard may hold."""


class Known(Protocol):
    """What the store holds already."""

    def entry(self, digest: bytes) -> KeyEntry | None:
        """What is known of a key."""

    def is_held(self, content: bytes) -> bool:
        """Whether a content needs no work, whatever comes."""

    def is_continued(self, content: bytes) -> bool:
        """Whether a content is in a shard that further media may be added to."""


class Scan:
    """Goes through the media of data sets in the order in which they first appear.

    Args:
        sources: data sets with different names.
        known: what the store holds.
        modalities: senses of the encoder.
        shard_size: media a block.
        workers: threads that read and hash.
    """

    def __init__(
        self,
        sources: Sequence[MediaSource],
        known: Known,
        *,
        modalities: Sequence[str],
        encoder: str,
        shard_size: int,
        workers: int,
    ) -> None:
        self.seen = DigestMap()
        """Keys met, with the number of their sense."""
        self.unreadable: list[tuple[str, str]] = []
        """Keys of media that are not to be had, and why."""
        self._sources = sources
        self._locks = [threading.Lock() for _ in sources]
        self._known = known
        self._modalities = list(modalities)
        self._encoder = encoder
        self._shard_size = shard_size
        self._workers = workers
        self._planned = DigestMap()
        self._pending: dict[str, list[MediumRef]] = {}
        self._has_new: set[str] = set()
        self._keys: list[KeyEntry] = []
        self._num_rows = 0
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """End `blocks` soon, from whatever thread it runs in."""
        self._is_stopped.set()

    def blocks(self) -> Generator[Block, None, None]:
        """Full blocks as they fill, then what is left of each sense.

        Raises:
            ConfigError: a row that does not fit: a sense that the encoder lacks, or one medium with two.
        """
        for ref in read_ahead(self._look_at, self._references(), workers=self._workers, depth=8 * self._workers):
            if self._is_stopped.is_set():
                return
            if isinstance(ref, tuple):
                self.unreadable.append(ref)
            elif ref is not None and self._take(ref):
                yield self._block(ref.modality, is_open=False)
        for modality in list(self._pending):
            yield self._block(modality, is_open=True)
        if self._keys or self._num_rows:
            yield self._block("", is_open=True)

    def _references(self) -> Iterator[MediumRef]:
        for number, source in enumerate(self._sources):
            for media, modality in media_of(source.rows):
                self._num_rows += 1
                if media is None:
                    continue
                key = f"{source.name}/{media}"
                digest = key_digest(key)
                sense = self._sense(key, modality)
                if (met := self.seen.get(digest)) == ABSENT:
                    self.seen.add(digest, sense)
                    yield MediumRef(number, media, key, modality)
                elif met != sense:
                    raise ConfigError(
                        f"{printable(key)!r} is given as {self._modalities[met]} and as {modality}; a medium of a "
                        "source has one sense: give the other one in a source with another name."
                    )

    def _sense(self, key: str, modality: str) -> int:
        if modality not in self._modalities:
            raise ConfigError(
                f"{printable(key)!r} is of the sense {modality!r}, and {self._encoder} takes "
                f"{', '.join(self._modalities)}; choose another encoder, or leave that source out."
            )
        return self._modalities.index(modality)

    def _look_at(self, ref: MediumRef) -> MediumRef | tuple[str, str] | None:
        """The medium with its content, or why there is none; None where it is gone but was embedded."""
        known = self._known.entry(key_digest(ref.key))
        try:
            with self._locks[ref.source]:
                found = self._sources[ref.source].read_media(ref.media)
            status = None if isinstance(found, bytes) else found.stat()
        except (MediaError, OSError) as error:
            if known is not None and (self._known.is_held(known.content) or self._known.is_continued(known.content)):
                return None  # a file that is gone has its embedding still
            return ref.key, _reason(ref, error)
        try:
            if isinstance(found, bytes):
                stamp = (bytes_digest(found, ref.modality), len(found), NO_FILE)
            elif status and known and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
                stamp = (known.content, known.size, known.mtime_ns)
            else:
                stamp = file_digest(found, ref.modality)
        except OSError as error:
            if known is not None:  # it has changed: the embedding of what it was is not to be taken for it
                self._keys.append(KeyEntry(ref.key, bytes(DIGEST_BYTES), 0, NO_FILE))
            return ref.key, _reason(ref, error)
        is_known = known is not None and (known.content, known.size, known.mtime_ns) == stamp
        return MediumRef(ref.source, ref.media, ref.key, ref.modality, *stamp, is_known)

    def _take(self, ref: MediumRef) -> bool:
        """Put a medium where it belongs; True once its block is full."""
        if not ref.is_known:
            self._keys.append(KeyEntry(ref.key, ref.content, ref.size, ref.mtime_ns))
        if self._known.is_held(ref.content) or ref.content in self._planned:
            return False
        self._planned.add(ref.content, 0)
        if not self._known.is_continued(ref.content):
            self._has_new.add(ref.modality)
        pending = self._pending.setdefault(ref.modality, [])
        pending.append(ref)
        return len(pending) == self._shard_size

    def _block(self, modality: str, *, is_open: bool) -> Block:
        media = self._pending.pop(modality, [])
        block = Block(modality, media if modality in self._has_new else [], self._keys, self._num_rows, is_open)
        self._has_new.discard(modality)
        self._keys, self._num_rows = [], 0
        return block


def media_of(rows: Any) -> Iterator[tuple[str | None, str]]:
    """Medium and sense of each row of a data set; nothing else of it is decoded."""
    if hasattr(rows, "select_columns"):
        for batch in rows.select_columns(["media", "modality"]).iter(batch_size=1000):
            yield from zip(batch["media"], batch["modality"], strict=True)
    else:
        for row in rows:
            yield row["media"], row["modality"]


def _reason(ref: MediumRef, error: MediaError | OSError) -> str:
    if isinstance(error, MediaError):
        return str(error)
    medium = Medium(ref.modality, f"'{printable(ref.media)}'")
    if isinstance(error, FileNotFoundError):
        return str(medium.error("there is no such file", "Check the data's media_root"))
    return str(medium.error("it cannot be read", "Check its permissions and the disk"))


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, depth: int
) -> Iterator[Result]:
    """`map` with threads, in order, at most `depth` items ahead of who takes them."""
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="bindlm-read")
    numbered = iter(items)
    waiting: deque[Future[Result]] = deque()
    try:
        waiting.extend(pool.submit(function, item) for item in islice(numbered, depth))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(numbered, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_ahead(blocks: Generator[Block, None, None], stop: Callable[[], None]) -> Generator[Block, None, None]:
    """The blocks, each made in another thread while the one before is worked on."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bindlm-scan")
    try:
        future = pool.submit(next, blocks, None)
        while (block := future.result()) is not None:
            future = pool.submit(next, blocks, None)
            yield block
    finally:
        stop()
        pool.shutdown(wait=True, cancel_futures=True)
        blocks.close()
