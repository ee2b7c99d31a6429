"""Patches of a picture in place of one embedding: the vision tower of LLaVA, as transformers builds it.

LLaVA (arXiv 2304.08485, 2310.03744) takes a hidden layer of CLIP's vision tower, the last but one, without the token
of the whole picture. Patches are no directions of a joint space: nothing brings them to unit length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bindlm.encoders.base import JointEncoder
from bindlm.encoders.hosted import one_line
from bindlm.errors import ConfigError

__all__ = ["PatchEncoder", "PatchEncoderConfig"]


@dataclass(frozen=True)
class PatchEncoderConfig:
    """A vision tower, and what of it is taken."""

    vision: Mapping[str, Any]
    """Its configuration as transformers writes it, `model_type` included ("clip_vision_model")."""
    layer: int | Sequence[int] = -2
    """Hidden layer that is taken, 0 for what goes into the first block; features of several stand side by side."""
    keeps_class: bool = False
    """Whether the first token, that of the whole picture, is kept."""

    def __post_init__(self) -> None:
        if not isinstance(self.vision, Mapping) or not isinstance(self.vision.get("model_type"), str):
            raise ConfigError(f"PatchEncoderConfig.vision must have a model_type, got {self.vision!r}.")

    @property
    def layers(self) -> list[int]:
        """`layer` as a list."""
        return [self.layer] if isinstance(self.layer, int) else list(self.layer)


class PatchEncoder(JointEncoder):
    """Pictures `(B, 3, S, S)` to patches `(B, P, D)`, at the length the tower gives them.

    Args:
        config: the tower and what of it is taken.
        tower: a loaded one; None builds one with fresh weights.
    """

    modalities: tuple[str, ...] = ("image",)

    def __init__(self, config: PatchEncoderConfig, tower: Any = None) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = _fresh_tower(config.vision) if tower is None else tower
        self.dim = self.vision_tower.config.hidden_size * len(config.layers)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Patches `(B, P, D)` of pictures `(B, 3, S, S)`, or `(B, 1, 3, S, S)` as the model's processor gives them.

        Raises:
            ConfigError: no such modality, several views, or another size.
        """
        self.check_modality(modality)
        if values.ndim == 5 and values.shape[1] == 1:
            values = values[:, 0]
        side = self.vision_tower.config.image_size
        if values.ndim != 4 or values.shape[1:] != (3, side, side):
            raise ConfigError(f"The vision tower takes pictures (B, 3, {side}, {side}), got {tuple(values.shape)}.")
        hidden = self.vision_tower(values, output_hidden_states=True).hidden_states
        first = 0 if self.config.keeps_class else 1
        return torch.cat([hidden[layer][:, first:] for layer in self.config.layers], dim=-1)  # (B, P, D)

    def encode(self, modality: str, values: Tensor) -> Tensor:
        """The same: patches are not normalised."""
        return self.embed(modality, values)


def build(**settings: Any) -> PatchEncoder:
    """Fresh weights by the settings of `PatchEncoderConfig`."""
    return PatchEncoder(PatchEncoderConfig(**settings))


def _fresh_tower(settings: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    given = dict(settings)
    try:
        return AutoModel.from_config(AutoConfig.for_model(given.pop("model_type"), **given))
    except Exception as error:  # whatever the strict configs of transformers raise
        raise ConfigError(f"PatchEncoderConfig.vision makes no model of transformers: {one_line(error)}.") from None
