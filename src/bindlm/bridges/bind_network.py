"""The bind network: from the joint embedding to the width of the language model.

ImageBind-LLM (arXiv 2309.03905), Eq. (1): a linear layer, then blocks of RMSNorm, SwiGLU and a residual.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.errors import ConfigError


@dataclass
class BindNetworkConfig:
    """Sizes of a bind network; a 7B LLaMA has 1024, 4096 and 16384."""

    input_dim: int
    """Width of the joint embedding, C_I."""
    output_dim: int
    """Width of the language model, C."""
    hidden_dim: int | None = None
    """Width inside SwiGLU, C_h; None means four times `output_dim`, as released."""
    num_blocks: int = 3
    """Blocks of RMSNorm, SwiGLU and residual."""
    norm_eps: float = 1e-6
    """Added to the mean square inside RMSNorm; the release uses 1e-6 whatever its language model uses."""
    input_bias: bool = False
    """Whether the first linear has a bias: the paper prints none, the released code has one."""
    is_output_normalized: bool = False
    """Whether the output passes one more RMSNorm. Neither paper nor release has it; the mini does, because it makes a
    gate mean the same for every picture."""

    def __post_init__(self) -> None:
        if self.hidden_dim is None:
            self.hidden_dim = 4 * self.output_dim
        for field in ("input_dim", "output_dim", "hidden_dim", "num_blocks"):
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"BindNetworkConfig.{field} must be at least 1, got {value}.")

    def build(self) -> "BindNetwork":
        """A bind network with fresh weights."""
        return BindNetwork(self)

    @property
    def num_parameters(self) -> int:
        """Parameters of the network, counted without building it."""
        assert self.hidden_dim is not None
        first = self.input_dim * self.output_dim + (self.output_dim if self.input_bias else 0)
        block = self.output_dim + 3 * self.output_dim * self.hidden_dim
        return first + self.num_blocks * block + (self.output_dim if self.is_output_normalized else 0)


class BindBlock(nn.Module):
    """RMSNorm, SwiGLU, residual: one step of Eq. (1).

    The paper's w1, w2, w3 are the release's f1, f3, f2: `w1` is the gated branch, `w2` the linear one, `w3` the way
    out. The paper leaves the norm out of the equation "for brevity".
    """

    def __init__(self, dim: int, hidden_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=norm_eps)
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(dim, hidden_dim, bias=False)
        self.w3 = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, feature: Tensor) -> Tensor:
        """`(B, N, C)` -> `(B, N, C)`."""
        normed = self.norm(feature)
        return feature + self.w3(F.silu(self.w1(normed)) * self.w2(normed))


class BindNetwork(nn.Module):
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
        self.input = nn.Linear(config.input_dim, config.output_dim, bias=config.input_bias)
        self.blocks = nn.ModuleList(
            BindBlock(config.output_dim, config.hidden_dim, config.norm_eps) for _ in range(config.num_blocks)
        )
        self.output_norm = (
            nn.RMSNorm(config.output_dim, eps=config.norm_eps) if config.is_output_normalized else nn.Identity()
        )

    def forward(self, joint_embedding: Tensor) -> Tensor:
        """One condition token for each joint embedding.

        Args:
            joint_embedding: `(B, D_joint)`, unit length as the encoders give it.

        Returns:
            Condition `(B, 1, D_lm)`, the paper's T_I.

        Raises:
            ConfigError: the width is not the one this network was built for.
        """
        if joint_embedding.ndim != 2 or joint_embedding.shape[-1] != self.config.input_dim:
            raise ConfigError(
                f"The bind network takes joint embeddings (B, {self.config.input_dim}), got "
                f"{tuple(joint_embedding.shape)}. Was it made by the encoder this model was trained with?"
            )
        feature: Tensor = self.input(joint_embedding).unsqueeze(1)  # (B, 1, D_lm)
        for block in self.blocks:
            feature = block(feature)
        return self.output_norm(feature)


def init_near_zero_residuals(network: BindNetwork, scale: float = 0.1) -> None:
    """Shrink each block's way out, so that training starts close to the linear layer alone."""
    with torch.no_grad():
        for block in network.blocks:
            block.w3.weight.mul_(scale)  # type: ignore[union-attr, operator]
