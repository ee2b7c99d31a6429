"""From media to the values that ImageBind's towers take, as the published model was fed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bindlm.encoders.imagebind_config import ImageBindConfig

CLIP_SECONDS = 2
"""Of sound and of film."""


def preprocess(modality: str, source: Any, config: ImageBindConfig, *, allow_url: bool = False) -> Tensor:
    """One medium to the values of one item, without the batch axis.

    Args:
        modality: image, video, text, audio, depth, thermal or imu; "vision" is read as a picture.
        source: what `bindlm.media` takes for the sense.
        config: sizes of the towers.
        allow_url: whether an http(s) address is fetched.

    Raises:
        MediaError: the medium cannot be used.
    """
    return _READERS[modality](source, config, allow_url)


def _image(source: Any, config: ImageBindConfig, allow_url: bool) -> Tensor:
    from bindlm.media.clip_image import clip_image_config
    from bindlm.media.image import load_image
    from bindlm.media.preprocess import preprocess_image

    image = load_image(source, allow_url=allow_url, transparency="drop")
    return torch.from_numpy(preprocess_image(image, clip_image_config(config.vision_image_size))[0])


def _video(source: Any, config: ImageBindConfig, allow_url: bool) -> Tensor:
    from bindlm.media.video import load_video
    from bindlm.media.video_preprocess import VideoPreprocessConfig, preprocess_video
    from bindlm.media.video_sampling import VideoSampling

    sampling = VideoSampling(clip_seconds=CLIP_SECONDS, frames_per_clip=config.video_frames)
    settings = VideoPreprocessConfig(sampling=sampling, size=config.vision_image_size)
    return preprocess_video(load_video(source, sampling=sampling, allow_url=allow_url), settings)


def _text(source: Any, config: ImageBindConfig, allow_url: bool) -> Tensor:
    from bindlm.media.clip_text import tokenize_clip

    return tokenize_clip([source], context_length=config.text_context_length)[0]


def _audio(source: Any, config: ImageBindConfig, allow_url: bool) -> Tensor:
    from bindlm.media.audio import load_audio
    from bindlm.media.audio_preprocess import AudioPreprocessConfig, preprocess_audio

    settings = AudioPreprocessConfig(num_mel_bins=config.audio_num_mel_bins, target_length=config.audio_target_len)
    return preprocess_audio(load_audio(source, allow_url=allow_url), settings)


def _depth(source: Any, config: ImageBindConfig, allow_url: bool) -> Tensor:
    from bindlm.media.depth import load_depth
    from bindlm.media.depth_preprocess import DepthPreprocessConfig, preprocess_depth

    settings = DepthPreprocessConfig(size=config.depth_image_size)
    return torch.from_numpy(preprocess_depth(load_depth(source, allow_url=allow_url), settings))


def _thermal(source: Any, config: ImageBindConfig, allow_url: bool) -> Tensor:
    from bindlm.media.thermal import ThermalPreprocessConfig, load_thermal, preprocess_thermal

    settings = ThermalPreprocessConfig(size=config.thermal_image_size)
    return torch.from_numpy(preprocess_thermal(load_thermal(source, allow_url=allow_url), settings))


def _imu(source: Any, config: ImageBindConfig, allow_url: bool) -> Tensor:
    from bindlm.media.imu import load_imu
    from bindlm.media.imu_preprocess import ImuPreprocessConfig, preprocess_imu

    settings = ImuPreprocessConfig(num_samples=config.imu_length)
    return torch.from_numpy(preprocess_imu(load_imu(source, allow_url=allow_url), settings))


_READERS: dict[str, Callable[[Any, ImageBindConfig, bool], Tensor]] = {
    "image": _image,
    "vision": _image,
    "video": _video,
    "text": _text,
    "audio": _audio,
    "depth": _depth,
    "thermal": _thermal,
    "imu": _imu,
}
