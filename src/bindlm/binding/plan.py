"""What a recipe would bind, in how many steps and how much memory: `bindlm bind RECIPE --dry-run`."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bindlm.binding.batches import BatchPlan
from bindlm.binding.pairs import SPLITS, PairTable
from bindlm.binding.recipe import BindRecipe
from bindlm.binding.run import steps_of
from bindlm.binding.setup import counts, load_anchor, make_tower, read_table
from bindlm.encoders.towers import AdapterTower, Tower
from bindlm.errors import ConfigError, MediaError

__all__ = ["BindPlan", "plan_binding"]

_TRIED = 20
"""Media that are tried until one can be read."""


@dataclass(frozen=True)
class BindPlan:
    """A run that has not been run."""

    sense: str
    pairs: dict[str, dict[str, int]]
    """Split -> pairs, media, objects and labels, before media are read."""
    parameters: int
    """Of the tower, trained."""
    batch_size: int
    steps_per_epoch: int
    num_steps: int
    memory: dict[str, int]
    """Bytes: `weights` with gradient and AdamW's moments, `activations` of a micro-batch, `batch` of input and
    similarities, `anchors`. A guess: what torch itself takes is not in it."""

    def as_json(self) -> dict[str, Any]:
        """All of it, in plain numbers."""
        return {**vars(self), "memory": {**self.memory, "total": sum(self.memory.values())}}

    def __str__(self) -> str:
        lines = [f"binds {self.sense}"]
        for split in SPLITS:
            lines.append(
                f"  {split:<11} " + ", ".join(f"{count:,} {what}" for what, count in self.pairs[split].items())
            )
        lines.append(f"tower: {self.parameters:,} trained parameters")
        lines.append(
            f"{self.num_steps:,} optimizer steps of {self.batch_size:,} pairs, {self.steps_per_epoch:,} an epoch"
        )
        parts = ", ".join(f"{what} {_megabytes(size)}" for what, size in self.memory.items())
        return "\n".join([*lines, f"memory, about {_megabytes(sum(self.memory.values()))}: {parts}"])


def plan_binding(recipe: BindRecipe) -> BindPlan:
    """Read the tables, build the tower and try one medium, and stop before anything is made.

    Raises:
        ConfigError: a setting is impossible, or a table does not hold what the recipe needs.
        CheckpointError: weights cannot be had.
    """
    pairs = read_table(recipe)
    rows = pairs.rows_of("train")
    if len(rows) < 2:
        raise ConfigError(f"There are {len(rows)} pairs to train on; contrast needs at least 2.")
    needs_encoder = any(not side.column.is_feature for side in pairs.sides)
    embedder = load_anchor(recipe, pairs) if needs_encoder else None
    tower = make_tower(recipe, embedder.dim if embedder else None)
    hard = recipe.objective.hard_negatives
    plan = BatchPlan(len(rows), recipe.optimizer.batch_size, recipe.run.seed)
    steps_per_epoch = max(1, len(rows) // max(1, plan.batch_size // (1 + hard)))
    parameters = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    return BindPlan(
        pairs.modality,
        counts(pairs),
        parameters,
        plan.batch_size,
        steps_per_epoch,
        steps_of(recipe, steps_per_epoch),
        _memory(recipe, pairs, tower, plan.batch_size),
    )


def _memory(recipe: BindRecipe, pairs: PairTable, tower: Tower, batch_size: int) -> dict[str, int]:
    values, activations = _one_row(tower, pairs)
    held = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in tower.parameters())
    similarities = 4 * batch_size * (batch_size + recipe.objective.extra_negatives) * 4
    anchors = sum(len(side.anchors) for side in pairs.sides) * recipe.anchor.views * tower.dim * 4
    return {
        "weights": held,
        "activations": activations * min(recipe.optimizer.micro_batch_size, batch_size),
        "batch": values * batch_size + similarities,
        "anchors": anchors,
    }


def _one_row(tower: Tower, pairs: PairTable) -> tuple[int, int]:
    """Bytes of a medium's values, and of what a forward pass keeps of it for backward."""
    if isinstance(tower, AdapterTower):  # features of a backbone, and an adapter's few layers
        return 4 * tower.dim, 16 * tower.dim
    for medium in pairs.media[:_TRIED]:
        try:
            values = tower.preprocess(medium)
        except MediaError:
            continue
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if not any(storage.data_ptr() == p.untyped_storage().data_ptr() for p in tower.parameters()):
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tower.eval().embed(values[None])
        return values.numel() * values.element_size(), sum(kept.values())
    raise ConfigError(f"None of the first {_TRIED} media can be read; {pairs.media[0]!r} is one.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e6:.1f} MB"
