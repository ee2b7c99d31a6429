"""Joint embeddings to train on: prototypes made as uncertain as photographs are."""

from collections.abc import Sequence
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
    """Draws joint embeddings for entries: 0..999 are classes, the others pictures.

    Args:
        class_keys: `(1000, D_joint)`.
        views: `(P, V, D_joint)`, unit-length embeddings of the pictures' views.
        config: the noise.
    """

    def __init__(self, class_keys: Tensor, views: Tensor, config: NoiseConfig) -> None:
        self.config = config
        self.prototypes = F.normalize(class_keys, dim=-1)
        self.views = views
        similarity = self.prototypes @ self.prototypes.T
        similarity.fill_diagonal_(-torch.inf)
        odds = torch.softmax(config.neighbour_temperature * similarity, dim=1)
        uniform = 1 / len(odds)
        self._log_odds = (0.7 * odds + 0.3 * uniform).log().fill_diagonal_(-torch.inf).numpy()

    def draw(self, entries: Sequence[int], random: np.random.Generator) -> Tensor:
        """One embedding for each entry: `(B, D_joint)`, unit length."""
        numbers = np.asarray(entries)
        num_classes = len(self.prototypes)
        is_class = torch.from_numpy(numbers < num_classes)[:, None]
        of_class = self._prototypes(np.minimum(numbers, num_classes - 1), random)
        of_picture = self._pictures(np.maximum(numbers - num_classes, 0), random)
        return torch.where(is_class, of_class, of_picture)

    def _pictures(self, indices: np.ndarray, random: np.random.Generator) -> Tensor:
        """Random blends of a picture's views, and some noise."""
        views = self.views[indices]  # (B, V, D_joint)
        shares = torch.from_numpy(random.dirichlet(np.ones(views.shape[1]), len(indices))).float()
        blend = F.normalize(torch.einsum("bv,bvd->bd", shares, views), dim=-1)
        strength = torch.from_numpy(random.uniform(0, 0.7, (len(indices), 1))).float()
        return F.normalize(blend + strength * self._noise(blend.shape, random), dim=-1)

    def _prototypes(self, indices: np.ndarray, random: np.random.Generator) -> Tensor:
        """Prototypes among confusers, at the cosine that photographs have."""
        config, batch = self.config, len(indices)
        signal = self.prototypes[indices]
        if config.confusers:
            # Gumbel's trick: the largest of noisy log-odds are a draw without replacement
            noisy = self._log_odds[indices] + random.gumbel(size=(batch, len(self.prototypes)))
            others = np.argpartition(-noisy, config.confusers, axis=1)[:, : config.confusers]
            shares = random.uniform(0, config.confuser_share, (batch, config.confusers))
            shares *= np.arange(config.confusers) < random.integers(0, config.confusers + 1, (batch, 1))
            mixed = torch.einsum("bk,bkd->bd", torch.from_numpy(shares).float(), self.prototypes[others])
            signal = F.normalize(signal + mixed, dim=-1)
        noise = self._noise(signal.shape, random)
        picture = self.views[
            random.integers(len(self.views), size=batch), random.integers(self.views.shape[1], size=batch)
        ]
        share = random.uniform(0.2, 1.0, (batch, 1)) * (random.random((batch, 1)) < config.picture_residual)
        noise = F.normalize(noise + torch.from_numpy(share).float() * picture, dim=-1)
        noise = F.normalize(noise - (noise * signal).sum(1, keepdim=True) * signal, dim=-1)
        cosine = torch.from_numpy(random.uniform(config.cosine_low, config.cosine_high, (batch, 1))).float()
        return cosine * signal + (1 - cosine**2).sqrt() * noise

    @staticmethod
    def _noise(shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
        return F.normalize(torch.from_numpy(random.standard_normal(shape, dtype=np.float32)), dim=-1)
