"""Media in, from anywhere: bounded, checked, and in one plain form.

Each sense has a loader (`load_image`, `load_audio`, ...) that reads files, bytes or arrays under limits, and a
function that makes of the result what an encoder takes (`preprocess_image`, ...). Whatever is wrong with a medium is
one `bindlm.MediaError`. Names are resolved on first use, so this package costs nothing to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bindlm.media.audio import Audio, load_audio
    from bindlm.media.audio_limits import AudioLimits
    from bindlm.media.audio_preprocess import AudioPreprocessConfig, preprocess_audio
    from bindlm.media.clip_text import tokenize_clip
    from bindlm.media.depth import DepthEncoding, load_depth
    from bindlm.media.depth_preprocess import DepthPreprocessConfig, preprocess_depth
    from bindlm.media.image import load_image
    from bindlm.media.imu import Imu, ImuLimits, load_imu
    from bindlm.media.imu_preprocess import ImuPreprocessConfig, preprocess_imu
    from bindlm.media.limits import ImageLimits, TextLimits, UrlLimits
    from bindlm.media.points import load_points
    from bindlm.media.points_geometry import PointLimits
    from bindlm.media.points_preprocess import PointPreprocessConfig, preprocess_points
    from bindlm.media.preprocess import ImagePreprocessConfig, preprocess_image
    from bindlm.media.text import load_text
    from bindlm.media.thermal import ThermalPreprocessConfig, load_thermal, preprocess_thermal
    from bindlm.media.video import Video, load_video
    from bindlm.media.video_limits import VideoLimits
    from bindlm.media.video_preprocess import VideoPreprocessConfig, preprocess_video
    from bindlm.media.video_sampling import VideoSampling

__all__ = [
    "Audio",
    "AudioLimits",
    "AudioPreprocessConfig",
    "DepthEncoding",
    "DepthPreprocessConfig",
    "ImageLimits",
    "ImagePreprocessConfig",
    "Imu",
    "ImuLimits",
    "ImuPreprocessConfig",
    "PointLimits",
    "PointPreprocessConfig",
    "TextLimits",
    "ThermalPreprocessConfig",
    "UrlLimits",
    "Video",
    "VideoLimits",
    "VideoPreprocessConfig",
    "VideoSampling",
    "load_audio",
    "load_depth",
    "load_image",
    "load_imu",
    "load_points",
    "load_text",
    "load_thermal",
    "load_video",
    "preprocess_audio",
    "preprocess_depth",
    "preprocess_image",
    "preprocess_imu",
    "preprocess_points",
    "preprocess_thermal",
    "preprocess_video",
    "tokenize_clip",
]

_LAZY_EXPORTS = {
    "Audio": "bindlm.media.audio",
    "AudioLimits": "bindlm.media.audio_limits",
    "AudioPreprocessConfig": "bindlm.media.audio_preprocess",
    "DepthEncoding": "bindlm.media.depth",
    "DepthPreprocessConfig": "bindlm.media.depth_preprocess",
    "ImageLimits": "bindlm.media.limits",
    "ImagePreprocessConfig": "bindlm.media.preprocess",
    "Imu": "bindlm.media.imu",
    "ImuLimits": "bindlm.media.imu",
    "ImuPreprocessConfig": "bindlm.media.imu_preprocess",
    "PointLimits": "bindlm.media.points_geometry",
    "PointPreprocessConfig": "bindlm.media.points_preprocess",
    "TextLimits": "bindlm.media.limits",
    "ThermalPreprocessConfig": "bindlm.media.thermal",
    "UrlLimits": "bindlm.media.limits",
    "Video": "bindlm.media.video",
    "VideoLimits": "bindlm.media.video_limits",
    "VideoPreprocessConfig": "bindlm.media.video_preprocess",
    "VideoSampling": "bindlm.media.video_sampling",
    "load_audio": "bindlm.media.audio",
    "load_depth": "bindlm.media.depth",
    "load_image": "bindlm.media.image",
    "load_imu": "bindlm.media.imu",
    "load_points": "bindlm.media.points",
    "load_text": "bindlm.media.text",
    "load_thermal": "bindlm.media.thermal",
    "load_video": "bindlm.media.video",
    "preprocess_audio": "bindlm.media.audio_preprocess",
    "preprocess_depth": "bindlm.media.depth_preprocess",
    "preprocess_image": "bindlm.media.preprocess",
    "preprocess_imu": "bindlm.media.imu_preprocess",
    "preprocess_points": "bindlm.media.points_preprocess",
    "preprocess_thermal": "bindlm.media.thermal",
    "preprocess_video": "bindlm.media.video_preprocess",
    "tokenize_clip": "bindlm.media.clip_text",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY_EXPORTS[name]), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_EXPORTS})
