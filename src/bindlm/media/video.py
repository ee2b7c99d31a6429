"""One film, from anywhere, as the few frames that an encoder looks at."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

import numpy as np

from bindlm.errors import ConfigError
from bindlm.media.limits import UrlLimits
from bindlm.media.names import Medium
from bindlm.media.source import describe, read_bytes
from bindlm.media.video_limits import VideoLimits
from bindlm.media.video_sampling import Timeline, VideoSampling

__all__ = ["Video", "VideoLimits", "VideoSampling", "load_video"]


@dataclass(frozen=True)
class Video:
    """The picked frames of a film, each held once."""

    frames: np.ndarray
    """uint8 RGB `(N, H, W, 3)`, upright, in the order they are shown, no number twice."""
    index: np.ndarray
    """int64 `(C, T)`: which of `frames` the T frames of each of C clips are."""
    frame_numbers: np.ndarray
    """int64 `(N,)`: the place of each of `frames` in the film, counted from 0."""
    duration_s: float | None
    """Seconds from the first frame to the end of the last; None for an array without a rate."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as of a picture of Pillow."""
        return self.frames.shape[2], self.frames.shape[1]


def load_video(
    source: str | os.PathLike[Any] | bytes | IO[bytes] | np.ndarray | Any,
    *,
    sampling: VideoSampling = VideoSampling(),
    limits: VideoLimits = VideoLimits(),
    allow_url: bool | UrlLimits = False,
    name: str | None = None,
    frames_per_second: float | None = None,
) -> Video:
    """Read the frames of a film that `sampling` picks; no other frame is kept at any time.

    The format is told by the content: MP4 and MOV, WEBM and Matroska, AVI, MPEG transport and program streams, FLV,
    Ogg, ASF (WMV), animated GIF, and raw H.264, HEVC, MPEG-4, MPEG-1/2, IVF and Y4M. The times at which frames are
    shown count, so a film of changing rate is sampled in seconds; they start at its first frame. Rotations by quarters
    and mirrorings that the file asks for are applied. Pixels that are not square are not stretched, interlaced fields
    are not separated, and HDR is not mapped to SDR.

    Args:
        source: One of

            - a path, as `str` or `os.PathLike`, of a regular file;
            - an `http(s)://` address, if `allow_url`; or a `data:...;base64,` address;
            - the bytes of a file, or a file opened with mode `rb` (read from where it stands, left open);
            - a numpy array of all frames, uint8 RGB `(T, H, W, 3)`.
        sampling: Which frames.
        limits: Bounds on bytes, pixels, seconds and frames, enforced before and while decoding.
        allow_url: Whether addresses of the web are fetched; `UrlLimits` says within which bounds.
        name: What to call the film in messages, in place of its path or a description.
        frames_per_second: Of an array; needed for clips, since they are cut by seconds. Not for files.

    Returns:
        The picked frames, which share nothing with `source`.

    Raises:
        MediaError: Whatever is wrong with the source, with its name, the reason, and what to do.
        ConfigError: `frames_per_second` is no rate, or is given for what is no array.

    Example:
        >>> import numpy as np
        >>> video = load_video(np.zeros((50, 48, 64, 3), dtype=np.uint8), frames_per_second=25)
        >>> video.size, video.index.shape, video.frame_numbers.tolist()
        ((64, 48), (5, 2), [0, 49])
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, sampling, limits, name, frames_per_second)
    if frames_per_second is not None:
        raise ConfigError("frames_per_second is for arrays only; a file knows when its frames are shown.")
    medium = describe(source, "video", name)
    data = read_bytes(source, medium, max_bytes=limits.max_bytes, allow_url=allow_url)
    from bindlm.media.video_decode import decode_video

    frames, index, timeline = decode_video(data, medium, limits, sampling.pick)
    return _video(frames, index, timeline.duration_s)


def _video(frames: np.ndarray, picked: np.ndarray, duration_s: float | None) -> Video:
    numbers, places = np.unique(picked, return_inverse=True)
    return Video(frames, places.reshape(picked.shape).astype(np.int64), numbers, duration_s)


def _from_array(
    array: np.ndarray, sampling: VideoSampling, limits: VideoLimits, name: str | None, rate: float | None
) -> Video:
    medium = describe(array, "video", name) if name is not None else Medium("video", f"<array, shape {array.shape}>")
    if isinstance(array, np.ma.MaskedArray):
        raise medium.error("it is a masked array", "Fill the masked values: array.filled(0)")
    if array.dtype != np.uint8:
        raise medium.error(f"its numbers are {array.dtype.name}, and uint8 is expected", "Scale it to 0 to 255")
    if array.ndim != 4 or array.shape[3] != 3:
        cure = "Give all frames in RGB, channels last"
        if array.ndim == 4 and array.shape[1] == 3:
            cure = "Move the channels to the end: array.transpose(0, 2, 3, 1)"
        raise medium.error(f"its shape is {array.shape}, and (T, H, W, 3) is expected", cure)
    if array.size == 0:
        raise medium.error(f"its shape {array.shape} holds no pixel", "Give at least one frame of at least one")
    limits.check_num_frames(medium, len(array))
    limits.check_size(medium, array.shape[2], array.shape[1])
    if rate is not None and (
        isinstance(rate, bool) or not isinstance(rate, (int, float)) or not math.isfinite(rate) or not 0 < rate <= 1e6
    ):
        raise ConfigError(f"frames_per_second must be a number above 0 and at most 1e6, got {rate!r}.")
    if rate is None and sampling.num_frames is None:
        raise medium.error("how many frames it has a second is not known", "Give frames_per_second")
    timeline = Timeline(range(len(array)), 1 / Fraction(str(rate or 1)), len(array))
    if rate is not None:
        limits.check_seconds(medium, timeline.duration_s)
    picked = sampling.pick(timeline)
    numbers = np.unique(picked)
    limits.check_kept(medium, len(numbers), array.shape[2], array.shape[1])
    return _video(np.ascontiguousarray(array[numbers]), picked, None if rate is None else timeline.duration_s)
