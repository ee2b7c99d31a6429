"""What a checkpoint of `fit` does not hold of a binding run: buffers, the average of the weights, the best weights.

It stands in the checkpoint's folder, `companion.safetensors`, and is written when the checkpoint is whole. A kill in
between leaves a checkpoint without one, which `drop_lonely` removes: the run goes on from the one before.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from bindlm.binding.model import BindingModel
from bindlm.checkpoints.state import load_state, save_state_atomic
from bindlm.errors import CheckpointError
from bindlm.training import checkpointing

__all__ = ["Companion", "drop_lonely"]

FILE = "companion.safetensors"


class Companion(TrainerCallback):
    """Keeps what a run needs beside its trained weights.

    Args:
        model: in training.
        output: folder of the run.
        decay: of the average of the weights, a step; None for no average.
    """

    def __init__(self, model: BindingModel, output: Path, decay: float | None) -> None:
        self.model, self.output, self.decay = model, output, decay
        self.average = {name: value.detach().clone() for name, value in self._weights()} if decay is not None else {}
        self.best: dict[str, Tensor] = {}
        self.best_score = -1.0
        self.best_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over what stands in the checkpoint that is resumed from; else begin from the weights as they are."""
        if state.global_step:
            self.load(self.output / f"checkpoint-{state.global_step}")
        else:
            self.average = {name: value.detach().clone() for name, value in self._weights()} if self.decay else {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average."""
        with torch.no_grad():
            for name, value in self._weights() if self.decay is not None else ():
                # the first steps count for more, or the start would weigh on for long
                decay = min(self.decay or 0.0, (1 + state.global_step) / (10 + state.global_step))
                self.average[name].lerp_(value.to(self.average[name]), 1 - decay)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write beside the checkpoint."""
        if state.is_world_process_zero:
            save_state_atomic(self.output / f"checkpoint-{state.global_step}" / FILE, self._state())

    def load(self, checkpoint: Path) -> None:
        """Take over what stands in a checkpoint.

        Raises:
            CheckpointError: it is damaged.
        """
        state = load_state(checkpoint / FILE)
        buffers = dict(self.model.named_buffers())
        for name, value in _under(state, "buffer").items():
            if name not in buffers:
                raise CheckpointError(f"{checkpoint} has a buffer {name!r} that the tower lacks.")
            buffers[name].copy_(value)
        device = self.model.logit_scale.log_scale.device
        self.average = {name: value.to(device) for name, value in _under(state, "average").items()}
        self.best = _under(state, "best")
        score, step = state["score"].tolist()
        self.best_score, self.best_step = score, int(step)

    def offer(self, score: float, step: int) -> None:
        """Keep the weights as they are evaluated, where the score is the best so far."""
        if score > self.best_score:
            state = {**dict(self._weights()), **dict(self.model.named_buffers()), **self.average}
            self.best = {name: value.detach().cpu().clone() for name, value in state.items()}
            self.best_score, self.best_step = score, step

    def averaged(self) -> "Swapped":
        """The average in the model's place, while the block runs."""
        return Swapped(self.model, self.average)

    def put_in_place(self, *, is_best: bool) -> None:
        """Give the model for good what is to be saved: the best weights, or the average, or what it has."""
        tensors = self.best if is_best and self.best else self.average
        held = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        with torch.no_grad():
            for name, value in tensors.items():
                held[name].copy_(value)

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]

    def _state(self) -> dict[str, Tensor]:
        parts = {"buffer": dict(self.model.named_buffers()), "average": self.average, "best": self.best}
        state = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return state | {"score": torch.tensor([self.best_score, self.best_step], dtype=torch.float64)}


class Swapped:
    """Other weights in a model's place, while a block runs."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        self.held = {name: value for name, value in model.named_parameters() if name in tensors}
        self.tensors = tensors
        self._before: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        with torch.no_grad():
            for name, value in self.held.items():
                self._before[name] = value.detach().clone()
                value.copy_(self.tensors[name])

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for name, value in self.held.items():
                value.copy_(self._before[name])


def drop_lonely(output: Path) -> None:
    """Remove checkpoints whose companion was never written; only for who has the folder to himself."""
    for path in checkpointing.checkpoints_in(output):
        if not (path / FILE).is_file():
            shutil.rmtree(path)


def _under(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}/"): value for name, value in state.items() if name.startswith(f"{part}/")}
