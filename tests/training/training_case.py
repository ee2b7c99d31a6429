"""A tiny run for the trainer's tests: a bound model, micro-batches as the data gives them, and a call of `fit`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.trainer import TrainResult, fit

from ..tiny import tiny_model, token_batch, unit_rows

LORA = {"r": 2, "lora_alpha": 2, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj", "down_proj"]}
"""With dropout, so that a run which does not restore the random generator ends elsewhere."""

PLAIN_LORA = {**LORA, "lora_dropout": 0.0}
"""Without, so that processes which draw for themselves can be compared with one that does not."""


def micro_batch(index: int, rows: int = 2, length: int = 12) -> dict[str, Tensor]:
    """The `index`-th micro-batch: every third is of text only, the others have media; 7 has no target."""
    generator = torch.Generator().manual_seed(1000 + index)
    ids = token_batch(rows, length, seed=index)
    num_targets = torch.randint(1, length - 2, (rows, 1), generator=generator)  # they differ: means must be weighted
    is_target = (torch.arange(length) >= length - num_targets) & (index != 7)
    batch = {"input_ids": ids, "labels": ids.masked_fill(~is_target, -100)}
    if index % 3 != 2:
        batch["joint_embedding"] = unit_rows(rows, seed=index)
    return batch


class MicroBatches(Dataset[dict[str, Tensor]]):
    """Map-style, and it remembers what was asked for."""

    def __init__(self, length: int, **settings: Any) -> None:
        self.length = length
        self.settings = settings
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= self.length:
            raise IndexError(index)
        self.asked.append(index)
        return micro_batch(index, **self.settings)


def trained_model(stage: str = "both", seed: int = 0, **changes: Any) -> BindLMForConditionalGeneration:
    """A tiny bound model: bridge and gates train ("pretrain"), or LoRA and a norm ("instruct"), or all."""
    model = tiny_model(seed=seed, **{"lora": LORA, **changes})
    model.requires_grad_(False)
    if stage in ("pretrain", "both"):
        model.bridge.requires_grad_(True)
        model.injection.requires_grad_(True)
    if stage in ("instruct", "both"):
        for parameter in model.lora_parameters():
            parameter.requires_grad_(True)
        model.get_decoder().norm.requires_grad_(True)
    return model


def groups(model: torch.nn.Module, lr: float = 1e-2) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "lr": lr, "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "lr": 2 * lr, "weight_decay": 0.0},
    ]


def decay(step: int) -> float:
    """Falls every step, so that a run which does not restore the schedule ends elsewhere."""
    return 1 / (1 + step)


def run(
    model: torch.nn.Module, output: Path, *, num_steps: int = 6, accumulation: int = 2, **changes: Any
) -> TrainResult:
    """A call of `fit` with small numbers."""
    settings: dict[str, Any] = {
        "output": output,
        "num_steps": num_steps,
        "accumulation": accumulation,
        "optimizer_groups": groups(model),
        "schedule": decay,
        "save_every": 2,
        "log_every": 1,
        **changes,
    }
    data = settings.pop("data", None) or MicroBatches(num_steps * accumulation)
    return fit(model, data, **settings)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} tensors differ: {different[:3]}"


class At(TrainerCallback):
    """Does something after a step, before it is saved."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


class Stop(Exception):
    """What ends a run in the middle."""


def stop() -> None:
    raise Stop
