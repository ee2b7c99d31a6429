"""What every encoder family offers."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.errors import ConfigError


class JointEncoder(nn.Module, ABC):
    """A frozen encoder of one or more senses into one joint space.

    A family subclasses this, declares `modalities` and `dim`, and writes `embed` and `preprocess`; one row in
    `bindlm.encoders.ENCODER_FAMILIES` makes it known.
    """

    modalities: tuple[str, ...]
    """Senses it takes, for example ("image", "audio"); a family that can leave towers out sets it on the instance."""
    dim: int
    """Width of the joint embedding, D_joint."""

    @abstractmethod
    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Preprocessed values of one modality to embeddings `(B, D_joint)` before normalisation."""

    def embed_views(self, pixel_values: Tensor) -> Tensor:
        """Several pictures of each thing: `(B, V, 3, S, S)` -> `(B, D_joint)`, not normalised.

        Raises:
            ConfigError: the family knows no pictures.
        """
        self.check_modality("image")
        views = F.normalize(self.embed("image", pixel_values.flatten(0, 1)), dim=-1)  # (B * V, D_joint)
        return views.unflatten(0, pixel_values.shape[:2]).mean(dim=1)

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One medium to what `encode` takes a batch of, without the batch axis.

        Touches no weights, so that other threads may prepare media while the encoder works.

        Args:
            modality: one of `modalities`.
            source: a path, bytes or array, as `bindlm.media` reads the modality; for "text" the text itself.
            allow_url: whether an http(s) address is fetched.

        Raises:
            MediaError: the medium cannot be used.
            ConfigError: the family has no such modality, or leaves preprocessing to its model.
        """
        self.check_modality(modality)
        raise ConfigError(f"{type(self).__name__} brings no preprocessing of its own for {modality!r}.")

    def encode(self, modality: str, values: Tensor) -> Tensor:
        """Preprocessed values of one modality to unit-length joint embeddings `(B, D_joint)`.

        Raises:
            ConfigError: the family has no such modality.
        """
        self.check_modality(modality)
        return F.normalize(self.embed(modality, values), dim=-1)

    def identity(self, modality: str) -> str:
        """What decides the embeddings of a sense besides its tensors, such as a backbone kept by reference.

        Part of a fingerprint; empty where the tensors say it all.
        """
        return ""

    def tensor_names(self, modality: str) -> list[str]:
        """Names, in `state_dict`, of the tensors that the embeddings of a sense depend on; all of them if unsure."""
        return list(self.state_dict())

    def fetch_with(self, *, local_files_only: bool, progress: bool) -> None:
        """How parts that are fetched at first use are to be fetched; nothing for a family that has none."""

    def check_modality(self, modality: str) -> None:
        """Raise the ConfigError of a modality that this encoder lacks."""
        if modality not in self.modalities:
            raise ConfigError(f"{type(self).__name__} has no {modality!r}; it takes {', '.join(self.modalities)}.")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what weights are not kept in; None stands for the file's own.

    Raises:
        ConfigError: it is neither fp32, bf16 nor fp16.
    """
    if dtype is not None and dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype must be torch.float32, bfloat16 or float16, got {dtype}.")
