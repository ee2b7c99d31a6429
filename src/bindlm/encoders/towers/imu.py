"""Motion: six channels over time, a convolutional stem, and a small transformer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bindlm.encoders.towers.base import Tower
from bindlm.encoders.towers.checks import check_heads, check_number, check_whole, fault
from bindlm.encoders.towers.parts import Trunk, conv_stem
from bindlm.errors import MediaError
from bindlm.media.imu import load_imu
from bindlm.media.imu_preprocess import ImuPreprocessConfig, preprocess_imu

_STRIDE = 8
_GRAVITY = 9.80665


@dataclass
class ImuConfig:
    """Sizes of the motion tower."""

    dim: int = 1024
    """Width of the joint embedding."""
    num_samples: int = 512
    """Steps of a recording that are looked at; a multiple of 8."""
    clip_seconds: float = 5.12
    """Time that they cover; with 512 steps, 100 Hz."""
    stem: tuple[int, int] = (32, 64)
    """Channels of the stem's first two convolutions; the third has `width`."""
    width: int = 128
    """Of the tokens."""
    depth: int = 3
    """Blocks."""
    num_heads: int = 4
    """Of attention."""
    mlp_ratio: float = 4.0
    """Hidden width of each MLP, in widths."""
    drop_path: float = 0.0
    """Stochastic depth in training."""

    def __post_init__(self) -> None:
        check_whole(self, 1, "dim", "num_samples", "width", "depth", "num_heads")
        if self.num_samples % _STRIDE:
            raise fault(self, "num_samples", f"a multiple of {_STRIDE}")
        is_list = isinstance(self.stem, (list, tuple)) and len(self.stem) == 2
        if not is_list or not all(type(width) is int and width > 0 for width in self.stem):
            raise fault(self, "stem", "two whole numbers above 0")
        self.stem = (self.stem[0], self.stem[1])  # JSON gives a list
        check_heads(self)
        check_number(self, "clip_seconds", 0.01, 3600)
        check_number(self, "mlp_ratio", 0.1, 16)
        check_number(self, "drop_path", 0, 0.9)

    @classmethod
    def imagebind(cls) -> "ImuConfig":
        """The size of ImageBind's: 5 s in 2000 steps, 6 blocks of 512."""
        return cls(num_samples=2000, clip_seconds=5.0, stem=(128, 256), width=512, depth=6, num_heads=8)


class ImuTower(Tower):
    """Accelerations and rotations to the joint space."""

    modality = "imu"
    config: ImuConfig

    def __init__(self, config: ImuConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.stem = conv_stem([6, *config.stem, config.width], dims=1, kernel=5)
        self.positions = nn.Parameter(torch.zeros(1, config.num_samples // _STRIDE, config.width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.trunk = Trunk(
            config.width, config.depth, config.num_heads, config.mlp_ratio, config.dim, config.drop_path
        )

    def load(self, source: Any, *, allow_url: bool = False) -> np.ndarray:
        """The middle of a recording: float32 `(6, num_samples)`, m/s^2 and rad/s.

        A bare array `(6, S)` counts as covering `clip_seconds`.
        """
        rate = None
        if isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim == 2:
            rate = max(source.shape) / self.config.clip_seconds
        recording = load_imu(source, sample_rate_hz=rate, allow_url=allow_url)
        wanted = ImuPreprocessConfig(num_samples=self.config.num_samples, clip_seconds=self.config.clip_seconds)
        return preprocess_imu(recording, wanted)

    def prepare(self, raw: np.ndarray) -> Tensor:
        """float32 `(6, num_samples)`: accelerations in g, rotations in rad/s.

        Raises:
            MediaError: another number of channels or steps.
        """
        wanted = (6, self.config.num_samples)
        if np.shape(raw) != wanted:
            raise MediaError(f"Cannot use motion of shape {np.shape(raw)}: {wanted} is expected. Read it with load.")
        values = torch.tensor(np.asarray(raw, dtype=np.float32))
        values[:3] /= _GRAVITY
        return values

    def embed(self, values: Tensor) -> Tensor:
        """`(B, 6, num_samples)` -> `(B, D_joint)`."""
        self.check_values(values, 6, self.config.num_samples)
        tokens = self.stem(values).transpose(1, 2)  # (B, T, width)
        return self.trunk(tokens + self.positions)
