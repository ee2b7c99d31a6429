"""What training must do to a model's parameters."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def assert_all_trainable_move(model: nn.Module, step: Callable[[], None]) -> None:
    """Two steps: a zero gate, or the zero matrix of LoRA, blocks the gradient behind it during the first."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        step()
    stuck = [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]
    assert not stuck, f"trainable, yet unmoved after two steps: {stuck}"


def assert_gradients_are_slopes(loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> None:
    """The largest number of each parameter's gradient is how fast the loss rises there."""
    loss().backward()
    for parameter in parameters:
        assert parameter.grad is not None
        index = np.unravel_index(int(parameter.grad.abs().argmax()), parameter.shape)
        losses = []
        for step in (3e-3, -3e-3):
            with torch.no_grad():
                parameter[index] += step
                losses.append(loss().item())
                parameter[index] -= step
        assert parameter.grad[index].item() == pytest.approx((losses[0] - losses[1]) / 6e-3, rel=5e-3)
