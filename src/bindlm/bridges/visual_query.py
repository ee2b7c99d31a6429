"""Learned queries that gather the patches of a picture: the bridge of LLaMA-Adapter V2 multimodal.

LLaMA-Adapter V2 (arXiv 2304.15010), in the released form: all of CLIP's tokens are projected and normalised, the
queries are put in front of them, transformer blocks mix both, and the queries alone go on to the language model.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.bridges.base import Bridge, as_tokens, check_sizes
from bindlm.errors import ConfigError

__all__ = ["VisualQueryBlock", "VisualQueryBridge", "VisualQueryConfig"]


@dataclass
class VisualQueryConfig:
    """Sizes of a visual query bridge."""

    input_dim: int
    """Width of a patch feature, after the encoder's last norm and projection."""
    output_dim: int
    """Width of the language model."""
    embed_dim: int = 768
    """Width of the blocks."""
    num_blocks: int = 8
    """Transformer blocks."""
    num_heads: int = 16
    """Attention heads of a block."""
    num_queries: int = 10
    """Tokens that go to the language model."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP over `embed_dim`."""
    norm_eps: float = 1e-5
    """Of every LayerNorm; today's timm blocks would have 1e-6, those of the release had this."""

    def __post_init__(self) -> None:
        check_sizes(self, "input_dim", "output_dim", "embed_dim", "num_blocks", "num_heads", "num_queries")
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"VisualQueryConfig.embed_dim must be a multiple of num_heads, got {self.embed_dim} and "
                f"{self.num_heads}."
            )
        if not self.mlp_ratio > 0:
            raise ConfigError(f"VisualQueryConfig.mlp_ratio must be above 0, got {self.mlp_ratio}.")

    @classmethod
    def llama_adapter_v2_7b(cls) -> "VisualQueryConfig":
        """The released multimodal 7B: 257 tokens of CLIP ViT-L/14, 768 wide, to 10 of LLaMA."""
        return cls(input_dim=768, output_dim=4096)

    @property
    def hidden_dim(self) -> int:
        """Width inside a block's MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    def build(self) -> "VisualQueryBridge":
        """A bridge with fresh weights."""
        return VisualQueryBridge(self)

    @property
    def num_parameters(self) -> int:
        """Parameters, counted without building it."""
        width, hidden = self.embed_dim, self.hidden_dim
        attention = 4 * width * width + 4 * width
        block = attention + 2 * width * hidden + hidden + width + 4 * width
        way_in = self.input_dim * width + 3 * width
        way_out = width * self.output_dim + 3 * self.output_dim
        return way_in + self.num_queries * width + self.num_blocks * block + way_out


class VisualQueryBlock(nn.Module):
    """A pre-norm transformer block: attention among all tokens, then an MLP with exact GELU."""

    def __init__(self, config: VisualQueryConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.wide = nn.Linear(width, config.hidden_dim)
        self.narrow = nn.Linear(config.hidden_dim, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, C)` -> `(B, N, C)`."""
        qkv = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, C / H)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, C / H) each
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)  # (B, N, C)
        tokens = tokens + self.projection(mixed)
        tokens = tokens + self.narrow(F.gelu(self.wide(self.norm2(tokens))))
        return tokens


class VisualQueryBridge(Bridge):
    """Patch features to a few condition tokens."""

    def __init__(self, config: VisualQueryConfig) -> None:
        super().__init__()
        self.config = config
        self.input = nn.Linear(config.input_dim, config.embed_dim)
        self.input_norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        self.query = nn.Parameter(torch.randn(config.num_queries, config.embed_dim))
        self.blocks = nn.ModuleList(VisualQueryBlock(config) for _ in range(config.num_blocks))
        self.output = nn.Linear(config.embed_dim, config.output_dim)
        self.output_norm = nn.LayerNorm(config.output_dim, eps=config.norm_eps)

    def forward(self, features: Tensor) -> Tensor:
        """Gather a picture's tokens.

        Args:
            features: `(B, P, D)`, the encoder's tokens with its last norm and projection on each, class token first;
                `(B, D)` is one token.

        Returns:
            `(B, num_queries, D_lm)`.

        Raises:
            ConfigError: another shape or width.
        """
        features = as_tokens(features, self.config.input_dim, "The visual query bridge")
        patches = self.input_norm(self.input(features))  # (B, P, C)
        queries = self.query.expand(len(features), -1, -1)  # (B, num_queries, C)
        tokens = torch.cat([queries.to(patches.dtype), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        gathered: Tensor = self.output_norm(self.output(tokens[:, : self.config.num_queries]))
        return gathered  # (B, num_queries, D_lm)
