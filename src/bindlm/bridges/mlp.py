"""Two linear layers with a GELU between them: LLaVA v1.5's bridge from the patches of a picture.

LLaVA v1.5 (arXiv 2310.03744), `mlp2x_gelu`.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.bridges.base import Bridge, as_tokens, check_sizes

__all__ = ["MLPBridge", "MLPConfig"]


@dataclass
class MLPConfig:
    """Sizes of a two-layer bridge."""

    input_dim: int
    """Width of an embedding or patch feature."""
    output_dim: int
    """Width of the language model."""
    hidden_dim: int | None = None
    """Width between the layers; None is `output_dim`, as published."""
    bias: bool = True
    """Whether both layers have a bias; the published one does."""

    def __post_init__(self) -> None:
        if self.hidden_dim is None:
            self.hidden_dim = self.output_dim
        check_sizes(self, "input_dim", "output_dim", "hidden_dim")

    @classmethod
    def llava_v1_5(cls, output_dim: int = 4096) -> "MLPConfig":
        """LLaVA v1.5: features of CLIP ViT-L/14-336 to Vicuna; 4096 is 7B, 5120 is 13B."""
        return cls(input_dim=1024, output_dim=output_dim)

    def build(self) -> "MLPBridge":
        """A bridge with fresh weights."""
        return MLPBridge(self)

    @property
    def num_parameters(self) -> int:
        """Parameters, counted without building it."""
        assert self.hidden_dim is not None
        biases = self.hidden_dim + self.output_dim if self.bias else 0
        return (self.input_dim + self.output_dim) * self.hidden_dim + biases


class MLPBridge(Bridge):
    """Linear, exact GELU, linear, for each embedding or patch."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        assert config.hidden_dim is not None
        self.config = config
        self.wide = nn.Linear(config.input_dim, config.hidden_dim, bias=config.bias)
        self.narrow = nn.Linear(config.hidden_dim, config.output_dim, bias=config.bias)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D)` -> `(B, 1, D_lm)`, or patches `(B, N, D)` -> `(B, N, D_lm)`.

        Raises:
            ConfigError: another shape or width.
        """
        tokens = as_tokens(features, self.config.input_dim, "The two-layer bridge")
        tokens = self.narrow(F.gelu(self.wide(tokens)))  # (B, N, D_lm)
        return tokens
