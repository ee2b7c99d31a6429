"""The mini's encoder: EfficientNet-Lite features in a whitened joint space.

The joint space is the pooled feature, centred and whitened: `z = P (f - mean)`. In it a class row `w` of the ImageNet
head becomes the prototype `P^-T w`, and the inner product of `z` with a prototype is the head's own logit up to a
constant, so a cosine in the joint space keeps the order in which the head would name things. Other senses are bound to
the same space by contrastive training against these embeddings: each is a small tower, `MiniEncoderConfig.towers`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bindlm.encoders.base import JointEncoder
from bindlm.encoders.bound import attach_towers, build_towers, embed_by, set_fetching, tower_identity, tower_of
from bindlm.encoders.efficientnet_lite import NUM_FEATURES, SIZES, EfficientNetLite
from bindlm.errors import ConfigError


@dataclass
class MiniEncoderConfig:
    """Sizes of the mini's encoder."""

    size: str = "lite2"
    """A row of `efficientnet_lite.SIZES`."""
    dim: int = 1024
    """Width of the joint embedding; ImageBind's own, so that parts can be compared."""
    towers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other senses, by name: `{"audio": {"kind": "aisfx_adapter", ...}}`, a row of `TOWER_KINDS` and its settings."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"MiniEncoderConfig.size must be one of {', '.join(SIZES)}, got {self.size!r}.")
        if not 1 <= self.dim <= NUM_FEATURES:
            raise ConfigError(f"MiniEncoderConfig.dim must lie in 1..{NUM_FEATURES}, got {self.dim}.")
        if not isinstance(self.towers, dict) or "image" in self.towers:
            raise ConfigError(
                f"MiniEncoderConfig.towers must map senses other than image to settings, got {self.towers!r}."
            )


class MiniEncoder(JointEncoder):
    """Pictures, and the senses that have a tower, to the mini's joint space.

    Buffers:
        mean: `(1280,)`, centre of the picture features.
        projection: `(D_joint, 1280)`, whitening.
    """

    modalities: tuple[str, ...] = ("image",)
    mean: Tensor
    projection: Tensor

    def __init__(self, config: MiniEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.image_tower = EfficientNetLite(SIZES[config.size])
        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("projection", torch.zeros(config.dim, NUM_FEATURES))
        self.towers = nn.ModuleDict(build_towers({sense: _at_width(config, sense) for sense in config.towers}))
        self.modalities = ("image", *config.towers)
        attach_towers(self.towers, self)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Pooled features, averaged over the views of each picture.

        Args:
            pixel_values: `(B, V, 3, S, S)`: V views (crops, mirrored crops) of each of B pictures.

        Returns:
            `(B, 1280)`.

        Raises:
            ConfigError: values of another shape.
        """
        if pixel_values.ndim != 5 or pixel_values.shape[2] != 3:
            raise ConfigError(
                f"The mini's encoder takes pictures (B, V, 3, S, S), got {tuple(pixel_values.shape)}; make them with "
                "the model's image processor."
            )
        batch, views = pixel_values.shape[:2]
        flat = pixel_values.flatten(0, 1).to(memory_format=torch.channels_last)  # (B * V, 3, S, S)
        return self.image_tower(flat).unflatten(0, (batch, views)).mean(dim=1)  # (B, 1280)

    def embed_views(self, pixel_values: Tensor) -> Tensor:
        """Several pictures of each thing, their features averaged: `(B, V, 3, S, S)` -> `(B, D_joint)`."""
        return self.embed("image", pixel_values)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Pictures `(B, V, 3, S, S)`, or what a tower takes -> `(B, D_joint)`, before normalisation."""
        if modality in self.towers:
            return embed_by(self.towers, modality, values)
        return self.project(self.features(values))

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """By the sense's tower; pictures are prepared by the model's image processor."""
        if modality in self.towers:
            return tower_of(self.towers, modality).preprocess(source, allow_url=allow_url)
        return super().preprocess(modality, source, allow_url=allow_url)

    def identity(self, modality: str) -> str:
        """The settings of the sense's tower; nothing for pictures."""
        return tower_identity(self.towers, modality) if modality in self.towers else ""

    def tensor_names(self, modality: str) -> list[str]:
        """The tower's; for pictures all but the towers', so that a new sense leaves their fingerprint as it was."""
        names = list(self.state_dict())
        if modality in self.towers:
            return [name for name in names if name.startswith(f"towers.{modality}.")]
        return [name for name in names if not name.startswith("towers.")]

    def fetch_with(self, *, local_files_only: bool, progress: bool) -> None:
        """How the towers' backbones are fetched when they are needed."""
        set_fetching(self.towers.values(), local_files_only=local_files_only, progress=progress)

    def project(self, features: Tensor) -> Tensor:
        """Pooled features `(B, 1280)` into the joint space `(B, D_joint)`, before normalisation."""
        return (features - self.mean) @ self.projection.T

    def class_logits(self, pixel_values: Tensor) -> Tensor:
        """ImageNet-1k logits `(B, 1000)` of the tower's own head: a baseline, not part of any answer."""
        return self.image_tower.class_logits(self.features(pixel_values))


def _at_width(config: MiniEncoderConfig, sense: str) -> dict[str, Any]:
    """A tower's settings at the width of the space, which they need not repeat.

    Raises:
        ConfigError: they are no settings, or say another width.
    """
    settings = config.towers[sense]
    if not isinstance(settings, dict):
        raise ConfigError(f"MiniEncoderConfig.towers[{sense!r}] must be settings of a tower, got {settings!r}.")
    if settings.get("dim", config.dim) != config.dim:
        raise ConfigError(
            f"MiniEncoderConfig.towers[{sense!r}].dim must be {config.dim}, the width of the space, got "
            f"{settings['dim']!r}."
        )
    return settings if settings.get("kind") == "lora" else {**settings, "dim": config.dim}
