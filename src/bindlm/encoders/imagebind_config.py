"""Sizes of ImageBind (arXiv 2305.05665), under the names of the published model's own settings."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bindlm.errors import ConfigError

TOWERS = ("vision", "text", "audio", "depth", "thermal", "imu")
"""The six towers, in the order of the published state dict."""

TOWER_OF = {"image": "vision", "video": "vision"} | {tower: tower for tower in TOWERS}
"""Sense -> the tower that reads it. The published name `vision` is understood too."""

MODALITIES = ("image", "video", "text", "audio", "depth", "thermal", "imu")


@dataclass(frozen=True)
class ImageBindConfig:
    """Settings of all six towers. The defaults are `imagebind_huge`, the only size that was published."""

    out_embed_dim: int = 1024
    """Width of the joint embedding, D_joint."""
    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    vision_image_size: int = 224
    """Side in pixels that the stored position embedding is for; other square sides interpolate it."""
    vision_kernel_size: tuple[int, int, int] = (2, 14, 14)
    """Frames, rows and columns of a patch."""
    video_frames: int = 2
    """Frames of a clip; a still picture is repeated to as many."""
    text_embed_dim: int = 1024
    text_num_blocks: int = 24
    text_num_heads: int = 16
    text_context_length: int = 77
    text_vocab_size: int = 49408
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204
    """Frames of a spectrogram."""
    audio_kernel_size: int = 16
    audio_stride: int = 10
    depth_embed_dim: int = 384
    depth_num_blocks: int = 12
    depth_num_heads: int = 8
    depth_kernel_size: int = 16
    depth_image_size: int = 224
    thermal_embed_dim: int = 768
    thermal_num_blocks: int = 12
    thermal_num_heads: int = 12
    thermal_kernel_size: int = 16
    thermal_image_size: int = 224
    imu_embed_dim: int = 512
    imu_num_blocks: int = 6
    imu_num_heads: int = 8
    imu_kernel_size: int = 8
    """Samples of a window."""
    imu_length: int = 2000
    """Samples of an input; what does not fill a window is dropped."""
    imu_channels: int = 6
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-6
    stem_norm_eps: float = 1e-5
    """Of the norm after the patches of audio, depth, thermal and imu: torch's default, unlike every other norm."""
    max_logit_scale: float = 100.0
    """Ceiling on the factor that the published outputs of all towers but vision carry."""
    imu_head_dropout: float = 0.5
    """In training only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "vision_kernel_size", tuple(self.vision_kernel_size))  # JSON gives a list
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "vision_kernel_size":
                is_valid = len(value) == 3 and all(_is_count(side) for side in value)
            elif isinstance(field.default, float):
                is_valid = isinstance(value, int | float) and value >= 0
            else:
                is_valid = _is_count(value)
            if not is_valid:
                raise ConfigError(f"ImageBindConfig.{field.name} must be a positive number, got {value!r}.")
        for tower in TOWERS:
            width, heads = getattr(self, f"{tower}_embed_dim"), getattr(self, f"{tower}_num_heads")
            if width % heads:
                raise ConfigError(
                    f"ImageBindConfig.{tower}_embed_dim must be a multiple of {heads} heads, got {width}."
                )
        if self.vision_kernel_size[0] != self.video_frames:
            raise ConfigError(
                f"ImageBindConfig.vision_kernel_size must span all {self.video_frames} video_frames, "
                f"got {self.vision_kernel_size}."
            )

    @classmethod
    def from_dict(cls, settings: "Mapping[str, Any] | ImageBindConfig | None") -> "ImageBindConfig":
        """The config of a dictionary of settings; None is `imagebind_huge`.

        Args:
            settings: field names to values, or a mapping that holds them under `config`.

        Raises:
            ConfigError: a setting that ImageBind does not have, or an impossible value.
        """
        if settings is None:
            return cls()
        if isinstance(settings, ImageBindConfig):
            return settings
        given: Mapping[str, Any] = settings.get("config", settings)
        unknown = set(given) - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"ImageBind has no settings {', '.join(sorted(map(str, unknown)))}.")
        return cls(**given)


def imagebind_huge() -> ImageBindConfig:
    """The published size: 1,200,781,057 parameters in six towers."""
    return ImageBindConfig()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
