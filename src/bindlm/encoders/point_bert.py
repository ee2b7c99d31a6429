"""Point-BERT's encoder: 512 groups of 32 points each, a class token, twelve transformer blocks.

Only what an embedding needs; the class head and the discrete VAE of the original are no part of Point-Bind.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bindlm.encoders.point_blocks import GroupEncoder, PositionedBlocks, position_mlp
from bindlm.encoders.point_ops import gather_rows, nearest_indices
from bindlm.errors import ConfigError
from bindlm.media.points_sampling import farthest_point_indices


def check_positive_ints(config: object, names: tuple[str, ...]) -> None:
    """Raise the ConfigError of the first field that is no whole number of at least 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{type(config).__name__}.{name} must be a whole number of at least 1, got {value!r}.")


def check_positive(config: object, names: tuple[str, ...]) -> None:
    """Raise the ConfigError of the first field that is no number above 0, below infinity."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ConfigError(f"{type(config).__name__}.{name} must be a finite number above 0, got {value!r}.")


@dataclass(frozen=True)
class PointBertConfig:
    """Sizes of a Point-BERT encoder; the defaults are the released ones."""

    trans_dim: int = 384
    """Width of the transformer."""
    depth: int = 12
    """Transformer blocks."""
    num_heads: int = 6
    """Attention heads of each block."""
    group_size: int = 32
    """Points of each group, K; a cloud needs at least as many."""
    num_group: int = 512
    """Groups, G, which are tokens."""
    encoder_dims: int = 256
    """Width of a group's token before it is brought to `trans_dim`."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP divided by `trans_dim`."""
    pos_hidden: int = 128
    """Hidden width of the position MLP."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the layer norms."""
    batch_norm_eps: float = 1e-5
    """Epsilon of the batch norms."""

    def __post_init__(self) -> None:
        names = ("trans_dim", "depth", "num_heads", "group_size", "num_group", "encoder_dims", "pos_hidden")
        check_positive_ints(self, names)
        check_positive(self, ("mlp_ratio", "layer_norm_eps", "batch_norm_eps"))
        if self.trans_dim % self.num_heads:
            raise ConfigError(
                f"PointBertConfig.trans_dim must be a multiple of num_heads, got {self.trans_dim} and "
                f"{self.num_heads}."
            )

    @property
    def out_dim(self) -> int:
        """Width of the encoder's output: class token and maximum of the groups."""
        return 2 * self.trans_dim

    @property
    def group_widths(self) -> tuple[int, int, int, int, int]:
        """Widths through the mini PointNet, from xyz to the token."""
        return (3, 128, 256, 512, self.encoder_dims)

    @property
    def min_points(self) -> int:
        """Fewest points of a cloud."""
        return self.group_size


class PointBert(nn.Module):
    """Clouds `(B, P, 3)` to features `(B, 2 * trans_dim)`.

    Source: Point-BERT (arXiv 2111.14819), section 3.1 and its classification model.
    """

    def __init__(self, config: PointBertConfig) -> None:
        super().__init__()
        self.config = config
        width = config.trans_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, width))
        self.encoder = GroupEncoder(config.group_widths, config.batch_norm_eps)
        self.reduce_dim = nn.Linear(config.encoder_dims, width)
        self.pos_embed = position_mlp(config.pos_hidden, width)
        self.blocks = PositionedBlocks(width, config.depth, config.num_heads, config.mlp_ratio, config.layer_norm_eps)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, points: Tensor, fps_start: int | Tensor = 0) -> dict[str, Tensor]:
        """Features and what lies on the way to them.

        Args:
            points: float32 `(B, P, 3)`.
            fps_start: Index of the first centre: one for all clouds, or int64 `(B,)`.

        Returns:
            `fps_indices (B, G)` and `centers (B, G, 3)`; `knn_indices (B, G, K)`; `group_tokens (B, G, encoder_dims)`;
            `pos (B, G, trans_dim)`; `sequence (B, 1 + G, trans_dim)` after the last norm, class token first; and
            `trunk (B, 2 * trans_dim)`.
        """
        config = self.config
        fps_indices = farthest_point_indices(points, config.num_group, fps_start)  # (B, G)
        centers = gather_rows(points, fps_indices)  # (B, G, 3)
        knn_indices = nearest_indices(centers, points, config.group_size, is_expanded=True)  # (B, G, K)
        dtype = self.cls_token.dtype
        groups = (gather_rows(points, knn_indices) - centers[:, :, None]).to(dtype)  # (B, G, K, 3)
        group_tokens = self.encoder(groups)
        pos = self.pos_embed(centers.to(dtype))
        batch = len(points)
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), self.reduce_dim(group_tokens)], dim=1)
        positions = torch.cat([self.cls_pos.expand(batch, -1, -1), pos], dim=1)  # (B, 1 + G, trans_dim)
        sequence = self.norm(self.blocks(tokens, positions))
        trunk = torch.cat([sequence[:, 0], sequence[:, 1:].amax(dim=1)], dim=-1)  # (B, 2 * trans_dim)
        return {
            "fps_indices": fps_indices, "centers": centers, "knn_indices": knn_indices, "group_tokens": group_tokens,
            "pos": pos, "sequence": sequence, "trunk": trunk,
        }  # fmt: skip
