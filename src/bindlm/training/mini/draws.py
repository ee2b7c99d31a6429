"""Entries drawn at random, with the embeddings to train on."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bindlm.space.entry_names import NamedEntry
from bindlm.training.mini.recipes import DrawConfig
from bindlm.training.mini.samples import EmbeddingSampler


class EntryDraws:
    """Draws entries by source, and an embedding for each.

    Args:
        entries: what can be named: the 1000 classes, then pictures.
        class_keys, views: as `EmbeddingSampler` takes them.
        config: shares and noise.
    """

    def __init__(self, entries: list[NamedEntry], class_keys: Tensor, views: Tensor, config: DrawConfig) -> None:
        self.entries = entries
        self.config = config
        self.sampler = EmbeddingSampler(class_keys, views, config.noise)
        self._by_source = {
            source: [index for index, entry in enumerate(entries) if entry.source == source]
            for source in ("imagenet", "emoji", "furniture")
        }

    def draw(self, count: int, random: np.random.Generator) -> tuple[list[int], Tensor]:
        """`count` entry numbers and their embeddings `(count, D_joint)`, unit length."""
        numbers = [self._entry(random) for _ in range(count)]
        return numbers, self.sampler.draw(numbers, random)

    def _entry(self, random: np.random.Generator) -> int:
        draw = random.random()
        classes, emoji = self.config.classes, self.config.emoji
        source = "imagenet" if draw < classes else "emoji" if draw < classes + emoji else "furniture"
        choices = self._by_source[source]
        return choices[int(random.integers(len(choices)))]


class ReadoutBatches(Dataset[dict[str, Any]]):
    """Batches of entries, each a function of the seed and its number alone, so that a resumed run sees the same.

    Args:
        draws: where they come from.
        num_batches: length.
        batch_size: entries of a batch.
        seed: of everything random.
    """

    def __init__(self, draws: EntryDraws, *, num_batches: int, batch_size: int, seed: int) -> None:
        self.draws = draws
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        numbers, embeddings = self.draws.draw(self.batch_size, np.random.default_rng([self.seed, index]))
        return {"joint_embedding": embeddings, "entry": torch.tensor(numbers)}
