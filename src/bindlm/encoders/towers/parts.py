"""What several towers are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.encoders.point_blocks import Block

_EPS = 1e-6


class Trunk(nn.Module):
    """Pre-norm transformer blocks, their tokens averaged, and a linear head.

    Args:
        width: of the tokens.
        depth: number of blocks.
        num_heads: of attention in each.
        mlp_ratio: hidden width of each MLP, in widths.
        dim: of the result.
        drop_path: probability, at the last block, that a sample skips a block in training; less in earlier ones
            (stochastic depth, arXiv 1603.09382).
    """

    def __init__(
        self, width: int, depth: int, num_heads: int, mlp_ratio: float, dim: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, _EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.head = nn.Linear(width, dim, bias=False)
        self.drop_paths = [drop_path * (index + 1) / depth for index in range(depth)]
        self.apply(init_weights)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokens `(B, T, width)`, with positions of that shape added before each block, to `(B, dim)`."""
        for block, drop in zip(self.blocks, self.drop_paths, strict=True):
            given = tokens if positions is None else tokens + positions
            tokens = keep_some(given, block(given, None), drop) if self.training and drop else block(given, None)
        return self.head(self.norm(tokens.mean(dim=1)))


def keep_some(before: Tensor, after: Tensor, drop: float) -> Tensor:
    """`after` for most samples, scaled to keep the mean, and `before` for a random share `drop`."""
    kept = torch.rand(len(before), *[1] * (before.ndim - 1), device=before.device) >= drop
    return before + (after - before) * (kept.to(before.dtype) / (1 - drop))


def init_weights(module: nn.Module) -> None:
    """Small normal weights, as in vision transformers (arXiv 2010.11929), and no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class RandomDirection(nn.Module):
    """In training, adds to each row a random vector, `share` times as long as the row.

    Features of a frozen backbone are few and always the same: without it an adapter learns them by heart.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, rows: Tensor) -> Tensor:
        """`(B, F)` -> `(B, F)`."""
        if not self.training or not self.share:
            return rows
        random = F.normalize(torch.randn_like(rows), dim=-1)
        return rows + self.share * rows.norm(dim=-1, keepdim=True) * random


class PrototypePull(nn.Module):
    """Pulls embeddings toward the few directions that a sense was bound to: Eq. (3)-(4) of ImageBind-LLM
    (arXiv 2309.03905) in their released form, over prototypes in place of pictures.

    An unsure sound lies between several names; among the thousands that the joint space knows, a name that no sound
    has may be nearest there. Buffers: prototypes `(N, D_joint)`, unit length.
    """

    prototypes: Tensor

    def __init__(self, count: int, dim: int, share: float, temperature: float) -> None:
        super().__init__()
        self.share, self.temperature = share, temperature
        self.register_buffer("prototypes", torch.zeros(count, dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """`(B, D_joint)` -> `(B, D_joint)`."""
        unit = F.normalize(embeddings, dim=-1)
        prototypes = self.prototypes.to(unit.dtype)
        weights = torch.softmax(self.temperature * (unit @ prototypes.T), dim=-1)  # (B, N)
        return (1 - self.share) * unit + self.share * F.normalize(weights @ prototypes, dim=-1)


def adapter_mlp(
    num_features: int, hidden: int, dim: int, dropout: float, noise: float = 0.0, *, is_standardized: bool = False
) -> nn.Sequential:
    """LayerNorm, Linear, GELU, Linear: frozen features `(B, F)` to the joint space `(B, dim)`.

    With `is_standardized` each feature first loses its mean and deviation over the training data, for backbones whose
    features share a large mean.
    """
    return nn.Sequential(
        nn.BatchNorm1d(num_features, affine=False) if is_standardized else nn.Identity(),
        RandomDirection(noise),
        nn.LayerNorm(num_features),
        nn.Linear(num_features, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, dim),
    )


def conv_stem(channels: list[int], *, dims: int, kernel: int = 3) -> nn.Sequential:
    """Convolutions of stride 2, each but the last with batch norm and GELU: `(B, C, ...)` with every side halved so
    often."""
    convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
    layers: list[nn.Module] = []
    for width_in, width_out in zip(channels[:-2], channels[1:-1], strict=True):
        layers += [convolution(width_in, width_out, kernel, 2, kernel // 2, bias=False), norm(width_out), nn.GELU()]
    layers.append(convolution(channels[-2], channels[-1], kernel, 2, kernel // 2))
    return nn.Sequential(*layers)
