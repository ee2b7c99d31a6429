"""LanguageBind's vision tower: CLIP's, with a position table of any shape and, for video, attention over time.

Built from the layers of transformers' CLIP, whose parameter names the published files share (the misspelt
`pre_layrnorm` included).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

from bindlm.encoders.languagebind_config import LanguageBindTowerConfig
from bindlm.errors import ConfigError

_LOGIT_SCALE = math.log(1 / 0.07)


def _clip_config(config: LanguageBindTowerConfig) -> CLIPVisionConfig:
    clip_config = CLIPVisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        image_size=[config.height, config.width],
        patch_size=config.patch_size,
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
    )
    clip_config._attn_implementation = "sdpa"  # what a whole model of transformers would choose
    return clip_config


class _Embeddings(nn.Module):
    """Patches, a class token for each frame, and learned positions.

    V1.5 cuts tubes of `tube_size` frames, and each tube has a class token of its own; before, a frame is a picture.
    """

    def __init__(self, config: LanguageBindTowerConfig) -> None:
        super().__init__()
        width, patch, tube = config.hidden_size, config.patch_size, config.tube_size
        rows = (config.num_slots, width) if tube else (width,)
        self.class_embedding = nn.Parameter(torch.randn(rows) * width**-0.5)
        if tube:
            kernel = (tube, patch, patch)
            self.patch_embedding: nn.Module = nn.Conv3d(3, width, kernel, stride=kernel, bias=False)
        else:
            self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(math.prod(config.grid) + 1, width)
        self.is_tubes = tube > 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(B, 3, T, H, W)` -> `(B, slots, N + 1, D)`, the class token first."""
        pixel_values = pixel_values.to(self.position_embedding.weight.dtype)
        batch = pixel_values.shape[0]
        if self.is_tubes:
            patches = self.patch_embedding(pixel_values).flatten(3).permute(0, 2, 3, 1)  # (B, slots, N, D)
        else:
            pictures = pixel_values.transpose(1, 2).flatten(0, 1)  # (B * T, 3, H, W)
            patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)  # (B * T, N, D)
            patches = patches.unflatten(0, (batch, -1))  # (B, T, N, D)
        classes = self.class_embedding.unsqueeze(-2)  # (slots, 1, D), or (1, D) for all alike
        classes = classes.expand(batch, patches.shape[1], 1, -1)
        return torch.cat([classes, patches], dim=2) + self.position_embedding.weight  # (B, slots, N + 1, D)


class _TimeLayer(CLIPEncoderLayer):
    """CLIP's layer behind attention over the frames of the same place.

    Untrained, it is set up as in the paper's code: the attention and the norm start as copies of the spatial ones, and
    `temporal_embedding` is random, so that even then a video tower differs from the image tower.
    """

    def __init__(self, config: CLIPVisionConfig, num_slots: int) -> None:
        super().__init__(config)
        self.num_slots = num_slots
        self.temporal_embedding = nn.Parameter(torch.randn(1, num_slots, self.embed_dim) * self.embed_dim**-0.5)
        self.temporal_attn = CLIPAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(self.embed_dim, eps=config.layer_norm_eps)
        self.temporal_attn.load_state_dict(self.self_attn.state_dict())
        self.temporal_layer_norm1.load_state_dict(self.layer_norm1.state_dict())

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: object) -> Tensor:
        """`(B * T, N, D)` -> the same."""
        num_tokens = hidden_states.shape[1]
        clips = hidden_states.unflatten(0, (-1, self.num_slots)).transpose(1, 2).flatten(0, 1)  # (B * N, T, D)
        if self.num_slots != 1:
            clips = clips + self.temporal_embedding
        attended, _ = self.temporal_attn(hidden_states=self.temporal_layer_norm1(clips), attention_mask=None)
        clips = (clips + attended).unflatten(0, (-1, num_tokens)).transpose(1, 2)  # (B, T, N, D)
        return super().forward(clips.flatten(0, 1), attention_mask)  # (B * T, N, D)


class _Encoder(nn.Module):
    def __init__(self, config: LanguageBindTowerConfig) -> None:
        super().__init__()
        clip_config = _clip_config(config)
        self.layers = nn.ModuleList(
            _TimeLayer(clip_config, config.num_slots) if config.has_time_attention else CLIPEncoderLayer(clip_config)
            for _ in range(config.num_layers)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, None)
        return hidden


class _Vision(nn.Module):
    def __init__(self, config: LanguageBindTowerConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(B, 3, T, H, W)` -> `(B, D)`: the class tokens' mean over time, each normalised before."""
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))  # (B, slots, N + 1, D)
        batch, slots = hidden.shape[:2]
        hidden = self.encoder(hidden.flatten(0, 1))  # (B * slots, N + 1, D)
        pooled = self.post_layernorm(hidden[:, 0])  # (B * slots, D)
        return pooled.unflatten(0, (batch, slots)).mean(dim=1)  # (B, D)


class LanguageBindTower(nn.Module):
    """One sense: its vision tower, its projection into the joint space, and its temperature.

    Args:
        config: sizes.
        dim: width of the joint embedding.
    """

    def __init__(self, config: LanguageBindTowerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.vision_model = _Vision(config)
        self.visual_projection = nn.Linear(config.hidden_size, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(_LOGIT_SCALE))

    def forward(self, values: Tensor) -> Tensor:
        """Embeddings before normalisation.

        Args:
            values: `(B, 3, H, W)` pictures or `(B, 3, T, H, W)` clips, normalised.

        Returns:
            `(B, D_joint)`.

        Raises:
            ConfigError: values of another shape, or another number of frames than the tower was made for.
        """
        frames = self._as_frames(values)  # (B, 3, T, H, W)
        return self.visual_projection(self.vision_model(frames))

    def _as_frames(self, values: Tensor) -> Tensor:
        config = self.config
        frames = values.unsqueeze(2) if values.ndim == 4 else values
        fixed = config.num_frames if config.has_time_attention or config.tube_size else None
        height, width = config.height, config.width
        if frames.ndim != 5 or frames.shape[1] != 3 or frames.shape[3:] != (height, width):
            raise self._error(values)
        if frames.shape[2] != (fixed or frames.shape[2]) or not frames.shape[2]:
            raise self._error(values)
        return frames

    def _error(self, values: Tensor) -> ConfigError:
        config = self.config
        time = f"{config.num_frames}, " if config.has_time_attention or config.tube_size else ""
        return ConfigError(
            f"This tower takes values (B, 3, {time}{config.height}, {config.width}), got {tuple(values.shape)}; make "
            "them with the encoder's preprocess."
        )
