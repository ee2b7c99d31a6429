"""Mixtures of joint embeddings: several senses in one answer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bindlm.errors import ConfigError


def mix_embeddings(weighted: Sequence[tuple[Tensor, float]], *, eps: float = 1e-6) -> Tensor:
    """Weighted mixture of joint embeddings, as ImageBind-LLM (arXiv 2309.03905, section 3.2) is released.

    Each embedding is L2-normalised again and the weights are divided by their sum plus `eps`; the sum is **not**
    normalised, so a mixture of unlike things is shorter than 1.

    Args:
        weighted: pairs of `(B, D_joint)` and a weight of at least 0.
        eps: the release's 1e-6.

    Returns:
        `(B, D_joint)`.

    Raises:
        ConfigError: nothing to mix, unequal shapes, a negative weight, or weights that sum to 0.
    """
    if not weighted:
        raise ConfigError("There is nothing to mix: give at least one (embedding, weight).")
    shapes = {tuple(embedding.shape) for embedding, _ in weighted}
    if len(shapes) > 1:
        raise ConfigError(f"Embeddings of one mixture must have one shape, got {sorted(shapes)}.")
    weights = [float(weight) for _, weight in weighted]
    total = sum(weights)
    if any(not weight >= 0 for weight in weights) or not 0 < total < float("inf"):
        raise ConfigError(f"Weights must be at least 0 and sum to more than 0, got {weights}.")
    mixed = torch.zeros_like(weighted[0][0])
    for embedding, weight in weighted:
        mixed = mixed + weight / (total + eps) * torch.nn.functional.normalize(embedding, dim=-1)
    return mixed
