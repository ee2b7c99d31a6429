"""The six towers of ImageBind (arXiv 2305.05665), under the published parameter names.

A tower is a stem (input to tokens), a trunk (pre-norm transformer) and a head (one vector). Each stem also checks its
input: what the released model reads wrongly without a word (rectangular pictures, clips of another length, 77 ids that
are not 77) is an error here that says what was expected.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.encoders.imagebind_config import ImageBindConfig
from bindlm.errors import ConfigError

# --- trunk ---


class Attention(nn.Module):
    """Multi-head self-attention with torch's own parameter layout.

    Args:
        width: D.
        num_heads: H.
        has_bias_token: whether one learned key and value, not projected, is appended to every sample.
        is_causal: whether a token sees only itself and what is before it.
    """

    def __init__(self, width: int, num_heads: int, *, has_bias_token: bool, is_causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.bias_k: nn.Parameter | None = None
        self.bias_v: nn.Parameter | None = None
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        if has_bias_token:
            self.bias_k = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, 1, width)))
            self.bias_v = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, 1, width)))

    def forward(self, hidden: Tensor) -> Tensor:
        """`(B, T, D)` -> `(B, T, D)`."""
        batch, num_tokens, width = hidden.shape
        heads = (self.num_heads, width // self.num_heads)
        projected = F.linear(hidden, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3 D)
        query, key, value = projected.unflatten(-1, (3, *heads)).unbind(2)  # each (B, T, H, D / H), a view
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat([key, self.bias_k.view(1, 1, *heads).expand(batch, 1, -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.view(1, 1, *heads).expand(batch, 1, -1, -1)], dim=1)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=self.is_causal
        )  # (B, H, T, D / H)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, num_tokens, width))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class Block(nn.Module):
    """Pre-norm transformer block: `x + attn(norm_1(x))`, then `x + mlp(norm_2(x))`."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: int, eps: float, *, has_bias_token: bool, is_causal: bool
    ) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads, has_bias_token=has_bias_token, is_causal=is_causal)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.norm_1 = nn.LayerNorm(width, eps)
        self.norm_2 = nn.LayerNorm(width, eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm_1(hidden))
        return hidden + self.mlp(self.norm_2(hidden))


class Trunk(nn.Module):
    """The blocks of one tower; vision has a norm before them, none has one behind."""

    def __init__(self, tower: str, config: ImageBindConfig) -> None:
        super().__init__()
        width, eps = getattr(config, f"{tower}_embed_dim"), config.layer_norm_eps
        if tower == "vision":
            self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(width, eps))
        self.blocks = nn.ModuleList(
            Block(
                width,
                getattr(config, f"{tower}_num_heads"),
                config.mlp_ratio,
                eps,
                has_bias_token=tower not in ("vision", "text"),
                is_causal=tower == "text",
            )
            for _ in range(getattr(config, f"{tower}_num_blocks"))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, T, D)` -> `(B, T, D)`."""
        if hasattr(self, "pre_transformer_layer"):
            tokens = self.pre_transformer_layer(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


# --- stems ---


class PositionTable(nn.Module):
    """A learned position for the class token and for each patch."""

    def __init__(self, num_patches: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + num_patches, width) * width**-0.5)

    def for_grid(self, rows: int) -> Tensor:
        """Positions `(1, 1 + rows * rows, D)` of a square grid, interpolated where it is not the stored one."""
        stored = self.pos_embed
        side = math.isqrt(stored.shape[1] - 1)
        if rows == side:
            return stored
        # in fp32, as the released model does; the class token keeps its slot
        grid = stored[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
        resized = F.interpolate(grid, size=(rows, rows), mode="bicubic")
        return torch.cat([stored[:, :1], resized.flatten(2).transpose(1, 2).to(stored.dtype)], dim=1)


class PatchProjection(nn.Module):
    """Patches of a picture-like input: convolution without bias, then a norm over channels."""

    def __init__(self, kernel: int, stride: int, width: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel, stride, bias=False)
        self.norm_layer = nn.LayerNorm(width, eps)

    def forward(self, values: Tensor) -> Tensor:
        """`(B, 1, H, W)` -> `(B, T, D)`, row by row."""
        return self.norm_layer(self.proj(values).flatten(2).transpose(1, 2))


class VisionStem(nn.Module):
    """Pictures and clips to tokens."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        width = config.vision_embed_dim
        self.kernel_size = config.vision_kernel_size
        self.num_frames = config.video_frames
        side = config.vision_image_size // self.kernel_size[1]
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        projection = nn.Conv3d(3, width, self.kernel_size, self.kernel_size, bias=False)
        self.rgbt_stem = nn.ModuleDict({"proj": nn.ModuleDict({"1": projection})})  # 0 is the released image-to-video
        self.pos_embedding_helper = PositionTable(side * side, width)

    def forward(self, values: Tensor) -> Tensor:
        """`(B, 3, H, W)` or `(B, 3, T, H, W)` -> `(B, 1 + patches, D)`."""
        if values.ndim == 4:
            values = values.unsqueeze(2)  # (B, 3, 1, H, W)
        frames, height, width = self.kernel_size
        rows, columns = values.shape[-2] // height, values.shape[-1] // width
        if values.ndim != 5 or values.shape[1] != 3 or values.shape[-1] != values.shape[-2] or not rows:
            raise _shape_error("vision", values, f"square pictures (B, 3, S, S) or clips (B, 3, {frames}, S, S)")
        if values.shape[2] == 1:
            values = values.expand(-1, -1, frames, -1, -1)
        if values.shape[2] != frames:
            raise _shape_error("vision", values, f"clips of {frames} frames; cut longer ones into several clips")
        # A convolution whose stride is its kernel is a matrix product of patches: fast in every dtype.
        patches = values[..., : rows * height, : columns * width].unflatten(-1, (columns, width))
        patches = patches.unflatten(-3, (rows, height)).permute(0, 3, 5, 1, 2, 4, 6)  # (B, rows, cols, 3, T, h, w)
        weight = self.rgbt_stem["proj"]["1"].weight  # type: ignore[index]
        tokens = F.linear(patches.reshape(len(values), rows * columns, -1), weight.flatten(1))
        tokens = torch.cat([self.cls_token.expand(len(values), -1, -1), tokens], dim=1)
        return tokens + self.pos_embedding_helper.for_grid(rows)


class PictureLikeStem(nn.Module):
    """Spectrograms, depth and heat to tokens: one channel of one size."""

    def __init__(self, tower: str, config: ImageBindConfig) -> None:
        super().__init__()
        self.tower = tower
        width, kernel = getattr(config, f"{tower}_embed_dim"), getattr(config, f"{tower}_kernel_size")
        if tower == "audio":
            stride, self.size = config.audio_stride, (config.audio_num_mel_bins, config.audio_target_len)
        else:
            stride, self.size = kernel, (getattr(config, f"{tower}_image_size"),) * 2
        num_patches = math.prod((side - kernel) // stride + 1 for side in self.size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        projection = PatchProjection(kernel, stride, width, config.stem_norm_eps)
        self.stem_name = "depth_stem" if tower == "depth" else "rgbt_stem"  # as published
        self.add_module(self.stem_name, projection)
        self.pos_embedding_helper = PositionTable(num_patches, width)

    def forward(self, values: Tensor) -> Tensor:
        """`(B, 1, H, W)` -> `(B, 1 + patches, D)`."""
        if values.ndim != 4 or tuple(values.shape[1:]) != (1, *self.size):
            raise _shape_error(self.tower, values, f"(B, 1, {self.size[0]}, {self.size[1]}), or clips of that shape")
        tokens = getattr(self, self.stem_name)(values)
        tokens = torch.cat([self.cls_token.expand(len(values), -1, -1), tokens], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class ImuProjection(nn.Module):
    """Windows of a signal: linear without bias, then a norm."""

    def __init__(self, window_width: int, width: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Linear(window_width, width, bias=False)
        self.norm_layer = nn.LayerNorm(width, eps)

    def forward(self, windows: Tensor) -> Tensor:
        return self.norm_layer(self.proj(windows))


class ImuStem(nn.Module):
    """Acceleration and turn rate to tokens."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        width = config.imu_embed_dim
        self.kernel, self.channels = config.imu_kernel_size, config.imu_channels
        self.num_windows = config.imu_length // self.kernel
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.imu_stem = ImuProjection(self.channels * self.kernel, width, config.stem_norm_eps)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.num_windows, width) * 0.01)

    def forward(self, values: Tensor) -> Tensor:
        """`(B, 6, samples)` -> `(B, 1 + windows, D)`."""
        samples = self.num_windows * self.kernel
        if values.ndim != 3 or values.shape[1] != self.channels or values.shape[2] // self.kernel != self.num_windows:
            raise _shape_error("imu", values, f"(B, {self.channels}, {samples})")
        windows = values[..., :samples].unflatten(-1, (self.num_windows, self.kernel))  # (B, 6, windows, kernel)
        tokens = self.imu_stem(windows.transpose(1, 2).flatten(2))  # all samples of channel 0, then channel 1, ...
        return torch.cat([self.cls_token.expand(len(values), -1, -1), tokens], dim=1) + self.pos_embed


class TextStem(nn.Module):
    """CLIP token ids to tokens."""

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        width, length = config.text_embed_dim, config.text_context_length
        self.token_embedding = nn.Embedding(config.text_vocab_size, width)
        self.pos_embed = nn.Parameter(torch.randn(1, length, width) * 0.01)
        # Part of the published state; the trunk asks for causal attention by name and never reads it.
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu_(1))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """`(B, 77)` ids -> `(B, 77, D)`."""
        length, vocabulary = self.pos_embed.shape[1], self.token_embedding.num_embeddings
        if ids.ndim != 2 or ids.shape[1] != length or ids.is_floating_point():
            raise _shape_error("text", ids, f"integer token ids (B, {length}), cut or padded with 0")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ConfigError(f"Token ids must lie in 0..{vocabulary - 1}, got {int(ids.min())}..{int(ids.max())}.")
        return self.token_embedding(ids) + self.pos_embed


def build_stem(tower: str, config: ImageBindConfig) -> nn.Module:
    """The stem of one tower."""
    if tower == "vision":
        return VisionStem(config)
    if tower == "text":
        return TextStem(config)
    return ImuStem(config) if tower == "imu" else PictureLikeStem(tower, config)


# --- heads ---


class ClassToken(nn.Module):
    """The first token: `(B, T, D)` -> `(B, D)`."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[:, 0]


class TextHead(nn.Module):
    """Norm and projection at the end-of-text token, which has the largest id."""

    def __init__(self, width: int, dim: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps), nn.Linear(width, dim, bias=False))

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """`(B, T, D)` and the ids `(B, T)` -> `(B, D_joint)`; of several largest ids the first counts."""
        return self.proj(hidden[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)])


def build_head(tower: str, config: ImageBindConfig) -> nn.Module:
    """The head of one tower; numbers in the published names are places in a sequence."""
    width, dim, eps = getattr(config, f"{tower}_embed_dim"), config.out_embed_dim, config.layer_norm_eps
    if tower == "text":
        return TextHead(width, dim, eps)
    dropout = [nn.Dropout(config.imu_head_dropout)] if tower == "imu" else []
    return nn.Sequential(nn.LayerNorm(width, eps), ClassToken(), *dropout, nn.Linear(width, dim, bias=False))


def _shape_error(tower: str, values: Tensor, expected: str) -> ConfigError:
    return ConfigError(f"ImageBind's {tower} tower takes {expected}; got {tuple(values.shape)} of {values.dtype}.")
