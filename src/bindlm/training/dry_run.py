"""What a recipe would train, on how much, and in how much memory: `bindlm train RECIPE --dry-run`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.training.bound import recipe_model
from bindlm.training.memory import MemoryEstimate, estimate_memory
from bindlm.training.processes import num_processes
from bindlm.training.rehearsal import StepShape
from bindlm.training.run import open_sources, training_data
from bindlm.training.samples import DataSummary, TrainingData
from bindlm.training.stage_recipe import StageRecipe
from bindlm.tuning.parameter_table import ParameterTable, parameter_table
from bindlm.tuning.stages import prepare_stage

_LOOKED_AT = 64
"""Micro-batches among which the largest is sought."""


@dataclass(frozen=True)
class StagePlan:
    """A stage that has not been run."""

    data: DataSummary
    num_steps: int
    """Optimizer steps."""
    accumulation: int
    """Micro-batches a device takes for one of them."""
    parameters: ParameterTable
    memory: MemoryEstimate
    """On each device."""
    shape: StepShape
    """Of the largest micro-batch that was looked at."""

    def as_json(self) -> dict[str, Any]:
        """All of it, in plain numbers."""
        from dataclasses import asdict

        rows = {row.part: {"trained": row.trained, "frozen": row.frozen} for row in self.parameters.rows}
        return {
            "data": asdict(self.data),
            "num_steps": self.num_steps,
            "accumulation": self.accumulation,
            "parameters": rows,
            "micro_batch": asdict(self.shape),
            "memory": self.memory.as_json(),
        }

    def __str__(self) -> str:
        shape = self.shape
        return (
            f"{self.data}\n{self.num_steps:,} optimizer steps of {self.accumulation} micro-batches a device, the "
            f"largest {shape.rows} x {shape.row_tokens} tokens\n\n{self.parameters}\n\n{self.memory}"
        )


class _ZeroEmbeddings:
    """Stands for a feature store that is not there yet.

    Args:
        dim: D_joint.
    """

    num_views = 1

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Every medium has a row."""
        return np.zeros(len(keys), np.int64)

    def get(self, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        """`(B, D_joint)`."""
        return torch.zeros(len(rows), self.dim)


def plan_stage(recipe: StageRecipe) -> StagePlan:
    """Read the data and set the model up as the stage would, and stop before its first step.

    Media are not looked at: their embeddings have the same size whatever is in them.

    Raises:
        ConfigError: a setting is impossible, or a data set is missing.
        CheckpointError: weights cannot be had.
    """
    sources = open_sources(recipe)
    model = recipe_model(recipe.model, seed=recipe.run.seed)
    config, dim = model.config.to_dict(), model.encoder.dim
    data, accumulation = training_data(recipe, sources, model, _ZeroEmbeddings(dim), torch.zeros(dim))
    if not isinstance(data, TrainingData):
        raise ConfigError("A streamed data set has no size to plan with; give --dry-run a part of it on the disk.")
    prepare_stage(model, recipe.stage, recipe.tuning)
    shape, table = _largest(data), parameter_table(model)
    memory = estimate_memory(
        type(model.config).from_dict(config),
        recipe.stage,
        recipe.tuning,
        shape,
        bf16=recipe.run.bf16,
        gradient_checkpointing=recipe.run.gradient_checkpointing,
        accumulation=accumulation,
        num_processes=num_processes(),
        is_sharded=bool(recipe.run.trainer.get("fsdp")),
        device="cuda" if torch.cuda.is_available() else "cpu",
        encoder=model.encoder.to("meta") if isinstance(model.config.encoder_weights, str) else None,
    )
    return StagePlan(data.summary(), data.num_steps, accumulation, table, memory, shape)


def _largest(data: TrainingData) -> StepShape:
    """Of the first micro-batches, that with the most tokens."""
    shapes = [StepShape.of(data[number]) for number in range(min(_LOOKED_AT, len(data)))]
    return max(shapes, key=lambda shape: shape.rows * shape.row_tokens)
