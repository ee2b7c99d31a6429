"""Shapes and depth through the eyes that are there: drawn as pictures, which the anchor's own picture tower looks at.

PointCLIP (arXiv 2112.02413) shows CLIP a cloud as depth pictures from several sides and trains an adapter on what it
makes of them. Here the drawings are shaded, and the adapter starts as nothing: before any training a shape is what the
anchor takes its drawing for.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bindlm.encoders.base import JointEncoder
from bindlm.encoders.towers.base import AdapterTower
from bindlm.encoders.towers.checks import check_choice, check_number, check_whole, fault
from bindlm.encoders.towers.parts import RandomDirection
from bindlm.errors import ConfigError
from bindlm.media.depth import load_depth
from bindlm.media.drawing import draw_depth, draw_points
from bindlm.media.points import load_points


@dataclass
class ViewsAdapterConfig:
    """How shapes are drawn, and the size of the adapter."""

    modality: str = "point"
    """"point" or "depth"."""
    dim: int = 1024
    """Width of the joint embedding."""
    canvas: int = 128
    """Pixels of a side that are drawn."""
    picture_size: int = 192
    """Pixels of a side that the picture tower is given."""
    pixel_mean: float = 127 / 255
    """What the picture tower's pixels are less, on the scale 0..1; the mini's."""
    pixel_std: float = 128 / 255
    """What they are divided by."""
    azimuths: list[float] | tuple[float, ...] = (35.0, -40.0)
    """Where a cloud is looked at from, degrees around the vertical axis, y; what is seen is averaged."""
    elevation: float = 20.0
    """Degrees above the horizon."""
    hidden_dim: int = 256
    """Width of the adapter's hidden layer."""
    dropout: float = 0.0
    """In the adapter, in training."""
    noise: float = 0.0
    """Length of a random vector added to what the anchor sees, which is 1 long, in training."""

    def __post_init__(self) -> None:
        check_choice(self, "modality", ("point", "depth"))
        check_whole(self, 1, "dim", "hidden_dim")
        check_whole(self, 16, "canvas", "picture_size")
        check_number(self, "dropout", 0, 0.9)
        check_number(self, "noise", 0, 10)
        check_number(self, "elevation", -89, 89)
        self.azimuths = list(self.azimuths)
        if not self.azimuths:
            raise fault(self, "azimuths", "at least one angle")


class ViewsAdapter(AdapterTower):
    """Clouds, meshes or depth maps to the joint space of an encoder that knows pictures."""

    config: ViewsAdapterConfig

    def __init__(self, config: ViewsAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.modality, self.dim = config.modality, config.dim
        self.adapter = ResidualAdapter(config.dim, config.hidden_dim, config.dropout, config.noise)
        self._anchor: list[JointEncoder] = []  # in a list, so that its weights do not become this tower's

    def attach(self, anchor: JointEncoder, *, fingerprint: str = "") -> None:
        """Look through an encoder's pictures.

        Args:
            anchor: the encoder; it stays its owner's, and is none of this tower's weights.
            fingerprint: of its pictures, for those who keep `features`.

        Raises:
            ConfigError: it knows no pictures, or is of another width.
        """
        anchor.check_modality("image")
        if anchor.dim != self.dim:
            raise ConfigError(f"The tower gives {self.dim} numbers, and its anchor {anchor.dim}.")
        self._anchor[:] = [anchor]
        self.anchor_fingerprint = fingerprint

    def load(self, source: Any, *, allow_url: bool = False) -> np.ndarray:
        """float32 `(P, 3)`, y up, of a mesh 8192 points of its surface; or depth `(H, W)`, 0 where there is none."""
        if self.modality == "point":
            return load_points(source, allow_url=allow_url)
        return load_depth(source, allow_url=allow_url)

    def prepare(self, raw: np.ndarray) -> Tensor:
        """Drawings, float32 `(V, 1, picture_size, picture_size)`; of a depth map one.

        Raises:
            MediaError: a depth map in which nothing was measured.
        """
        config = self.config
        if self.modality == "point":
            points = np.asarray(raw)[:, :3]
            drawn = [
                draw_points(points, azimuth=azimuth, elevation=config.elevation, size=config.canvas)
                for azimuth in config.azimuths
            ]
        else:
            drawn = [draw_depth(np.asarray(raw), size=config.canvas)]
        side = (config.picture_size, config.picture_size)
        resized = [np.asarray(Image.fromarray(each).resize(side, Image.Resampling.BICUBIC)) for each in drawn]
        pixels = torch.from_numpy(np.stack(resized)).float()[:, None] / 255  # (V, 1, S, S)
        return (pixels - config.pixel_mean) / config.pixel_std

    def features(self, values: Tensor) -> Tensor:
        """Drawings `(B, V, 1, S, S)` -> what the anchor takes them for, `(B, D_joint)`, unit length."""
        self.check_values(values, None, 1, self.config.picture_size, self.config.picture_size)
        if not self._anchor:
            raise ConfigError(
                f"This {self.modality} tower sees through the pictures of the encoder that it was bound to, which is "
                "not loaded: load both, without naming modalities."
            )
        with torch.no_grad():
            seen = self._anchor[0].embed_views(values.expand(-1, -1, 3, -1, -1))
        return F.normalize(seen.float(), dim=-1)


class ResidualAdapter(nn.Module):
    """`x / 2 + W_2 GELU(W_1 x)`, x being the unit-length input times half the root of its width; W_2 starts at 0."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float, noise: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim, dim)
        self.noise = RandomDirection(noise)
        self.scale = math.sqrt(dim) / 2
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D_joint)`, unit length -> `(B, D_joint)`, before normalisation."""
        scaled = F.normalize(self.noise(features), dim=-1) * self.scale
        return scaled / 2 + self.out(self.dropout(F.gelu(self.hidden(scaled))))
