"""I2P-MAE's encoder: three scales of groups, each built on the tokens of the finer one, with local attention."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bindlm.encoders.point_bert import check_positive, check_positive_ints
from bindlm.encoders.point_blocks import GroupEncoder, PositionedBlocks, position_mlp
from bindlm.encoders.point_ops import gather_rows, nearest_indices
from bindlm.errors import ConfigError
from bindlm.media.points_sampling import farthest_point_indices

_MIN_SQUARED_NORM = 1e-3
"""The sampling operator that the weights were trained with never takes a point this near the origin (0.03 away): it
reads such points as padding."""

_OUT_OF_REACH = -100_000.0
"""Added to the attention score of centres too far apart."""


@dataclass(frozen=True)
class I2PMAEConfig:
    """Sizes of an I2P-MAE encoder, one entry a scale from fine to coarse; the defaults are the released ones."""

    encoder_dims: tuple[int, ...] = (96, 192, 384)
    """Width of the tokens."""
    encoder_depths: tuple[int, ...] = (5, 5, 5)
    """Transformer blocks."""
    local_radius: tuple[float, ...] = (0.24, 0.48, 0.96)
    """Distance below which two centres attend to each other, in units of the cloud, whose radius is 1."""
    group_sizes: tuple[int, ...] = (48, 24, 24)
    """Members of a group: points at the first scale, tokens of the finer scale after it."""
    num_groups: tuple[int, ...] = (512, 256, 64)
    """Groups, which are tokens."""
    num_heads: int = 6
    """Attention heads of each block."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP divided by the scale's width."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the layer norms."""
    batch_norm_eps: float = 1e-5
    """Epsilon of the batch norms."""

    def __post_init__(self) -> None:
        for name in ("encoder_dims", "encoder_depths", "local_radius", "group_sizes", "num_groups"):
            value = getattr(self, name)
            kinds = (int, float) if name == "local_radius" else (int,)
            if (
                not isinstance(value, (tuple, list))
                or not value
                or not all(isinstance(each, kinds) and not isinstance(each, bool) and each > 0 for each in value)
            ):
                raise ConfigError(f"I2PMAEConfig.{name} must be a tuple of numbers above 0, got {value!r}.")
            object.__setattr__(self, name, tuple(value))  # JSON gives lists
            if len(value) != len(self.encoder_dims):
                raise ConfigError(
                    f"I2PMAEConfig.{name} must have one entry for each of the {len(self.encoder_dims)} "
                    f"scales of encoder_dims, got {value!r}."
                )
        check_positive_ints(self, ("num_heads",))
        check_positive(self, ("mlp_ratio", "layer_norm_eps", "batch_norm_eps"))
        if any(width % self.num_heads for width in self.encoder_dims):
            raise ConfigError(
                f"I2PMAEConfig.encoder_dims must be multiples of num_heads, got {self.encoder_dims} and "
                f"{self.num_heads}."
            )
        if any(size > count for size, count in zip(self.group_sizes[1:], self.num_groups, strict=False)):
            raise ConfigError(
                "I2PMAEConfig.group_sizes must not exceed num_groups of the scale before, got "
                f"{self.group_sizes} and {self.num_groups}."
            )

    @property
    def out_dim(self) -> int:
        """Width of the encoder's output."""
        return self.encoder_dims[-1]

    @property
    def min_points(self) -> int:
        """Fewest points of a cloud."""
        return self.group_sizes[0]

    def group_widths(self, scale: int) -> tuple[int, int, int, int, int]:
        """Widths through the mini PointNet of a scale, from its members to the token."""
        width = self.encoder_dims[scale]
        if scale == 0:
            return (3, 128, 256, 512, width)
        finer = self.encoder_dims[scale - 1]
        return (finer, finer, finer, width, width)


class _HierarchicalEncoder(nn.Module):
    """The scales, from points to the tokens of the coarsest."""

    def __init__(self, config: I2PMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embed = nn.ModuleList(
            GroupEncoder(config.group_widths(scale), config.batch_norm_eps)
            for scale in range(len(config.encoder_dims))
        )
        self.encoder_pos_embeds = nn.ModuleList(position_mlp(width, width) for width in config.encoder_dims)
        self.encoder_blocks = nn.ModuleList(
            PositionedBlocks(width, depth, config.num_heads, config.mlp_ratio, config.layer_norm_eps)
            for width, depth in zip(config.encoder_dims, config.encoder_depths, strict=True)
        )

    def forward(self, points: Tensor) -> dict[str, Tensor]:
        """`(B, P, 3)` -> per scale i `scale{i}.fps_indices`, `.knn_indices`, `.centers`, `.tokens`."""
        states: dict[str, Tensor] = {}
        finer, tokens = points, None  # centres and tokens of the scale before; the points have no tokens
        config = self.config
        dtype = next(self.parameters()).dtype
        for scale, embed in enumerate(self.token_embed):
            fps_indices = farthest_point_indices(finer, config.num_groups[scale], min_squared_norm=_MIN_SQUARED_NORM)
            centers = gather_rows(finer, fps_indices)  # (B, G, 3)
            knn_indices = nearest_indices(centers, finer, config.group_sizes[scale], is_expanded=False)  # (B, G, K)
            if tokens is None:
                members = (gather_rows(finer, knn_indices) - centers[:, :, None]).to(dtype)  # (B, G, K, 3)
            else:
                members = gather_rows(tokens, knn_indices)  # (B, G, K, C)
            positions = self.encoder_pos_embeds[scale](centers.to(dtype))
            bias = _local_bias(centers, config.local_radius[scale], dtype)  # (B, 1, G, G)
            tokens = self.encoder_blocks[scale](embed(members), positions, bias)  # (B, G, width)
            states |= {
                f"scale{scale}.fps_indices": fps_indices, f"scale{scale}.knn_indices": knn_indices,
                f"scale{scale}.centers": centers, f"scale{scale}.tokens": tokens,
            }  # fmt: skip
            finer = centers
        return states


def _local_bias(centers: Tensor, radius: float, dtype: torch.dtype) -> Tensor:
    """What is added to the scores `(B, 1, G, G)`: 0 within the radius, and a lot below 0 from it on."""
    distances = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.zeros_like(distances).masked_fill_(distances >= radius, _OUT_OF_REACH).to(dtype)[:, None]


class I2PMAE(nn.Module):
    """Clouds `(B, P, 3)` to features `(B, D)`, D the width of the coarsest scale.

    Source: I2P-MAE (arXiv 2212.06785), whose encoder is Point-M2AE's (arXiv 2205.14401), section 3.1. Sampling starts
    at the first point and leaves out points nearer to the origin than 0.0316, as the operator of the release does.
    """

    def __init__(self, config: I2PMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.h_encoder = _HierarchicalEncoder(config)
        self.norm = nn.LayerNorm(config.out_dim, eps=config.layer_norm_eps)

    def forward(self, points: Tensor) -> dict[str, Tensor]:
        """Features and what lies on the way to them.

        Args:
            points: float32 `(B, P, 3)`.

        Returns:
            For each scale i `scale{i}.fps_indices (B, G)` into the centres of the scale before, `scale{i}.knn_indices
            (B, G, K)`, `scale{i}.centers (B, G, 3)`, `scale{i}.tokens (B, G, width)`; `sequence (B, G, D)` after the
            last norm; and `trunk (B, D)`, the mean of the tokens plus their maximum.
        """
        states = self.h_encoder(points)
        sequence = self.norm(states[f"scale{len(self.config.encoder_dims) - 1}.tokens"])  # (B, G, D)
        return {**states, "sequence": sequence, "trunk": sequence.mean(dim=1) + sequence.amax(dim=1)}
