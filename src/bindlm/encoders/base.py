"""What every encoder family offers."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.errors import ConfigError


class JointEncoder(nn.Module, ABC):
    """A frozen encoder of one or more senses into one joint space.

    A family subclasses this, declares `modalities` and `dim`, and writes `embed`.
    """

    modalities: ClassVar[tuple[str, ...]]
    """Senses it takes, for example ("image", "audio")."""
    dim: int
    """Width of the joint embedding, D_joint."""

    @abstractmethod
    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Preprocessed values of one modality to embeddings `(B, D_joint)` before normalisation."""

    def encode(self, modality: str, values: Tensor) -> Tensor:
        """Preprocessed values of one modality to unit-length joint embeddings `(B, D_joint)`.

        Raises:
            ConfigError: the family has no such modality.
        """
        if modality not in self.modalities:
            raise ConfigError(f"{type(self).__name__} has no {modality!r}; it takes {', '.join(self.modalities)}.")
        return F.normalize(self.embed(modality, values), dim=-1)
