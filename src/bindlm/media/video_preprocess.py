"""From picked frames to the numbers a video encoder reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError, MediaError
from bindlm.media.clip_image import CLIP_MEAN, CLIP_STD
from bindlm.media.video import Video
from bindlm.media.video_sampling import VideoSampling


@dataclass(frozen=True)
class VideoPreprocessConfig:
    """How a film becomes input of one encoder; travels with its weights. Defaults: those of ImageBind."""

    sampling: VideoSampling = VideoSampling()
    """Which frames are picked."""
    size: int = 224
    """Pixels of each side of the result; the shorter side of a frame is resized to it."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted from red, green and blue on a scale where white is 1."""
    std: tuple[float, float, float] = CLIP_STD
    """Divides red, green and blue after that."""
    num_crops: int = 3
    """Squares cut from each frame: 1 is the centre; 3 are its begin, centre and end along the longer side."""
    stack_views: bool = True
    """Whether the result leads with an axis of views, clips times crops; False needs one view and has no such axis."""

    def __post_init__(self) -> None:
        if isinstance(self.sampling, dict):  # as JSON gives it
            object.__setattr__(self, "sampling", VideoSampling(**self.sampling))
        if not isinstance(self.sampling, VideoSampling):
            raise self._error("sampling", "a VideoSampling")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= 2048:
            raise self._error("size", "a whole number from 1 to 2048")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != 3 or not all(map(_is_finite, value)):
                raise self._error(name, "three finite numbers")
            object.__setattr__(self, name, tuple(float(channel) for channel in value))
        if min(self.std) <= 0:
            raise self._error("std", "three numbers above 0")
        if self.num_crops not in (1, 3) or isinstance(self.num_crops, bool):
            raise self._error("num_crops", "1 or 3")
        if not isinstance(self.stack_views, bool):
            raise self._error("stack_views", "True or False")
        if not self.stack_views and (self.num_crops != 1 or self.sampling.shape[0] != 1):
            raise self._error("stack_views", "True where there are several clips or crops")

    def _error(self, name: str, expected: str) -> ConfigError:
        return ConfigError(f"VideoPreprocessConfig.{name} must be {expected}, got {getattr(self, name)!r}.")

    @classmethod
    def imagebind(cls) -> VideoPreprocessConfig:
        """ImageBind (arXiv 2305.05665): 5 clips of 2 s, 2 frames each, 3 crops -> `(15, 3, 2, 224, 224)`."""
        return cls()

    @classmethod
    def languagebind(cls) -> VideoPreprocessConfig:
        """LanguageBind (arXiv 2310.01852): 8 frames of the whole film, centre crop -> `(3, 8, 224, 224)`.

        Its released transform mirrors every other film at random, in inference too. That makes results a matter of
        chance, so nothing is mirrored here.
        """
        return cls(sampling=VideoSampling(num_frames=8), num_crops=1, stack_views=False)


def preprocess_video(video: Video, config: VideoPreprocessConfig) -> Tensor:
    """Resize, cut and normalise the picked frames.

    With frames of W x H pixels and s = min(W, H), a frame on a scale from 0 to 1 is resized to
    `floor(W size / s)` x `floor(H size / s)`, bilinear, edges not aligned and without antialiasing (shrinking much
    therefore skips pixels, as the encoders saw it in training). Squares are cut out where they begin at 0, at
    `ceil((longer - size) / 2)` and at `longer - size` for three crops: left, centre, right, or for frames that are
    higher than wide top, centre, bottom. One crop begins at `round((longer - size) / 2)`, halves to even. Values v of
    channel c become `(v - mean[c]) / std[c]`. Every distinct frame is resized once.

    Args:
        video: C clips of T frames, as `load_video` gives it.
        config: Size, crops and normalisation; its `sampling` is not asked again.

    Returns:
        float32 `(C * num_crops, 3, T, size, size)`, all crops of a clip together, channels red, green, blue; or,
        without `stack_views`, `(3, T, size, size)`.

    Raises:
        MediaError: The video is not in the form of `load_video`, or has several clips without `stack_views`.
    """
    frames, index = video.frames, video.index
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape or index.ndim != 2:
        raise MediaError(
            f"Cannot preprocess a video of frames {frames.dtype} {frames.shape} and index {index.shape}: uint8 "
            "(N, H, W, 3) and (C, T) are expected. Read it with bindlm.media.load_video."
        )
    if not config.stack_views and len(index) != 1:
        raise MediaError(
            f"Cannot preprocess a video of {len(index)} clips: one is expected. Read it with sampling=config.sampling."
        )
    crops = torch.stack([_crops(frame, config) for frame in frames])  # (N, num_crops, 3, size, size)
    views = crops[torch.from_numpy(index)]  # (C, T, num_crops, 3, size, size)
    views = views.permute(0, 2, 3, 1, 4, 5).flatten(0, 1).contiguous()  # (C * num_crops, 3, T, size, size)
    return views if config.stack_views else views[0]


def _crops(frame: np.ndarray, config: VideoPreprocessConfig) -> Tensor:
    """The normalised squares of one frame, `(num_crops, 3, size, size)`."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float()[None] / 255  # (1, 3, H, W)
    height, width = frame.shape[:2]
    size = config.size
    # As the reference computes it: (H / W) first, in floats, which at times is a pixel less than in whole numbers.
    resized = (
        (size, math.floor(width / height * size)) if height <= width else (math.floor(height / width * size), size)
    )
    scaled = F.interpolate(pixels, size=resized, mode="bilinear", align_corners=False, antialias=False)[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    scaled = (scaled - mean) / std
    axis = 1 if height > width else 2
    spare = scaled.shape[axis] - size
    begins = [0, math.ceil(spare / 2), spare] if config.num_crops == 3 else [round(spare / 2)]
    return torch.stack([scaled.narrow(axis, begin, size) for begin in begins])


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
