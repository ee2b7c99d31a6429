"""The data of a stage: index in, one finished micro-batch out, the same in every run and on any number of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from bindlm.errors import ConfigError
from bindlm.training.batches import NO_MEDIUM, BatchMaker, Embeddings, draw, store_rows
from bindlm.training.plan import BatchPlan, Picks
from bindlm.training.render import IGNORED, Places
from bindlm.training.stage_recipe import PromptConfig
from bindlm.training.token_table import OpenedSource, tokenize_source

__all__ = ["DataSummary", "TrainingData", "pad_token_of"]

CAPTION, VIEW = 1, 2
"""What is drawn."""
_LOOKED_AT = 32
"""Micro-batches from which shares are reckoned."""


@dataclass(frozen=True)
class DataSummary:
    """What a stage learns from, in numbers."""

    num_samples: int
    """Samples with something to learn."""
    num_dropped: int
    """Samples without: cut before the answer, or refused by the chat template."""
    num_conditioned: int
    """Samples with a joint embedding."""
    mean_tokens: float
    """Tokens of a sample."""
    steps_per_epoch: float
    """Optimizer steps an epoch."""
    fill_ratio: float
    """Share of the tokens that are no padding, over the first micro-batches."""
    target_share: float
    """Share of these that are learned."""

    def __str__(self) -> str:
        dropped = f", {self.num_dropped:,} without anything to learn left out" if self.num_dropped else ""
        return (
            f"{self.num_samples:,} samples ({self.num_conditioned:,} with a medium{dropped}), "
            f"{self.mean_tokens:.1f} tokens each, {self.target_share:.0%} of them learned; "
            f"{self.steps_per_epoch:,.1f} steps an epoch, {1 - self.fill_ratio:.1%} padding"
        )


class TrainingData(Dataset[dict[str, Tensor]]):
    """Micro-batches of a run, by number.

    Args:
        sources: opened data sets, none of them streaming.
        tokenizer: the language model's own.
        prompt: how samples become text.
        batch_size: samples an optimizer step.
        num_micro: micro-batches an optimizer step, see `plan.num_micro_batches`.
        num_steps: optimizer steps of the run; or
        num_epochs: passes over the data.
        seed: of the order and of what is drawn.
        packing: whether samples share rows.
        row_tokens: length of a packed row.
        order: "shuffled" or "released"; see `BatchPlan`.
        split_epoch: of the released order.
        store: embeddings of the data's media; None where there are none.
        zero_image: `(D_joint,)`, embedding of an all-zero picture, for `prompt.zero_image_for_text`.
        conditioned_template: chat template of samples with a medium, as the processor has it.
        places: of media that stand in the text; None where they do not.
        cache: folder for the tokens; None keeps them in memory.

    Raises:
        ConfigError: media without embedding, no samples, or a step that cannot be split.

    Example:
        >>> data = TrainingData([open_source(config)], tokenizer, PromptConfig(), batch_size=32, num_steps=100)
        >>> data[0]["input_ids"].shape  # (R, T)
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
        num_epochs: float | None = None,
        seed: int = 0,
        packing: bool = True,
        row_tokens: int = 512,
        order: str = "shuffled",
        split_epoch: int = 1,
        store: Embeddings | None = None,
        zero_image: Tensor | None = None,
        conditioned_template: str | None = None,
        places: Places | None = None,
        cache: Path | None = None,
    ) -> None:
        if (num_steps is None) == (num_epochs is None):
            raise ConfigError("TrainingData needs one of num_steps and num_epochs.")
        zero = prompt.zero_image_for_text
        if zero and zero_image is None:
            raise ConfigError("PromptConfig.zero_image_for_text needs an encoder that can embed an all-zero picture.")
        self.tables = [
            tokenize_source(
                source, tokenizer, prompt, conditioned_template=conditioned_template, places=places, cache=cache
            )
            for source in sources
        ]
        self.seed = seed
        self.maker = BatchMaker(pad_token_of(tokenizer), packing, row_tokens, store, zero_image)
        self._store_rows = _compact(
            np.concatenate(
                [
                    store_rows(source.name, media, store, zero=zero)
                    for source, table in zip(sources, self.tables, strict=True)
                    for media in table.media()
                ]
            )
        )
        self._starts = np.cumsum([0, *(len(table) for table in self.tables)])
        self.plan = BatchPlan(
            np.concatenate([table.lengths() for table in self.tables]),
            batch_size=batch_size,
            num_micro=num_micro,
            seed=seed,
            packing=packing,
            groups=self._store_rows != NO_MEDIUM,
            sizes=[len(table) for table in self.tables],
            weights=[source.config.weight for source in sources],
            order=order,
            split_epoch=split_epoch,
        )
        self.num_steps: int = num_steps if num_steps is not None else self.plan.num_steps(num_epochs or 1)
        """Optimizer steps of the run."""

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps an epoch."""
        return self.plan.steps_per_epoch

    def __len__(self) -> int:
        """Micro-batches of the run."""
        return self.num_steps * self.plan.num_micro

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Micro-batch `number % num_micro` of optimizer step `number // num_micro`; see `BatchMaker.make`."""
        if not 0 <= number < len(self):
            raise IndexError(f"micro-batch {number} of {len(self)}")
        picks = self.plan.micro_batch(number)
        rows = self._store_rows[picks.samples]
        store = self.maker.store
        views = draw(self.seed, VIEW, *picks, store.num_views if store is not None else 1)
        return self.maker.make(self._tokens(picks), rows, views)

    def _tokens(self, picks: Picks) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """Tokens of each sample, of one of its captions."""
        number_of_table = np.searchsorted(self._starts, picks.samples, side="right") - 1
        inner = picks.samples - self._starts[number_of_table]
        counts = np.ones(len(inner), np.int64)
        for number in np.unique(number_of_table).tolist():
            own = number_of_table == number
            counts[own] = self.tables[number].num_alternatives(inner[own])
        chosen = draw(self.seed, CAPTION, *picks, counts)
        triples = zip(number_of_table.tolist(), inner.tolist(), chosen.tolist(), strict=True)
        return [self.tables[number].tokens(sample, caption) for number, sample, caption in triples]

    def summary(self) -> DataSummary:
        """Counts; the shares are those of the first micro-batches."""
        tokens = targets = area = 0
        for number in range(min(_LOOKED_AT, len(self))):
            batch = self[number]
            tokens += sum(len(ids) for ids, _ in self._tokens(self.plan.micro_batch(number)))
            targets += int((batch["labels"] != IGNORED).sum())
            area += batch["input_ids"].numel()
        return DataSummary(
            num_samples=len(self.plan.lengths),
            num_dropped=sum(table.num_dropped for table in self.tables),
            num_conditioned=int((self._store_rows != NO_MEDIUM).sum()),
            mean_tokens=float(self.plan.lengths.mean()),
            steps_per_epoch=self.steps_per_epoch,
            fill_ratio=tokens / area,
            target_share=targets / tokens,
        )

    def describe(self) -> str:
        """The summary as a line."""
        return str(self.summary())


def pad_token_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills rows; any token will do, for none is learned or seen."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def _compact(rows: NDArray[np.int64]) -> NDArray[np.integer]:
    return rows.astype(np.int32) if not len(rows) or rows.max() < 2**31 else rows
