"""Depth and thermal pictures: one channel, a convolutional stem, and a small transformer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bindlm.encoders.towers.base import Tower
from bindlm.encoders.towers.checks import check_choice, check_heads, check_number, check_whole, fault
from bindlm.encoders.towers.parts import Trunk, conv_stem
from bindlm.errors import MediaError
from bindlm.media.depth import load_depth
from bindlm.media.thermal import load_thermal

_STRIDE = 16
_NEAREST = 4.0
"""Disparity is cut at this many times the median: what is so near fills the picture anyway."""


@dataclass
class VitConfig:
    """Sizes of a vision transformer (arXiv 2010.11929) for one channel, with a stem of convolutions."""

    modality: str = "depth"
    """"depth" or "thermal"."""
    dim: int = 1024
    """Width of the joint embedding."""
    size: int = 96
    """Pixels of each side; a multiple of 16."""
    stem: tuple[int, int, int] = (24, 48, 96)
    """Channels of the stem's first three convolutions; the fourth has `width`."""
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
        check_choice(self, "modality", ("depth", "thermal"))
        check_whole(self, 1, "dim", "size", "width", "depth", "num_heads")
        if self.size % _STRIDE:
            raise fault(self, "size", f"a multiple of {_STRIDE}")
        is_list = isinstance(self.stem, (list, tuple)) and len(self.stem) == 3
        if not is_list or not all(type(width) is int and width > 0 for width in self.stem):
            raise fault(self, "stem", "three whole numbers above 0")
        self.stem = (self.stem[0], self.stem[1], self.stem[2])  # JSON gives a list
        check_heads(self)
        check_number(self, "mlp_ratio", 0.1, 16)
        check_number(self, "drop_path", 0, 0.9)

    @classmethod
    def small(cls, modality: str = "depth") -> "VitConfig":
        """The size of ImageBind's depth tower: 12 blocks of 384, 224 pixels."""
        return cls(modality=modality, size=224, stem=(48, 96, 192), width=384, depth=12, num_heads=6)


class Vit(Tower):
    """Depth or thermal pictures to the joint space."""

    config: VitConfig

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.modality = config.modality
        self.dim = config.dim
        self.stem = conv_stem([1, *config.stem, config.width], dims=2)
        self.positions = nn.Parameter(torch.zeros(1, (config.size // _STRIDE) ** 2, config.width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.trunk = Trunk(
            config.width, config.depth, config.num_heads, config.mlp_ratio, config.dim, config.drop_path
        )

    def load(self, source: Any, *, allow_url: bool = False) -> np.ndarray:
        """float32 `(H, W)`: depth in metres, 0 where nothing was measured; or thermal brightness from 0 to 1."""
        loader = load_depth if self.modality == "depth" else load_thermal
        return loader(source, allow_url=allow_url)

    def prepare(self, raw: np.ndarray) -> Tensor:
        """`(H, W)` -> float32 `(1, size, size)`.

        Depth becomes disparity over its own median, 0 for the median and -1 for far away: a room seen twice as large
        gives the same picture. Thermal brightness loses its own mean and is divided by its own deviation.

        Raises:
            MediaError: a depth map in which nothing was measured.
        """
        relative = relative_disparity if self.modality == "depth" else relative_brightness
        return torch.from_numpy(middle_square(relative(np.asarray(raw)), self.config.size))[None]

    def embed(self, values: Tensor) -> Tensor:
        """`(B, 1, size, size)` -> `(B, D_joint)`."""
        self.check_values(values, 1, self.config.size, self.config.size)
        tokens = self.stem(values).flatten(2).transpose(1, 2)  # (B, T, width)
        return self.trunk(tokens + self.positions)


def relative_disparity(depth: np.ndarray) -> np.ndarray:
    """Metres `(H, W)` to disparity over its median, less 1: from -1 (far, or not measured) to 3."""
    is_measured = depth > 0
    if not is_measured.any():
        raise MediaError("Cannot use a depth map in which nothing was measured: all its values are 0. Give another.")
    disparity = np.zeros(depth.shape, dtype=np.float64)
    np.divide(1.0, depth, out=disparity, where=is_measured)
    ratio = disparity / np.median(disparity[is_measured])
    return (np.minimum(ratio, _NEAREST) - 1).astype(np.float32)


def relative_brightness(thermal: np.ndarray) -> np.ndarray:
    """Brightness `(H, W)` less its mean, over its deviation; a flat picture gives zeros."""
    values = thermal.astype(np.float64)
    return ((values - values.mean()) / (values.std() + 0.02)).astype(np.float32)


def middle_square(values: np.ndarray, size: int) -> np.ndarray:
    """The middle of `(H, W)`, resized with Pillow's bilinear filter, which widens where it shrinks: `(size, size)`."""
    height, width = values.shape
    side = min(height, width)
    left, upper = (width - side) / 2, (height - side) / 2
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    box = (left, upper, left + side, upper + side)
    return np.array(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
