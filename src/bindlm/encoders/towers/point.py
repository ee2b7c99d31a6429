"""Shapes from points: groups of neighbours, a mini PointNet for each, and a small transformer over them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bindlm.encoders.point_blocks import GroupEncoder, position_mlp
from bindlm.encoders.point_ops import gather_rows, nearest_indices
from bindlm.encoders.towers.base import Tower
from bindlm.encoders.towers.checks import check_choice, check_heads, check_number, check_whole, fault
from bindlm.encoders.towers.parts import Trunk
from bindlm.media.points import load_points
from bindlm.media.points_preprocess import PointPreprocessConfig, preprocess_points
from bindlm.media.points_sampling import farthest_point_indices

_BATCH_NORM_EPS = 1e-5


@dataclass
class PointTransformerConfig:
    """Sizes of the point tower: Point-BERT (arXiv 2111.14819), small, without its tokenizer."""

    dim: int = 1024
    """Width of the joint embedding."""
    num_points: int = 1024
    """Points of a cloud that are looked at."""
    sampling: str = "random"
    """How they are taken from more: "random", the same draw each time, or "farthest", evener and 20 times slower."""
    num_groups: int = 64
    """Centres, by farthest point sampling."""
    group_size: int = 32
    """Neighbours of each centre."""
    point_width: int = 48
    """First width of the mini PointNet; the others are 1.5 and 3 times as much."""
    width: int = 192
    """Of the tokens."""
    depth: int = 4
    """Blocks."""
    num_heads: int = 4
    """Of attention."""
    mlp_ratio: float = 2.0
    """Hidden width of each MLP, in widths."""
    drop_path: float = 0.0
    """Stochastic depth in training."""

    def __post_init__(self) -> None:
        check_whole(self, 1, "dim", "num_points", "num_groups", "group_size", "width", "depth", "num_heads")
        check_whole(self, 2, "point_width")
        check_choice(self, "sampling", ("random", "farthest"))
        check_heads(self)
        check_number(self, "mlp_ratio", 0.1, 16)
        check_number(self, "drop_path", 0, 0.9)
        for name in ("num_groups", "group_size"):
            if getattr(self, name) > self.num_points:
                raise fault(self, name, f"at most num_points, {self.num_points}")

    @classmethod
    def point_bert(cls) -> "PointTransformerConfig":
        """The size of Point-BERT as Point-Bind uses it: 8192 points, 512 groups, 12 blocks of 384."""
        return cls(
            num_points=8192,
            sampling="farthest",
            num_groups=512,
            point_width=128,
            width=384,
            depth=12,
            num_heads=6,
            mlp_ratio=4.0,
        )


class PointTransformer(Tower):
    """Points to the joint space."""

    modality = "point"
    config: PointTransformerConfig

    def __init__(self, config: PointTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        first = config.point_width
        self.groups = GroupEncoder((3, first, first * 3 // 2, first * 3, config.width), _BATCH_NORM_EPS)
        self.positions = position_mlp(first, config.width)
        self.trunk = Trunk(
            config.width, config.depth, config.num_heads, config.mlp_ratio, config.dim, config.drop_path
        )

    def load(self, source: Any, *, allow_url: bool = False) -> np.ndarray:
        """float32 `(P, 3)`, as they lie; of a mesh, 8192 from its surface."""
        return load_points(source, allow_url=allow_url)

    def prepare(self, raw: np.ndarray) -> Tensor:
        """`(P, 3)`, or more columns of which the first three count, to float32 `(num_points, 3)` of radius 1."""
        points, count = np.asarray(raw)[:, :3], self.config.num_points
        if self.config.sampling == "random" and len(points) > count:
            points = points[np.random.default_rng(0).choice(len(points), count, replace=False)]
        return torch.from_numpy(preprocess_points(points, PointPreprocessConfig(num_points=count)))

    def embed(self, values: Tensor) -> Tensor:
        """`(B, num_points, 3)` -> `(B, D_joint)`."""
        self.check_values(values, None, 3)
        if values.shape[1] < max(self.config.num_groups, self.config.group_size):
            self.check_values(values, self.config.num_points, 3)  # which says what is wanted
        # Neighbours are found in fp32 whatever the tower's dtype: bf16 would put many points into one place.
        points = values.float()
        centers = gather_rows(points, farthest_point_indices(points, self.config.num_groups))  # (B, G, 3)
        nearest = nearest_indices(centers, points, self.config.group_size, is_expanded=False)  # (B, G, K)
        groups = gather_rows(points, nearest) - centers[:, :, None]  # (B, G, K, 3)
        dtype = self.trunk.head.weight.dtype
        tokens = self.groups(groups.to(dtype))  # (B, G, width)
        return self.trunk(tokens, self.positions(centers.to(dtype)))
