"""The bind network: from the joint embedding to the width of the language model.

ImageBind-LLM (arXiv 2309.03905), Eq. (1): a linear layer, then blocks of RMSNorm, SwiGLU and a residual. An older
release, which Point-LLM builds on, has LayerNorm in its place and a bias on every linear layer.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.bridges.base import Bridge
from bindlm.errors import ConfigError


class BindNorm(StrEnum):
    """The norm at the head of a block."""

    RMS = "rms_norm"
    """As released."""
    LAYER = "layer_norm"
    """As in the older release; it has a bias."""


@dataclass
class BindNetworkConfig:
    """Sizes and form of a bind network; a 7B LLaMA has 1024, 4096 and 16384."""

    input_dim: int
    """Width of the joint embedding, C_I."""
    output_dim: int
    """Width of the language model, C."""
    hidden_dim: int | None = None
    """Width inside SwiGLU, C_h; None means four times `output_dim`, as released."""
    num_blocks: int = 3
    """Blocks of RMSNorm, SwiGLU and residual."""
    norm_eps: float = 1e-6
    """Added to the mean square (or variance) inside a norm. The release uses 1e-6 whatever its language model uses,
    the older one 1e-5."""
    input_bias: bool = False
    """Whether the first linear has a bias: the paper prints none, the released code has one."""
    is_output_normalized: bool = False
    """Whether the output passes one more RMSNorm. Neither paper nor release has it; the mini does, because it makes a
    gate mean the same for every picture."""
    norm: BindNorm = BindNorm.RMS
    """The norm at the head of each block."""
    block_bias: bool = False
    """Whether the linear layers of the blocks have biases, as in the older release."""
    num_tokens: int = 1
    """Tokens that the first linear makes of one embedding; the blocks serve each of them alike. Paper and releases
    have one. More are for a prefix of several soft tokens: what adds one vector to every word takes one."""

    def __post_init__(self) -> None:
        if self.hidden_dim is None:
            self.hidden_dim = 4 * self.output_dim
        for field in ("input_dim", "output_dim", "hidden_dim", "num_blocks", "num_tokens"):
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"BindNetworkConfig.{field} must be at least 1, got {value}.")
        try:
            self.norm = BindNorm(self.norm)
        except ValueError:
            known = ", ".join(BindNorm)
            raise ConfigError(f"BindNetworkConfig.norm must be one of {known}, got {self.norm!r}.") from None

    @classmethod
    def imagebind_llm(cls, output_dim: int = 4096) -> "BindNetworkConfig":
        """The released bind network; 4096 is that of 7B."""
        return cls(input_dim=1024, output_dim=output_dim, input_bias=True)

    @classmethod
    def imagebind_llm_legacy(cls, output_dim: int = 4096) -> "BindNetworkConfig":
        """The older one of the beta checkpoint: LayerNorm, and biases everywhere."""
        return cls(
            input_dim=1024,
            output_dim=output_dim,
            input_bias=True,
            norm=BindNorm.LAYER,
            norm_eps=1e-5,
            block_bias=True,
        )

    def build(self) -> "BindNetwork":
        """A bind network with fresh weights."""
        return BindNetwork(self)

    @property
    def num_parameters(self) -> int:
        """Parameters of the network, counted without building it."""
        assert self.hidden_dim is not None
        first = self.num_tokens * self.output_dim * (self.input_dim + (1 if self.input_bias else 0))
        block = self.output_dim + 3 * self.output_dim * self.hidden_dim
        if self.norm is BindNorm.LAYER:
            block += self.output_dim
        if self.block_bias:
            block += 2 * self.hidden_dim + self.output_dim
        return first + self.num_blocks * block + (self.output_dim if self.is_output_normalized else 0)


class BindBlock(nn.Module):
    """Norm, SwiGLU, residual: one step of Eq. (1).

    The paper's w1, w2, w3 are the release's f1, f3, f2: `w1` is the gated branch, `w2` the linear one, `w3` the way
    out. The paper leaves the norm out of the equation "for brevity".
    """

    def __init__(
        self, dim: int, hidden_dim: int, norm_eps: float, norm: BindNorm = BindNorm.RMS, bias: bool = False
    ) -> None:
        super().__init__()
        self.norm = (nn.RMSNorm if norm is BindNorm.RMS else nn.LayerNorm)(dim, eps=norm_eps)
        self.w1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.w2 = nn.Linear(dim, hidden_dim, bias=bias)
        self.w3 = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, feature: Tensor) -> Tensor:
        """`(B, N, C)` -> `(B, N, C)`."""
        normed = self.norm(feature)
        return feature + self.w3(F.silu(self.w1(normed)) * self.w2(normed))


class BindNetwork(Bridge):
    """Joint embedding to condition, ImageBind-LLM (arXiv 2309.03905), Eq. (1).

    Example:
        >>> bridge = BindNetworkConfig(input_dim=1024, output_dim=576).build()
        >>> bridge(torch.randn(2, 1024)).shape
        torch.Size([2, 1, 576])
    """

    def __init__(self, config: BindNetworkConfig) -> None:
        super().__init__()
        assert config.hidden_dim is not None
        self.config = config
        self.input = nn.Linear(config.input_dim, config.num_tokens * config.output_dim, bias=config.input_bias)
        self.blocks = nn.ModuleList(
            BindBlock(config.output_dim, config.hidden_dim, config.norm_eps, config.norm, config.block_bias)
            for _ in range(config.num_blocks)
        )
        self.output_norm = (
            nn.RMSNorm(config.output_dim, eps=config.norm_eps) if config.is_output_normalized else nn.Identity()
        )

    def forward(self, joint_embedding: Tensor) -> Tensor:
        """A condition token for each joint embedding, or `num_tokens` of them.

        Args:
            joint_embedding: `(B, D_joint)`, unit length as the encoders give it.

        Returns:
            Condition `(B, N, D_lm)`; with one token, N = 1, the paper's T_I.

        Raises:
            ConfigError: the width is not the one this network was built for.
        """
        if joint_embedding.ndim != 2 or joint_embedding.shape[-1] != self.config.input_dim:
            raise ConfigError(
                f"The bind network takes joint embeddings (B, {self.config.input_dim}), got "
                f"{tuple(joint_embedding.shape)}. Was it made by the encoder this model was trained with?"
            )
        feature: Tensor = self.input(joint_embedding).unflatten(-1, (-1, self.config.output_dim))  # (B, N, D_lm)
        for block in self.blocks:
            feature = block(feature)
        return self.output_norm(feature)


def init_near_zero_residuals(network: BindNetwork, scale: float = 0.1) -> None:
    """Shrink each block's way out, so that training starts close to the linear layer alone."""
    with torch.no_grad():
        for block in network.blocks:
            block.w3.weight.mul_(scale)  # type: ignore[union-attr, operator]
