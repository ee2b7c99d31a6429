"""The visual cache: an embedding pulled toward pictures the model knows.

ImageBind-LLM (arXiv 2309.03905), section 3.2.3, Eq. (3)-(4), in the paper's form and in the released one.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.errors import ConfigError


class CacheWeighting(StrEnum):
    """How retrieved vectors are weighted."""

    COSINE = "cosine"
    """Paper, Eq. (3)-(4): raw cosines as weights, neither softmax nor renormalisation."""
    SOFTMAX = "softmax"
    """Release: softmax of the cosines times `temperature`; the aggregate and the blend are L2-normalised."""


@dataclass
class VisualCacheConfig:
    """How a cache is consulted."""

    num_entries: int
    """N, rows of the cache."""
    dim: int
    """D_joint."""
    top_k: int = 10
    """Neighbours that count; 10 is the released default."""
    alpha: float = 0.5
    """Share of the retrieved feature, 0 to 1; 0.5 is the released default, the paper names no value."""
    temperature: float = 20.0
    """Factor on the cosines before the softmax; 20 is the released default. Only `softmax` reads it."""
    weighting: CacheWeighting = CacheWeighting.SOFTMAX
    has_own_values: bool = False
    """Whether what is mixed in differs from what is compared; otherwise it is the keys at unit length."""

    def __post_init__(self) -> None:
        if self.weighting not in list(CacheWeighting):
            raise ConfigError(
                f"VisualCacheConfig.weighting must be one of {', '.join(CacheWeighting)}, got {self.weighting!r}."
            )
        self.weighting = CacheWeighting(self.weighting)
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"VisualCacheConfig.alpha must lie in [0, 1], got {self.alpha}.")
        if not self.temperature >= 0.0:
            raise ConfigError(f"VisualCacheConfig.temperature must be at least 0, got {self.temperature}.")
        if self.num_entries < 1 or self.dim < 1:
            raise ConfigError(f"A cache needs entries and a width, got {self.num_entries} and {self.dim}.")
        if not 1 <= self.top_k <= self.num_entries:
            raise ConfigError(f"VisualCacheConfig.top_k must lie in 1..{self.num_entries}, got {self.top_k}.")


class VisualCache(nn.Module):
    """Keys and values in memory, searched exactly.

    Buffers:
        keys: `(N, D_joint)`, what a query is compared with, by inner product. Keys of one length make that a cosine; a
            longer key wins more often.
        values: `(N, D_joint)`, unit length: what is mixed in. None where they are the keys at unit length.
    """

    keys: Tensor
    values: Tensor | None

    def __init__(self, config: VisualCacheConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("keys", torch.zeros(config.num_entries, config.dim))
        values = torch.zeros(config.num_entries, config.dim) if config.has_own_values else None
        self.register_buffer("values", values)

    def search(self, joint_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest entries of each row; of equally near ones the lowest first.

        Args:
            joint_embedding: `(B, D_joint)`.

        Returns:
            Cosines `(B, K)`, falling, and entry numbers `(B, K)`.
        """
        top_k = self.config.top_k
        similarity = joint_embedding.to(self.keys.dtype) @ self.keys.T  # (B, N)
        nearest, entries = similarity.topk(top_k, dim=-1)  # (B, K)
        # topk picks among ties as it likes; a whole sort costs 10 to 40 times as much, so only where there are some
        is_tied = (similarity >= nearest[:, -1:]).sum(dim=-1).gt(top_k).any() or nearest.diff(dim=-1).eq(0).any()
        if is_tied:
            ordered, order = similarity.sort(dim=-1, descending=True, stable=True)
            nearest, entries = ordered[:, :top_k], order[:, :top_k]
        return nearest, entries

    def enhance(self, joint_embedding: Tensor) -> Tensor:
        """Eq. (3)-(4), or the released variant: `(B, D_joint)` -> `(B, D_joint)`.

        With `cosine` weighting the length of the result is not 1, as in the paper.
        """
        alpha = self.config.alpha
        similarity, entries = self.search(joint_embedding)
        values = self.values[entries] if self.values is not None else F.normalize(self.keys[entries], dim=-1)
        if self.config.weighting is CacheWeighting.COSINE:
            retrieved = torch.einsum("bk,bkd->bd", similarity, values)
            return (1 - alpha) * joint_embedding + alpha * retrieved
        weights = torch.softmax(self.config.temperature * similarity, dim=-1)
        retrieved = F.normalize(torch.einsum("bk,bkd->bd", weights, values), dim=-1)
        return F.normalize((1 - alpha) * joint_embedding + alpha * retrieved, dim=-1)
