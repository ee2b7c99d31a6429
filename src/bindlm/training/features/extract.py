"""Embedding a data set's media once: stopped at any moment, the next run goes on.

import bindlm
from bindlm.training.features import extract_features
from bindlm.training.stage_recipe import FeaturesConfig

report = extract_features(sources, bindlm.load_embedder(), FeaturesConfig("runs/features"))
report.store.row_of("cc3m/00001.jpg")
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bindlm.checkpoints.locks import locked
from bindlm.errors import CheckpointError, ConfigError, MediaError
from bindlm.training.features.embed import MediaEmbedder, ReadMedia, Row, embed_media
from bindlm.training.features.ledger import Ledger
from bindlm.training.features.scan import Block, MediaSource, Scan, one_ahead
from bindlm.training.features.store import FeatureStore
from bindlm.training.stage_recipe import FeaturesConfig

Advance = Callable[[int], object]


@dataclass(frozen=True)
class FeatureReport:
    """What an extraction found and did."""

    embedded: int
    """Different media that were embedded for the first time."""
    reused: int
    """Media whose embedding was there already, or is that of another medium with the same content."""
    unreadable: list[tuple[str, str]]
    """Keys of media that cannot be used, and why; the store does not have them."""
    store: FeatureStore
    damaged: int = 0
    """Files of the store that were missing or damaged, and have been made anew."""


def extract_features(
    sources: Sequence[MediaSource],
    embedder: MediaEmbedder,
    config: FeaturesConfig,
    *,
    progress: bool = True,
    workers: int | None = None,
    verify: bool = False,
) -> FeatureReport:
    """Embed the media of data sets into a store, or bring the store up to date.

    Media of the same content are embedded once. A file counts as changed if its size or its time of change did and its
    content too. Media that cannot be used are listed, in the report and in `unreadable.jsonl`, and tried again by
    another version of bindlm. Ctrl-C keeps what has been embedded; a killed run loses at most one shard.

    Args:
        sources: data sets, with different names.
        embedder: a `bindlm.embedding.Embedder`.
        config: where the store is, how pictures are cropped, how many media a file holds.
        progress: whether to show a bar on stderr, at a terminal only.
        workers: threads that read and decode; None for one a core, at most 4.
        verify: whether all files of the store are read first, and what is damaged is made anew.

    Raises:
        ConfigError: the store is of another encoder or other views, or the encoder lacks a sense of the data.
        CheckpointError: the disk is full or refuses; the store is intact and goes on from there.
    """
    workers = min(4, os.cpu_count() or 1) if workers is None else workers

    def read(number: int, media: str) -> Path | bytes:
        return sources[number].read_media(media)

    with extraction(sources, embedder, embedder.modalities, config, progress, workers, verify) as (work, blocks):
        for block in blocks:
            _embed_block(work, block, read, embedder, workers)
    return work.report


@dataclass
class Extraction:
    """An extraction on its way."""

    ledger: Ledger
    scan: Scan
    advance: Advance
    """Moves the progress bar by so many rows of the data."""
    _report: FeatureReport | None = None

    @property
    def report(self) -> FeatureReport:
        assert self._report is not None, "an extraction is reported once it has ended"
        return self._report

    def finish(self) -> None:
        """Make the store ready to be read."""
        unreadable = sorted([*self.scan.unreadable, *self.ledger.finish(self.scan.seen)])
        self.ledger.write_unreadable(unreadable)
        record = self.ledger.record
        store = FeatureStore.open(self.ledger.path, fingerprint=record.fingerprint)
        reused = len(self.scan.seen) - self.ledger.num_new - len(unreadable)
        self._report = FeatureReport(
            self.ledger.num_new, max(0, reused), unreadable, store, damaged=self.ledger.num_damaged
        )


@contextmanager
def extraction(
    sources: Sequence[MediaSource],
    encoder: Any,
    modalities: Sequence[str],
    config: FeaturesConfig,
    progress: bool,
    workers: int,
    verify: bool,
) -> Iterator[tuple[Extraction, Iterator[Block]]]:
    """Hold a store's lock, give the blocks that are to be embedded, and finish the store when the block ends well."""
    from tqdm import tqdm

    _check_names(sources)
    path = os.path.realpath(config.path)
    name = f"features-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    with ExitStack() as stack:
        stack.enter_context(locked(name, f"making the feature store {config.path}", progress=progress))
        ledger = Ledger(config, encoder, verify=verify)
        scan = Scan(
            sources,
            ledger,
            modalities=modalities,
            encoder=encoder.name,
            shard_size=config.shard_size,
            workers=workers,
        )
        bar = stack.enter_context(
            tqdm(total=_num_rows(sources), desc="bindlm: features", unit="row", disable=None if progress else True)
        )
        work = Extraction(ledger, scan, bar.update)
        blocks = one_ahead(scan.blocks(), scan.stop)
        stack.callback(blocks.close)
        yield work, blocks
        work.finish()


def _embed_block(work: Extraction, block: Block, read: ReadMedia, embedder: MediaEmbedder, workers: int) -> None:
    """Embed what is not held of a block and add it; stopped in the middle, add what there is."""
    results: dict[int, Row | str | None] = dict(work.ledger.held_rows(block))
    todo = [number for number in range(len(block.media)) if number not in results]
    moved = 0
    stream = embed_media(
        [block.media[number] for number in todo],
        read,
        embedder,
        work.ledger.config.views,
        batch_size=work.ledger.config.batch_size,
        workers=workers,
    )
    try:
        for order, result in stream:
            results[todo[order]] = str(result) if isinstance(result, MediaError) else result
            moved += 1
            work.advance(1)
    except BaseException:
        stream.close()
        with suppress(CheckpointError):  # the disk may be what has stopped it
            work.ledger.add(block, results, is_partial=True)
        raise
    note_changed(work.scan, block, results)
    work.ledger.add(block, results)
    work.advance(max(0, block.num_rows - moved))


def note_changed(scan: Scan, block: Block, results: dict[int, Row | str | None]) -> None:
    """List the media of a block that were written to while it was embedded."""
    for number, ref in enumerate(block.media):
        if results.get(number) is None:
            reason = f"{ref.media} changed or went away while it was read. Run it again once nobody writes to it."
            scan.unreadable.append((ref.key, reason))


def _check_names(sources: Sequence[MediaSource]) -> None:
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two sources are called {twice[0]!r}, so their media could not be told apart: name one.")


def _num_rows(sources: Sequence[MediaSource]) -> int | None:
    """Rows of all sources, None where one of them does not tell."""
    try:
        return sum(len(source.rows) for source in sources)
    except TypeError:
        return None
