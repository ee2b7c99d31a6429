"""Sound: an adapter on frozen aiSFX features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bindlm.encoders.aisfx import (
    AISFX,
    BLOCK_FRAMES,
    NUM_FEATURES,
    NUM_MEL_BINS,
    SAMPLE_RATE_HZ,
    Aisfx,
    log_mel_blocks,
)
from bindlm.encoders.frozen import Frozen
from bindlm.encoders.towers.base import AdapterTower
from bindlm.encoders.towers.checks import check_number, check_whole
from bindlm.encoders.towers.parts import PrototypePull, adapter_mlp
from bindlm.encoders.towers.waveform import load_waveform


@dataclass
class AisfxAdapterConfig:
    """Sizes of the sound tower on aiSFX."""

    dim: int = 1024
    """Width of the joint embedding."""
    backbone: str = AISFX
    """The published weights, in the words of `bindlm.checkpoints.resolve`."""
    num_blocks: int = 4
    """Most blocks of 2.3 s of a recording that are looked at, half overlapping or spread evenly; each costs alike."""
    hidden_dim: int = 768
    """Width of the adapter's hidden layer."""
    dropout: float = 0.0
    """In the adapter, in training."""
    noise: float = 0.0
    """Length of a random vector added to the backbone's features in training, as a share of theirs."""
    num_prototypes: int = 0
    """Directions that sounds were bound to, toward which an embedding is pulled; see `PrototypePull`."""
    prototype_share: float = 0.5
    """How much of the result they are, 0 to 1."""
    prototype_temperature: float = 20.0
    """Factor on cosines before the softmax over them."""

    def __post_init__(self) -> None:
        check_whole(self, 1, "dim", "num_blocks", "hidden_dim")
        check_whole(self, 0, "num_prototypes")
        check_number(self, "prototype_share", 0, 1)
        check_number(self, "prototype_temperature", 0, 1000)
        check_number(self, "dropout", 0, 0.9)
        check_number(self, "noise", 0, 10)


class AisfxAdapter(AdapterTower):
    """Sound to the joint space."""

    modality = "audio"
    config: AisfxAdapterConfig

    def __init__(self, config: AisfxAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.backbone = Aisfx(config.backbone)
        self.adapter = adapter_mlp(
            NUM_FEATURES, config.hidden_dim, config.dim, config.dropout, config.noise, is_standardized=True
        )
        self.pull: PrototypePull | None = None
        if config.num_prototypes:
            self.pull = PrototypePull(
                config.num_prototypes, config.dim, config.prototype_share, config.prototype_temperature
            )

    def frozen_parts(self) -> tuple[Frozen, ...]:
        """aiSFX."""
        return (self.backbone,)

    def load(self, source: Any, *, allow_url: bool = False) -> np.ndarray:
        """A recording, its channels mixed, at 44.1 kHz: float32 `(S,)`."""
        return load_waveform(source, SAMPLE_RATE_HZ, allow_url=allow_url)

    def prepare(self, raw: np.ndarray) -> Tensor:
        """`(S,)` -> float32 `(num_blocks, 100, 96)`; blocks that are not there hold -1."""
        return log_mel_blocks(torch.tensor(np.asarray(raw, dtype=np.float32)), self.config.num_blocks)

    def adapt(self, features: Tensor) -> Tensor:
        """Features `(B, 512)` to embeddings `(B, D_joint)`; pulled toward the prototypes, but not in training."""
        embeddings = super().adapt(features)
        return embeddings if self.pull is None or self.training else self.pull(embeddings)

    def features(self, values: Tensor) -> Tensor:
        """`(B, num_blocks, 100, 96)` -> `(B, 512)`."""
        self.check_values(values, None, BLOCK_FRAMES, NUM_MEL_BINS)
        return self.backbone.features(values, next(self.parameters()))
