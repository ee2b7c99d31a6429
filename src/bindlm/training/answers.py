"""Loss on answers only: the language model's head runs where the next token is a target, and nowhere else.

A head of 128,000 words makes 0.5 MB of logits a token in fp32; of a question, its answer's few tokens are all that
counts. The head is given those positions alone, and what the language model does with logits afterwards (Gemma's soft
cap, Cohere's and Granite's scale) still happens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.errors import ConfigError
from bindlm.training.render import IGNORED

Owned = tuple[nn.Module, str]
"""A parameter by its module and its name there: sharding swaps the parameter itself between forward and backward."""


def find_targets(labels: Tensor, position_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where logits are wanted, and what they are held to.

    Args:
        labels: `(R, T)`, aligned with the tokens: a token's label is the token itself, or -100.
        position_ids: `(R, T)`; in a packed row a position of 0 starts a sample, which nothing before it predicts.

    Returns:
        Positions `(A,)` in the flattened `(R * T)`, each one before its target, and the targets `(A,)`.
    """
    targets = labels[:, 1:]  # (R, T - 1)
    is_target = targets != IGNORED
    if position_ids is not None and position_ids.shape == labels.shape:
        is_target = is_target & (position_ids[:, 1:] != 0)
    places = F.pad(is_target, (0, 1)).flatten().nonzero().squeeze(1)  # (A,)
    return places, targets[is_target]


def count_targets(labels: Tensor, position_ids: Tensor | None = None) -> int:
    """How many tokens the loss of these labels is a mean over."""
    return len(find_targets(labels, position_ids)[1])


@contextmanager
def head_only_at(model: nn.Module, places: Tensor, touched: Sequence[Owned] = ()) -> Iterator[None]:
    """While the block runs, the head of `model` sees the hidden states of `places` alone: `(1, A, D_lm)`.

    Args:
        model: a transformers model with `get_output_embeddings()`.
        places: `(A,)` in the flattened `(R * T)`.
        touched: parameters that get a gradient from this call in any case, zero where nothing else gives them one.
            Devices that average their gradients wait for each other, and a text-only batch never calls the bridge.

    Raises:
        ConfigError: the model has no head, or ran without calling it.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, nn.Module):
        raise ConfigError(f"{type(model).__name__} has no output embeddings, so there is no loss on its answers.")
    calls = 0

    def gather(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        calls += 1
        hidden_states = args[0].flatten(0, 1).index_select(0, places).unsqueeze(0)  # (1, A, D_lm)
        return (touch(hidden_states, touched), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise ConfigError(
            f"{type(model).__name__} called its output embeddings {calls} times in one forward, expected once; "
            "training needs a causal language model of transformers whose head is a module of its own."
        )


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropies of logits `(1, A, V)`, in fp32; exactly 0, with a gradient, where A is 0."""
    return F.cross_entropy(logits[0].float(), targets, reduction="sum")


def touch(values: Tensor, parameters: Sequence[Owned]) -> Tensor:
    """`values`, unchanged, through which backward gives each of `parameters` at least a gradient of zeros."""
    if not parameters or not torch.is_grad_enabled():
        return values
    return _Touch.apply(values, *(getattr(module, name) for module, name in parameters))


class _Touch(torch.autograd.Function):
    """Costs one fill of zeros a parameter, in backward; `0 * parameter.sum()` would read them all, twice."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return values.clone()  # a view would lose FSDP's hook on it where something is added in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return (gradients[0], *zeros)
