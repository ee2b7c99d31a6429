"""The data of a stage that are never all kept: rows as they come, shuffled within a window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from bindlm.errors import ConfigError
from bindlm.training.batches import NO_MEDIUM, BatchMaker, Embeddings, draw, store_rows
from bindlm.training.data.sample import Sample
from bindlm.training.plan import split_step
from bindlm.training.render import IGNORED, Places, Rendered, renderer
from bindlm.training.samples import CAPTION, VIEW, pad_token_of
from bindlm.training.stage_recipe import PromptConfig
from bindlm.training.token_table import OpenedSource, is_conditioned_sample, render_alternatives

__all__ = ["StreamedData"]

_STEPS_A_WINDOW = 8
_MOST_DROPPED = 100_000
"""Samples in a row without anything to learn after which the data are given up."""


@dataclass
class _Drawn:
    """A row that was read: of which source, where in it, and in which pass."""

    source: int
    number: int
    visit: int
    sample: Sample


@dataclass
class _Ready:
    """A window's samples, ready to be shuffled."""

    tokens: list[tuple[NDArray[np.int32], NDArray[np.bool_]]] = field(default_factory=list)
    drawn: list[_Drawn] = field(default_factory=list)


class StreamedData(IterableDataset[dict[str, Tensor]]):
    """Micro-batches without end from sources that are read as they are needed.

    Rows are shuffled within windows of eight optimizer steps; a source that ends begins again. Sources are drawn in
    the ratio of their weights, since nobody knows their sizes. The same arguments give the same micro-batches, so
    skipping as many as a run has seen resumes it, at the price of rendering them again. All micro-batches of all
    devices come out, in order: accelerate hands each process its own.

    Args:
        sources: opened data sets, streaming or not.
        num_micro: micro-batches an optimizer step: accumulation times devices.
        num_steps: optimizer steps after which the stream ends; None for never.

    The others are those of `TrainingData`.

    Raises:
        ConfigError: a step cannot be split; while reading: media without embedding, or nothing to learn.
    """

    def __init__(
        self,
        sources: Sequence[OpenedSource],
        tokenizer: PreTrainedTokenizerBase,
        prompt: PromptConfig,
        *,
        batch_size: int,
        num_micro: int = 1,
        num_steps: int | None = None,
        seed: int = 0,
        packing: bool = True,
        row_tokens: int = 512,
        store: Embeddings | None = None,
        zero_image: Tensor | None = None,
        conditioned_template: str | None = None,
        places: Places | None = None,
    ) -> None:
        if not 1 <= num_micro <= batch_size:
            raise ConfigError(f"A step of batch_size {batch_size} cannot be split into {num_micro} micro-batches.")
        if prompt.zero_image_for_text and zero_image is None:
            raise ConfigError("PromptConfig.zero_image_for_text needs an encoder that can embed an all-zero picture.")
        self.sources, self.tokenizer, self.prompt = list(sources), tokenizer, prompt
        self.batch_size, self.num_micro, self.num_steps, self.seed = batch_size, num_micro, num_steps, seed
        self.conditioned_template, self.places = conditioned_template, places
        self.maker = BatchMaker(pad_token_of(tokenizer), packing, row_tokens, store, zero_image)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError("A streamed source is read by one worker: set dataloader_num_workers to 0 or 1.")
        done = 0
        for number, window in enumerate(self._windows()):
            rows, views = self._media(window.drawn)
            order = np.random.default_rng([self.seed, number]).permutation(len(window.drawn))
            for step in order.reshape(-1, self.batch_size):
                if done == self.num_steps:
                    return
                done += 1
                yield from self._step(step, window, rows, views)

    def _step(
        self, step: NDArray[np.int64], window: _Ready, rows: NDArray[np.int64], views: NDArray[np.int64]
    ) -> Iterator[dict[str, Tensor]]:
        lengths = np.array([len(window.tokens[at][0]) for at in step])
        groups = rows[step] != NO_MEDIUM
        for part in split_step(lengths, groups, self.num_micro, packing=self.maker.packing):
            chosen = step[part]
            yield self.maker.make([window.tokens[at] for at in chosen], rows[chosen], views[chosen])

    def _windows(self) -> Iterator[_Ready]:
        """Windows of whole steps, of samples that have something to learn."""
        size = self.batch_size * _STEPS_A_WINDOW
        rows, ready, num_dropped = self._rows(), _Ready(), 0
        while True:
            drawn = [next(rows) for _ in range(size - len(ready.drawn))]
            found, refusal = self._render(drawn)
            kept = [pair for pair in zip(drawn, found, strict=True) if pair[1] is not None]
            num_dropped = 0 if kept else num_dropped + len(drawn)
            if num_dropped >= _MOST_DROPPED:
                raise ConfigError(f"{num_dropped} samples in a row have nothing to learn. {refusal or ''}".rstrip())
            for each, one in kept:
                assert one is not None
                ids = np.array(one.input_ids, dtype=np.int32)
                ready.tokens.append((ids, np.array(one.labels) != IGNORED))
                ready.drawn.append(each)
            if len(ready.drawn) == size:
                yield ready
                ready = _Ready()

    def _render(self, drawn: Sequence[_Drawn]) -> tuple[list[Rendered | None], str | None]:
        """Tokens of each row, of one of its captions; None where nothing is left."""
        found: list[Rendered | None] = [None] * len(drawn)
        refusal = None
        captions = self._draw(CAPTION, drawn, [max(1, len(each.sample.captions)) for each in drawn])
        chosen = [_with_caption(each.sample, number) for each, number in zip(drawn, captions.tolist(), strict=True)]
        for is_conditioned in (False, True):
            own = [at for at, one in enumerate(chosen) if is_conditioned_sample(one, self.prompt) == is_conditioned]
            maker = renderer(
                self.tokenizer,
                self.prompt,
                is_conditioned=is_conditioned,
                conditioned_template=self.conditioned_template,
                places=self.places,
            )
            alternatives, refused = render_alternatives(maker, [chosen[at] for at in own])
            refusal = refusal or refused
            for at, each in zip(own, alternatives, strict=True):
                found[at] = each[0] if each else None
        return found, refusal

    def _media(self, drawn: Sequence[_Drawn]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the store and views."""
        rows = np.full(len(drawn), NO_MEDIUM, np.int64)
        for number, source in enumerate(self.sources):
            own = [at for at, each in enumerate(drawn) if each.source == number]
            media = [drawn[at].sample.media for at in own]
            rows[own] = store_rows(source.name, media, self.maker.store, zero=self.prompt.zero_image_for_text)
        num_views = self.maker.store.num_views if self.maker.store is not None else 1
        return rows, self._draw(VIEW, drawn, [num_views] * len(drawn))

    def _draw(self, salt: int, drawn: Sequence[_Drawn], counts: Sequence[int]) -> NDArray[np.int64]:
        numbers = np.array([each.number * len(self.sources) + each.source for each in drawn], dtype=np.int64)
        visits = np.array([each.visit for each in drawn], dtype=np.int64)
        return draw(self.seed, salt, numbers, visits, np.array(counts, dtype=np.int64))

    def _rows(self) -> Iterator[_Drawn]:
        """Rows of all sources, in the ratio of their weights."""
        weights = np.array([source.config.weight for source in self.sources])
        random = np.random.default_rng([self.seed, 0, 1])
        streams = [self._rows_of(number) for number in range(len(self.sources))]
        while True:
            for number in random.choice(len(streams), size=1024, p=weights / weights.sum()).tolist():
                yield next(streams[number])

    def _rows_of(self, source: int) -> Iterator[_Drawn]:
        opened, visit = self.sources[source], 0
        while True:
            number = -1
            for number, row in enumerate(opened.rows):
                yield _Drawn(source, number, visit, opened.sample(row))
            if number < 0:
                raise ConfigError(f"{opened.name} has no samples.")
            visit += 1


def _with_caption(sample: Sample, number: int) -> Sample:
    """Only one of its captions."""
    if not sample.captions:
        return sample
    return Sample(sample.id, sample.turns, (sample.captions[number],), sample.media, sample.modality)
