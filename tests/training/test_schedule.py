"""The learning rate over a run, against the numbers of the release."""

import json
import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from bindlm.errors import ConfigError
from bindlm.training.schedule import step_multiplier, warmup_cosine

from ..golden import GOLDEN


def released() -> list[dict[str, Any]]:
    path = GOLDEN / "imagebind_llm" / "training_rules.json"
    if not path.is_file():
        pytest.skip("../shared/golden is not beside this checkout")
    return json.loads(path.read_text())["learning_rate"]


def test_rate_is_the_releases_at_every_fractional_epoch() -> None:
    count = 0
    for case in released():
        settings = case["args"]
        for epoch, expected in case["epoch_to_lr"]:
            given = warmup_cosine(
                epoch,
                learning_rate=settings["lr"],
                min_learning_rate=settings["min_lr"],
                warmup=settings["warmup_epochs"],
                total=settings["epochs"],
            )
            assert abs(given - expected) <= 1e-12
            assert given == pytest.approx(expected, rel=1e-12)  # the last one is 4.7e-12 as a whole
            count += 1
    assert count >= 20


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates_over(optimizer: torch.optim.Optimizer, steps: int, **settings: Any) -> list[list[float]]:
    """The rates each of `steps` optimizer steps is taken at."""
    schedule, rates = LambdaLR(optimizer, step_multiplier(**settings)), []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


def test_steps_are_taken_at_the_releases_rates() -> None:
    """40 iterations an epoch: step 20 is epoch 0.5, and so on; every group keeps its share."""
    rates = rates_over(optimizer_of(1.25e-4, 1.25e-2), 160, num_steps=160, warmup_steps=40)
    assert len(rates) == 160
    compared = 0
    for epoch, expected in released()[1]["epoch_to_lr"]:
        step = 40 * epoch
        if step == int(step):
            assert rates[int(step)] == pytest.approx([expected, 100 * expected], rel=1e-12)
            compared += 1
    assert compared >= 7


def test_rate_rises_from_zero_peaks_and_ends_at_the_least() -> None:
    rates = [row[0] for row in rates_over(optimizer_of(2.0), 13, num_steps=10, warmup_steps=4, min_ratio=0.25)]
    assert rates[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert all(before > after for before, after in zip(rates[4:10], rates[5:11], strict=True))
    assert rates[7] == pytest.approx(1.25)  # half way down
    assert rates[10:] == [0.5, 0.5, 0.5], "after the end the least rate stays"


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    assert rates_over(optimizer_of(3.0), 1, num_steps=5) == [[3.0]]
    assert rates_over(optimizer_of(3.0), 2, num_steps=5, warmup_steps=0.5)[1][0] == pytest.approx(
        3.0 * 0.5 * (1 + math.cos(math.pi * 0.5 / 4.5))
    )


def test_all_warmup_never_falls() -> None:
    rates = [row[0] for row in rates_over(optimizer_of(1.0), 4, num_steps=4, warmup_steps=4)]
    assert rates == [0.0, 0.25, 0.5, 0.75]


def test_schedule_goes_on_where_a_saved_one_stopped() -> None:
    whole = rates_over(optimizer_of(1.0), 10, num_steps=10, warmup_steps=3)
    optimizer = optimizer_of(1.0)
    schedule = LambdaLR(optimizer, step_multiplier(num_steps=10, warmup_steps=3))
    for _ in range(6):
        optimizer.step()
        schedule.step()
    states = schedule.state_dict(), optimizer.state_dict()
    other = optimizer_of(1.0)
    resumed = LambdaLR(other, step_multiplier(num_steps=10, warmup_steps=3))
    other.load_state_dict(states[1])
    resumed.load_state_dict(states[0])
    for step in range(6, 10):
        assert [other.param_groups[0]["lr"]] == whole[step]
        other.step()
        resumed.step()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_steps": 0}, "at least 1 step"),
        ({"num_steps": 5, "warmup_steps": 6}, "num_steps=5, warmup_steps=6"),
        ({"num_steps": 5, "warmup_steps": -1}, "warmup_steps=-1"),
        ({"num_steps": 5, "min_ratio": 1.5}, "1.5 times the peak"),
        ({"num_steps": 5, "min_ratio": -0.1}, "between 0 and the peak"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        step_multiplier(**settings)
