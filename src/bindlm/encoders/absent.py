"""No encoder: for models that are given joint embeddings made elsewhere, or that read text only."""

from typing import Any

from torch import Tensor

from bindlm.encoders.base import JointEncoder
from bindlm.errors import ConfigError

__all__ = ["AbsentEncoder"]


class AbsentEncoder(JointEncoder):
    """Stands where a model was saved without an encoder, and says so when it is used.

    Args:
        dim: width of the joint embeddings that are given, D_joint; 0 where none can be.
        stands_for: family of the encoder that the model was trained with, if its weights do not tell it.
    """

    modalities: tuple[str, ...] = ()

    def __init__(self, dim: int = 0, stands_for: str | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.stands_for = stands_for

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Never gives anything; see `check_modality`."""
        self.check_modality(modality)
        raise AssertionError  # check_modality always raises

    def check_modality(self, modality: Any) -> None:
        """Say that there is no encoder.

        Raises:
            ConfigError: always.
        """
        hint = (
            "give joint_embedding=…, or load it with encoder=…, the published weights of the encoder it was trained "
            "with"
            if self.dim
            else "it takes text only"
        )
        raise ConfigError(f"This model has no encoder for {modality!r}: {hint}.")
