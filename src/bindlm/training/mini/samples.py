"""Joint embeddings to train on: prototypes made as uncertain as photographs are."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class NoiseConfig:
    """How a class prototype becomes something like the embedding of a photograph of that class."""

    cosine_low: float = 0.16
    """Smallest cosine between an embedding and its own prototype; photographs have 0.15 to 0.5."""
    cosine_high: float = 0.50
    """Largest such cosine."""
    confusers: int = 4
    """Most other classes that are mixed in, as a photograph shows or resembles more than one thing."""
    confuser_share: float = 0.75
    """Largest weight of a confuser beside the class itself."""
    neighbour_temperature: float = 12.0
    """How strongly confusers are drawn from similar classes."""
    picture_residual: float = 0.5
    """Largest share of the noise that is the residual of a real picture in place of a random direction."""


class EmbeddingSampler:
    """Draws `(D_joint,)` embeddings for an entry.

    Entries 0..999 are classes, the others pictures.
    """

    def __init__(self, class_keys: Tensor, views: Tensor, config: NoiseConfig) -> None:
        """
        Args:
            class_keys: `(1000, D_joint)`.
            views: `(P, V, D_joint)`, unit-length embeddings of the pictures' views.
        """
        self.config = config
        self.prototypes = F.normalize(class_keys, dim=-1)
        self.views = views
        similarity = self.prototypes @ self.prototypes.T
        similarity.fill_diagonal_(-1)
        weights = torch.softmax(config.neighbour_temperature * similarity, dim=1).double().numpy()
        uniform = 1 / len(weights)
        self._confuser_odds = 0.7 * weights / weights.sum(1, keepdims=True) + 0.3 * uniform
        self._confuser_odds /= self._confuser_odds.sum(1, keepdims=True)

    def draw(self, entry: int, random: np.random.Generator) -> Tensor:
        """One embedding of `entry`, unit length."""
        if entry >= len(self.prototypes):
            return self._picture(entry - len(self.prototypes), random)
        return self._prototype(entry, random)

    def _picture(self, index: int, random: np.random.Generator) -> Tensor:
        views = self.views[index]
        shares = torch.from_numpy(random.dirichlet(np.ones(len(views)))).float()
        noise = self._noise(views.shape[-1], random) * random.uniform(0, 0.7)
        return F.normalize(F.normalize(shares @ views, dim=-1) + noise, dim=-1)

    def _prototype(self, index: int, random: np.random.Generator) -> Tensor:
        config = self.config
        signal = self.prototypes[index].clone()
        count = int(random.integers(0, config.confusers + 1))
        if count:
            others = random.choice(len(self.prototypes), size=count, replace=False, p=self._confuser_odds[index])
            shares = torch.from_numpy(random.uniform(0, config.confuser_share, count)).float()
            signal = signal + shares @ self.prototypes[others]
        signal = F.normalize(signal, dim=-1)
        noise = self._noise(len(signal), random)
        if random.random() < config.picture_residual:
            picture = self.views[int(random.integers(len(self.views))), int(random.integers(self.views.shape[1]))]
            noise = F.normalize(noise + random.uniform(0.2, 1.0) * picture, dim=-1)
        noise = F.normalize(noise - (noise @ signal) * signal, dim=-1)
        cosine = random.uniform(config.cosine_low, config.cosine_high)
        return cosine * signal + (1 - cosine**2) ** 0.5 * noise

    @staticmethod
    def _noise(dim: int, random: np.random.Generator) -> Tensor:
        return F.normalize(torch.from_numpy(random.standard_normal(dim, dtype=np.float32)), dim=-1)
