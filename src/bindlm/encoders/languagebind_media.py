"""From media to the values that LanguageBind's towers take.

Every sense becomes a picture of three channels, normalised as CLIP's pictures are; sound has numbers of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.encoders.languagebind_config import LanguageBindTextConfig, LanguageBindTowerConfig
from bindlm.errors import ConfigError
from bindlm.media.clip_image import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from PIL import Image


def text_values(text: str, config: LanguageBindTextConfig) -> Tensor:
    """Token ids of a text, int64 `(max_tokens,)`.

    What fills the row after the end token does not matter: the tower looks back only, and reads at the end token.
    """
    from bindlm.media.clip_text import VOCAB_SIZE, tokenize_clip

    if config.vocab_size != VOCAB_SIZE:
        raise ConfigError(
            f"LanguageBindTextConfig.vocab_size is {config.vocab_size}; texts are only read with CLIP's vocabulary of "
            f"{VOCAB_SIZE}. Give token ids to encode."
        )
    return tokenize_clip([text], context_length=config.max_tokens)[0]


def sense_values(
    modality: str, source: Any, config: LanguageBindTowerConfig, *, antialias: bool, allow_url: bool
) -> Tensor:
    """One picture, clip, sound, depth map or heat picture to the values of one item of its tower."""
    if modality == "audio":
        return _audio_values(source, config, allow_url=allow_url)
    if modality == "video":
        return _video_values(source, config, allow_url=allow_url)
    if modality == "depth":
        return _depth_values(source, config, allow_url=allow_url)
    # Heat is published as pictures in false colours, so that it is read like any picture.
    from bindlm.media.image import load_image

    return picture_values(load_image(source, allow_url=allow_url), config, antialias=antialias)


def picture_values(image: Image.Image, config: LanguageBindTowerConfig, *, antialias: bool) -> Tensor:
    """A picture of mode RGB: resized as float numbers (unlike in Pillow, nothing is rounded), cut, normalised.

    The shorter side becomes that of the tower, S, by bicubic interpolation, the longer one
    `int(S * longer / shorter)`; of that the middle `(S, S)` is cut out from `round((longer - S) / 2)`, halves to even:
    as torchvision does it. Bicubic overshoots, and as published that is left as it is.

    Returns:
        float32 `(3, S, S)`.
    """
    # One channel after the other: as float32, a picture of 64 million pixels is 256 MB a channel.
    planes = [
        _resize_and_cut(np.asarray(channel), config.height, antialias) for channel in map(image.getchannel, range(3))
    ]
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    return (torch.stack(planes) - mean) / std  # (3, S, S)


def _resize_and_cut(channel: np.ndarray, size: int, antialias: bool) -> Tensor:
    """Bytes `(H, W)` -> the middle `(S, S)` on a scale where white is 1."""
    plane = torch.from_numpy(channel.astype(np.float32)).div_(255)
    sides = [size * side // min(plane.shape) for side in plane.shape]
    resized = F.interpolate(plane[None, None], size=sides, mode="bicubic", align_corners=False, antialias=antialias)
    top, left = (round((side - size) / 2) for side in sides)
    return resized[0, 0, top : top + size, left : left + size].clone()  # a view would keep all of a long picture


def _audio_values(source: Any, config: LanguageBindTowerConfig, *, allow_url: bool) -> Tensor:
    from bindlm.media.audio import load_audio
    from bindlm.media.audio_preprocess import AudioCropsConfig, preprocess_audio_crops

    crops = AudioCropsConfig(
        sample_rate_hz=config.sample_rate_hz,
        num_mel_bins=config.height,
        target_length=config.width,
        mean=config.mel_mean,
        std=config.mel_std,
    )
    return preprocess_audio_crops(load_audio(source, allow_url=allow_url), crops)


def _video_values(source: Any, config: LanguageBindTowerConfig, *, allow_url: bool) -> Tensor:
    from bindlm.media.video import load_video
    from bindlm.media.video_preprocess import VideoPreprocessConfig, preprocess_video
    from bindlm.media.video_sampling import VideoSampling

    sampling = VideoSampling(num_frames=config.num_frames)
    settings = VideoPreprocessConfig(sampling=sampling, size=config.height, num_crops=1, stack_views=False)
    return preprocess_video(load_video(source, sampling=sampling, allow_url=allow_url), settings)


def _depth_values(source: Any, config: LanguageBindTowerConfig, *, allow_url: bool) -> Tensor:
    from bindlm.media.depth import load_depth
    from bindlm.media.depth_preprocess import MetricDepthPreprocessConfig, preprocess_metric_depth

    settings = MetricDepthPreprocessConfig(size=config.height, max_depth_m=config.max_depth_m)
    return torch.from_numpy(preprocess_metric_depth(load_depth(source, allow_url=allow_url), settings))
