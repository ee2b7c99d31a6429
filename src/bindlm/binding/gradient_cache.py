"""Batches of thousands with the activations of a few rows in memory.

A contrastive loss wants many pairs at once, but needs of each no more than its embedding. So a batch is embedded in
chunks whose activations are thrown away, and backward makes each chunk's again, one chunk at a time. Loss and gradient
are those of the whole batch.

Source: GradCache (arXiv 2101.06983); here with torch's own checkpointing, which also brings back the random state, so
that dropout falls as it fell the first time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["embed_in_chunks"]


def embed_in_chunks(
    embed: Callable[[Tensor], Tensor], values: Tensor, chunk: int, *, module: nn.Module | None = None
) -> Tensor:
    """`embed(values)` with the activations of one chunk in memory at a time.

    Args:
        embed: `(b, ...)` -> `(b, D)`, each row on its own. Batch norm in training mode is not: its statistics are
            those of a chunk.
        values: `(B, ...)`.
        chunk: rows at a time, at most.
        module: what `embed` runs; its batch norms then update their running averages once, not again in backward.

    Returns:
        `(B, D)`.
    """
    if len(values) <= chunk:
        return embed(values)
    parts = values.tensor_split(-(-len(values) // chunk))  # alike in size: a last one of few rows has no statistics
    if not torch.is_grad_enabled():
        return torch.cat([embed(part) for part in parts])  # (B, D)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), nullcontext() if module is None else _averages_at_rest(module)

    return torch.cat(  # (B, D)
        [checkpoint(embed, part, use_reentrant=False, preserve_rng_state=True, context_fn=contexts) for part in parts]
    )


@contextmanager
def _averages_at_rest(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise as ever while the block runs, and their running averages stay as they are."""
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    before = [(norm, norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    for norm, mean, variance, count in before:
        norm.running_mean = None if mean is None else mean.clone()
        norm.running_var = None if variance is None else variance.clone()
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, mean, variance, count in before:
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, count
