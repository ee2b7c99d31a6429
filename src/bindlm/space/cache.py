"""The visual cache: an embedding pulled toward pictures the model knows.

ImageBind-LLM (arXiv 2309.03905), section 3.2.3, Eq. (3)-(4), in the paper's form and in the released one.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

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


class CacheSimilarity(StrEnum):
    """What a query and a key are compared by."""

    INNER_PRODUCT = "inner_product"
    """As they are: of keys of different lengths a longer one wins more often."""
    COSINE = "cosine"
    """At unit length."""


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
    modalities: tuple[str, ...] | None = None
    """Senses that are pulled; None for every one."""
    similarity: CacheSimilarity = CacheSimilarity.INNER_PRODUCT
    """What finds the nearest entries and weights them."""
    by_sense: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is otherwise for a sense: `{"audio": {"alpha": 0.9}}`; of `top_k`, `alpha`, `temperature`, `weighting` and
    `similarity`."""

    def __post_init__(self) -> None:
        senses: Any = self.modalities
        if senses is not None:
            if isinstance(senses, str) or not all(isinstance(sense, str) for sense in senses):
                raise ConfigError(f"VisualCacheConfig.modalities must be a list of senses, got {senses!r}.")
            self.modalities = tuple(senses)
        if self.weighting not in list(CacheWeighting):
            raise ConfigError(
                f"VisualCacheConfig.weighting must be one of {', '.join(CacheWeighting)}, got {self.weighting!r}."
            )
        self.weighting = CacheWeighting(self.weighting)
        if self.similarity not in list(CacheSimilarity):
            raise ConfigError(
                f"VisualCacheConfig.similarity must be one of {', '.join(CacheSimilarity)}, got {self.similarity!r}."
            )
        self.similarity = CacheSimilarity(self.similarity)
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"VisualCacheConfig.alpha must lie in [0, 1], got {self.alpha}.")
        if not self.temperature >= 0.0:
            raise ConfigError(f"VisualCacheConfig.temperature must be at least 0, got {self.temperature}.")
        if self.num_entries < 1 or self.dim < 1:
            raise ConfigError(f"A cache needs entries and a width, got {self.num_entries} and {self.dim}.")
        if not 1 <= self.top_k <= self.num_entries:
            raise ConfigError(f"VisualCacheConfig.top_k must lie in 1..{self.num_entries}, got {self.top_k}.")
        for sense in self.by_sense:
            self.for_sense(sense)

    def for_sense(self, sense: str) -> "VisualCacheConfig":
        """How inputs of one sense consult the cache.

        Raises:
            ConfigError: `by_sense` names a setting that is none of a sense, or an impossible value.
        """
        settings = self.by_sense.get(sense, {})
        if not isinstance(settings, dict) or not settings.keys() <= _OF_A_SENSE:
            raise ConfigError(
                f"VisualCacheConfig.by_sense[{sense!r}] may set {', '.join(sorted(_OF_A_SENSE))}, got {settings!r}."
            )
        return replace(self, by_sense={}, **settings)


_OF_A_SENSE = {"top_k", "alpha", "temperature", "weighting", "similarity"}


@dataclass(frozen=True)
class CacheEntry:
    """What one row of a cache is called."""

    id: str
    """Its name, unique in the cache where whoever made it saw to that."""
    caption: str | None = None
    """What is to be seen, where that is known."""
    source: str | None = None
    """Where the picture comes from: a path, an address, the name of a collection."""


@dataclass(frozen=True)
class CacheNeighbour:
    """One entry that an embedding was pulled toward."""

    entry: int
    """Its row."""
    id: str
    caption: str | None
    source: str | None
    similarity: float
    """With the query, as the cache's settings have it: a cosine where both are of unit length."""
    weight: float
    """Its share of what is mixed in: of 1 with `softmax`, the cosine itself with `cosine`."""


class VisualCacheBase(nn.Module, ABC):
    """What a cache does with its nearest entries; where they are kept and how they are found is a subclass's."""

    def __init__(self, config: VisualCacheConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def search(self, joint_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest entries of each row; of equally near ones the lowest first.

        Args:
            joint_embedding: `(B, D_joint)`.

        Returns:
            Cosines `(B, K)`, falling, and entry numbers `(B, K)`.
        """

    @abstractmethod
    def values_of(self, entries: Tensor) -> Tensor:
        """What entries mix in: numbers of any shape `(…)` -> `(…, D_joint)`, unit length."""

    @abstractmethod
    def names_of(self, entries: Sequence[int]) -> list[CacheEntry]:
        """What entries are called; a row without a name has its number as id."""

    def pulls(self, modalities: Collection[str] | None) -> bool:
        """Whether a mixture of these senses is pulled: one that is suffices. None stands for senses unknown: yes."""
        if modalities is None or self.config.modalities is None:
            return True
        return bool(set(modalities) & set(self.config.modalities))

    def for_senses(self, modalities: Collection[str] | None) -> Self | None:
        """This cache as a mixture of these senses meets it.

        Args:
            modalities: their names; None for senses unknown.

        Returns:
            A view of the same entries with the settings of `by_sense`, if the senses agree in them; None where the
            senses are left as they are.
        """
        if not self.pulls(modalities):
            return None
        own = [self.config.for_sense(sense) for sense in modalities or ()]
        if not own or own[0] == self._for_no_sense or any(other != own[0] for other in own):
            return self
        view = object.__new__(type(self))  # not copy.copy, which would open a cache on disk again
        view.__dict__.update(self.__dict__)
        view.config = own[0]
        return view

    @property
    def _for_no_sense(self) -> VisualCacheConfig:
        return replace(self.config, by_sense={})

    def enhance(self, joint_embedding: Tensor, found: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Eq. (3)-(4), or the released variant: `(B, D_joint)` -> `(B, D_joint)`.

        With `cosine` weighting the length of the result is not 1, as in the paper.

        Args:
            joint_embedding: `(B, D_joint)`.
            found: what `search` gave for it, where that is known.
        """
        alpha = self.config.alpha
        similarity, entries = found or self.search(joint_embedding)
        retrieved = torch.einsum("bk,bkd->bd", self._weights(similarity), self.values_of(entries))
        if self.config.weighting is CacheWeighting.COSINE:
            return (1 - alpha) * joint_embedding + alpha * retrieved
        return F.normalize((1 - alpha) * joint_embedding + alpha * F.normalize(retrieved, dim=-1), dim=-1)

    def explain(self, joint_embedding: Tensor) -> list[list[CacheNeighbour]]:
        """The entries that `enhance` draws on, for each of `(B, D_joint)` the nearest first."""
        return self.explain_found(*self.search(joint_embedding))

    def explain_found(self, similarity: Tensor, entries: Tensor) -> list[list[CacheNeighbour]]:
        """As `explain`, of what `search` gave: two of `(B, K)`."""
        shares = self._weights(similarity)
        return [
            [
                CacheNeighbour(row, name.id, name.caption, name.source, cosine, weight)
                for row, name, cosine, weight in zip(rows, self.names_of(rows), cosines, weights, strict=True)
            ]
            for rows, cosines, weights in zip(entries.tolist(), similarity.tolist(), shares.tolist(), strict=True)
        ]

    def _weights(self, similarity: Tensor) -> Tensor:
        if self.config.weighting is CacheWeighting.COSINE:
            return similarity
        return torch.softmax(self.config.temperature * similarity, dim=-1)


class VisualCache(VisualCacheBase):
    """Keys and values in memory, searched exactly.

    Buffers:
        keys: `(N, D_joint)`, what a query is compared with, as `config.similarity` says.
        values: `(N, D_joint)`, unit length: what is mixed in. None where they are the keys at unit length.
    """

    keys: Tensor
    values: Tensor | None
    names: Sequence[CacheEntry]
    """What the rows are called; empty where nobody said."""

    def __init__(self, config: VisualCacheConfig) -> None:
        super().__init__(config)
        self.names = ()
        self.register_buffer("keys", torch.zeros(config.num_entries, config.dim))
        values = torch.zeros(config.num_entries, config.dim) if config.has_own_values else None
        self.register_buffer("values", values)

    def search(self, joint_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """See `VisualCacheBase.search`; exact."""
        top_k = self.config.top_k
        similarity = joint_embedding.to(self.keys.dtype) @ self.keys.T  # (B, N)
        if self.config.similarity is CacheSimilarity.COSINE:
            lengths = joint_embedding.norm(dim=-1, keepdim=True) * self.keys.norm(dim=-1)
            similarity = similarity / lengths.clamp_min(torch.finfo(similarity.dtype).tiny)
        nearest, entries = similarity.topk(top_k, dim=-1)  # (B, K)
        # topk picks among ties as it likes; a whole sort costs 10 to 40 times as much, so only where there are some
        is_tied = (similarity >= nearest[:, -1:]).sum(dim=-1).gt(top_k).any() or nearest.diff(dim=-1).eq(0).any()
        if is_tied:
            ordered, order = similarity.sort(dim=-1, descending=True, stable=True)
            nearest, entries = ordered[:, :top_k], order[:, :top_k]
        return nearest, entries

    def values_of(self, entries: Tensor) -> Tensor:
        """See `VisualCacheBase.values_of`."""
        return self.values[entries] if self.values is not None else F.normalize(self.keys[entries], dim=-1)

    def names_of(self, entries: Sequence[int]) -> list[CacheEntry]:
        """See `VisualCacheBase.names_of`."""
        return [self.names[entry] if self.names else CacheEntry(str(entry)) for entry in entries]
