"""One linear layer: PandaGPT's bridge from a joint embedding, LLaVA v1's from the patches of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bindlm.bridges.base import Bridge, as_tokens, check_sizes

__all__ = ["LinearBridge", "LinearConfig"]


@dataclass
class LinearConfig:
    """Sizes of a linear bridge."""

    input_dim: int
    """Width of an embedding or patch feature."""
    output_dim: int
    """Width of the language model."""
    bias: bool = True
    """Whether the layer has a bias; all published ones do."""

    def __post_init__(self) -> None:
        check_sizes(self, "input_dim", "output_dim")

    @classmethod
    def pandagpt(cls, output_dim: int = 4096) -> "LinearConfig":
        """PandaGPT: ImageBind's 1024 to Vicuna; 4096 is 7B, 5120 is 13B."""
        return cls(input_dim=1024, output_dim=output_dim)

    @classmethod
    def llava_v1(cls, output_dim: int = 4096) -> "LinearConfig":
        """LLaVA v1: features of CLIP ViT-L/14 to Vicuna; 4096 is 7B, 5120 is 13B."""
        return cls(input_dim=1024, output_dim=output_dim)

    def build(self) -> "LinearBridge":
        """A bridge with fresh weights."""
        return LinearBridge(self)

    @property
    def num_parameters(self) -> int:
        """Parameters, counted without building it."""
        return self.input_dim * self.output_dim + (self.output_dim if self.bias else 0)


class LinearBridge(Bridge):
    """`W e + b` for each embedding or patch: no norm, no activation."""

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.input_dim, config.output_dim, bias=config.bias)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D)` -> `(B, 1, D_lm)`, or patches `(B, N, D)` -> `(B, N, D_lm)`.

        PandaGPT gives embeddings as the encoder's heads leave them: pictures of unit length, sound 20 times as long,
        thermal pictures 10 times.

        Raises:
            ConfigError: another shape or width.
        """
        tokens: Tensor = self.linear(as_tokens(features, self.config.input_dim, "The linear bridge"))
        return tokens

    def sum_of(self, inputs: Sequence[Tensor]) -> Tensor:
        """Several inputs of one sample as PandaGPT joins them: each is projected, bias and all, then they are summed.

        Args:
            inputs: embeddings `(B, D)`, one for each input.

        Returns:
            `(B, 1, D_lm)`.
        """
        return torch.stack([self(embedding) for embedding in inputs]).sum(dim=0)
