"""The mini's encoder: EfficientNet-Lite features in a whitened joint space.

The joint space is the pooled feature, centred and whitened: `z = P (f - mean)`. In it a class row `w` of the ImageNet
head becomes the prototype `P^-T w`, and the inner product of `z` with a prototype is the head's own logit up to a
constant, so a cosine in the joint space keeps the order in which the head would name things. Other senses are bound to
the same space later by contrastive training against these embeddings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bindlm.encoders.base import JointEncoder
from bindlm.encoders.efficientnet_lite import NUM_FEATURES, SIZES, EfficientNetLite
from bindlm.errors import ConfigError


@dataclass
class MiniEncoderConfig:
    """Sizes of the mini's encoder."""

    size: str = "lite2"
    """A row of `efficientnet_lite.SIZES`."""
    dim: int = 1024
    """Width of the joint embedding; ImageBind's own, so that parts can be compared."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"MiniEncoderConfig.size must be one of {', '.join(SIZES)}, got {self.size!r}.")
        if not 1 <= self.dim <= NUM_FEATURES:
            raise ConfigError(f"MiniEncoderConfig.dim must lie in 1..{NUM_FEATURES}, got {self.dim}.")


class MiniEncoder(JointEncoder):
    """Pictures to the mini's joint space.

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

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """`(B, V, 3, S, S)` -> `(B, D_joint)`, before normalisation."""
        return self.project(self.features(values))

    def project(self, features: Tensor) -> Tensor:
        """Pooled features `(B, 1280)` into the joint space `(B, D_joint)`, before normalisation."""
        return (features - self.mean) @ self.projection.T

    def class_logits(self, pixel_values: Tensor) -> Tensor:
        """ImageNet-1k logits `(B, 1000)` of the tower's own head: a baseline, not part of any answer."""
        return self.image_tower.class_logits(self.features(pixel_values))
