"""What the result of a run depends on, as far as the trainer knows it: a checkpoint of another is not gone on from."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

_NUM_RATES = 9
"""Points at which a schedule is compared: it is a function, and functions have no name that could be."""


def run_identity(
    model: nn.Module,
    optimizer_groups: list[dict[str, Any]],
    schedule: Callable[[int], float],
    *,
    num_steps: int,
    **settings: Any,
) -> dict[str, Any]:
    """Settings of a run as JSON.

    The frozen weights and the data are not looked at: whoever composes the run knows their names and fingerprints.

    Args:
        model: with `requires_grad` set.
        optimizer_groups: as AdamW takes them.
        schedule: optimizer step -> multiplier of the learning rates.
        num_steps: optimizer steps.
        **settings: what else counts, kept as it is.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    steps = sorted({round(index * num_steps / (_NUM_RATES - 1)) for index in range(_NUM_RATES)})
    identity = {
        "num_steps": num_steps,
        "trained": {
            "tensors": len(trained),
            "numbers": sum(parameter.numel() for parameter in trained.values()),
            "sha256": _digest(f"{name} {tuple(value.shape)} {value.dtype}" for name, value in trained.items()),
        },
        "groups": [
            {
                **{key: value for key, value in group.items() if key != "params"},
                "sha256": _digest(names[id(parameter)] for parameter in group["params"]),
            }
            for group in optimizer_groups
        ],
        "schedule": [float(schedule(step)) for step in steps],
        **settings,
    }
    return json.loads(json.dumps(identity))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
