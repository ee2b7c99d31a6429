"""What Point-BERT and I2P-MAE share: the mini PointNet of a group, the position MLP, transformer blocks.

Parameter names are those of the published checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CHUNK_ROWS = 1 << 14
"""Neighbours taken through the mini PointNet together in eval mode: 32 MiB for each activation of width 512, where a
batch of 64 clouds would need 2 GiB."""


class GroupEncoder(nn.Module):
    """Mini PointNet (arXiv 1612.00593): the neighbours of a centre, in any order, to one token.

    Each neighbour goes through two layers; their maximum over the group joins every neighbour (maximum first), two
    more layers follow, and the maximum over the group is the token.

    Args:
        widths: of neighbour, first hidden, feature, second hidden, token.
        batch_norm_eps: of both batch norms.
    """

    def __init__(self, widths: tuple[int, int, int, int, int], batch_norm_eps: float) -> None:
        super().__init__()
        width_in, first, feature, second, width_out = widths
        # Kernel-1 convolutions only by name and weight shape (out, in, 1): as matrix products they are faster.
        self.first_conv = nn.Sequential(
            nn.Conv1d(width_in, first, 1), nn.BatchNorm1d(first, eps=batch_norm_eps), nn.ReLU(),
            nn.Conv1d(first, feature, 1),
        )  # fmt: skip
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * feature, second, 1), nn.BatchNorm1d(second, eps=batch_norm_eps), nn.ReLU(),
            nn.Conv1d(second, width_out, 1),
        )  # fmt: skip

    def forward(self, groups: Tensor) -> Tensor:
        """`(B, G, K, C)` -> tokens `(B, G, width_out)`."""
        flat = groups.flatten(0, 1)  # (B * G, K, C)
        if self.training:  # batch norm looks at the whole batch
            tokens = self._encode(flat)
        else:
            tokens = torch.cat([self._encode(some) for some in flat.split(max(1, _CHUNK_ROWS // flat.shape[1]))])
        return tokens.unflatten(0, groups.shape[:2])

    def _encode(self, groups: Tensor) -> Tensor:
        """`(N, K, C)` -> `(N, width_out)`."""
        size = groups.shape[:2]
        hidden = self.first_conv[1](_rows(self.first_conv[0], groups.flatten(0, 1))).relu_()
        local = _rows(self.first_conv[3], hidden)  # (N * K, feature)
        overall = local.unflatten(0, size).amax(dim=1)  # (N, feature)
        # The convolution of [overall, local] is the sum of two, of which the first is the same for all neighbours.
        joined = self.second_conv[0]
        assert isinstance(joined, nn.Conv1d)
        weight, bias = joined.weight.squeeze(-1), joined.bias
        shared = F.linear(overall, weight[:, : overall.shape[-1]], bias)  # (N, second)
        own = F.linear(local, weight[:, overall.shape[-1] :])  # (N * K, second)
        hidden = (own.unflatten(0, size) + shared[:, None]).flatten(0, 1)
        hidden = self.second_conv[1](hidden).relu_()
        return _rows(self.second_conv[3], hidden).unflatten(0, size).amax(dim=1)


def _rows(convolution: nn.Module, rows: Tensor) -> Tensor:
    """A kernel-1 convolution of `(N, C)` without a length axis."""
    assert isinstance(convolution, nn.Conv1d)
    return F.linear(rows, convolution.weight.squeeze(-1), convolution.bias)


def position_mlp(hidden: int, width: int) -> nn.Sequential:
    """Centres `(..., 3)` to positions `(..., width)`, with exact GELU."""
    return nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, width))


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        batch, num_tokens, width = hidden.shape
        qkv = self.qkv(hidden).view(batch, num_tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, width / H) each
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).reshape(batch, num_tokens, width))


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = _MLP(width, int(width * mlp_ratio))

    def forward(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), bias)
        return hidden + self.mlp(self.norm2(hidden))


class PositionedBlocks(nn.Module):
    """Transformer blocks, each of which gets the positions added to its input.

    Stochastic depth (0 to 0.1 in the released training code) is left out: it is off at test, and nothing trains here.
    """

    def __init__(self, width: int, depth: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, eps) for _ in range(depth))

    def forward(self, hidden: Tensor, positions: Tensor, bias: Tensor | None = None) -> Tensor:
        """`hidden` and `positions (B, T, width)`, `bias (B, 1, T, T)` added to the scores -> `(B, T, width)`."""
        for block in self.blocks:
            hidden = block(hidden + positions, bias)
        return hidden
