"""Sound from log-mel pictures: a transformer over patches, or a small convolutional net."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bindlm.encoders.towers.base import Tower
from bindlm.encoders.towers.checks import check_heads, check_number, check_whole, fault
from bindlm.encoders.towers.parts import Trunk
from bindlm.encoders.towers.waveform import load_waveform
from bindlm.media.audio import Audio
from bindlm.media.audio_preprocess import AudioPreprocessConfig, preprocess_audio


@dataclass
class MelConfig:
    """How a recording becomes log-mel pictures; both kinds share it."""

    dim: int = 1024
    """Width of the joint embedding."""
    sample_rate_hz: int = 16_000
    """Rate to which sounds are resampled; 32000 keeps more of hiss and birds."""
    num_mel_bins: int = 128
    """Mel bands, the height of a picture; a multiple of 16."""
    num_frames: int = 208
    """Frames of 10 ms in a picture, its width; a multiple of 16."""
    num_clips: int = 3
    """Clips spread evenly over a recording; their embeddings are averaged."""
    mean: float = -4.268
    """Subtracted from the logarithms; ImageBind's, of AudioSet."""
    std: float = 9.138
    """Divides them after that."""

    def __post_init__(self) -> None:
        check_whole(self, 1, "dim", "num_clips", "num_mel_bins", "num_frames")
        check_whole(self, 1000, "sample_rate_hz")
        for name in ("num_mel_bins", "num_frames"):
            if getattr(self, name) % 16:
                raise fault(self, name, "a multiple of 16")
        self.preprocessing()  # which checks its own fields

    def preprocessing(self) -> AudioPreprocessConfig:
        """The same in the words of `bindlm.media`; a clip is as long as its frames, and loses its own mean."""
        return AudioPreprocessConfig(
            sample_rate_hz=self.sample_rate_hz,
            num_mel_bins=self.num_mel_bins,
            target_length=self.num_frames,
            clip_seconds=self.num_frames / 100 + 0.02,
            num_clips=self.num_clips,
            mean=self.mean,
            std=self.std,
            is_mean_shared=False,
        )


class MelTower(Tower):
    """What both kinds share: all but the net from pictures to embeddings."""

    modality = "audio"
    config: MelConfig

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim

    def load(self, source: Any, *, allow_url: bool = False) -> np.ndarray:
        """A recording, its channels mixed, at the tower's rate: float32 `(S,)`."""
        return load_waveform(source, self.config.sample_rate_hz, allow_url=allow_url)

    def prepare(self, raw: np.ndarray) -> Tensor:
        """`(S,)` -> float32 `(num_clips, 1, num_mel_bins, num_frames)`."""
        samples = np.ascontiguousarray(raw, dtype=np.float32)[None]
        return preprocess_audio(Audio(samples, self.config.sample_rate_hz), self.config.preprocessing())

    def embed(self, values: Tensor) -> Tensor:
        """`(B, num_clips, 1, num_mel_bins, num_frames)` -> `(B, D_joint)`, the clips' mean."""
        self.check_values(values, None, 1, self.config.num_mel_bins, self.config.num_frames)
        batch, clips = values.shape[:2]
        return self.embed_clips(values.flatten(0, 1)).unflatten(0, (batch, clips)).mean(dim=1)

    def embed_clips(self, pictures: Tensor) -> Tensor:
        """`(N, 1, num_mel_bins, num_frames)` -> `(N, D_joint)`."""
        raise NotImplementedError


@dataclass
class MelTransformerConfig(MelConfig):
    """A vision transformer over log-mel patches (AST, arXiv 2104.01778), small."""

    width: int = 192
    """Of the tokens."""
    depth: int = 4
    """Blocks."""
    num_heads: int = 4
    """Of attention."""
    mlp_ratio: float = 4.0
    """Hidden width of each MLP, in widths."""
    patch: int = 16
    """Side of the square patches, in bands and frames; 8 or 16."""
    drop_path: float = 0.0
    """Stochastic depth in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 1, "width", "depth", "num_heads")
        check_heads(self)
        check_number(self, "mlp_ratio", 0.1, 16)
        check_number(self, "drop_path", 0, 0.9)
        if self.patch not in (8, 16):
            raise fault(self, "patch", "8 or 16")

    @classmethod
    def base(cls) -> "MelTransformerConfig":
        """The size of AST and of ImageBind's audio tower: 12 blocks of 768."""
        return cls(width=768, depth=12, num_heads=12)


class MelTransformer(MelTower):
    """Patches of the log-mel picture, positions learned, blocks, mean, head."""

    config: MelTransformerConfig

    def __init__(self, config: MelTransformerConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(1, config.width, config.patch, config.patch)
        num_tokens = (config.num_mel_bins // config.patch) * (config.num_frames // config.patch)
        self.positions = nn.Parameter(torch.zeros(1, num_tokens, config.width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.trunk = Trunk(
            config.width, config.depth, config.num_heads, config.mlp_ratio, config.dim, config.drop_path
        )

    def embed_clips(self, pictures: Tensor) -> Tensor:
        """`(N, 1, num_mel_bins, num_frames)` -> `(N, D_joint)`."""
        tokens = self.patches(pictures).flatten(2).transpose(1, 2)  # (N, T, width)
        return self.trunk(tokens + self.positions)


@dataclass
class MelCnnConfig(MelConfig):
    """Convolution blocks over the log-mel picture (as CNN10 of PANNs, arXiv 1912.10211), small."""

    num_mel_bins: int = 64
    """Mel bands."""
    channels: tuple[int, ...] = (16, 48, 96, 192)
    """Of each block; every block halves the picture."""
    dropout: float = 0.1
    """Before the head, in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_list = isinstance(self.channels, (list, tuple)) and len(self.channels) in range(1, 6)
        if not is_list or not all(type(width) is int and width > 0 for width in self.channels):
            raise fault(self, "channels", "1 to 5 whole numbers above 0")
        self.channels = tuple(self.channels)  # JSON gives a list
        check_number(self, "dropout", 0, 0.9)

    @classmethod
    def cnn10(cls) -> "MelCnnConfig":
        """The widths of CNN10, at 32 kHz as there."""
        return cls(sample_rate_hz=32_000, channels=(64, 128, 256, 512))


class MelCnn(MelTower):
    """Two 3x3 convolutions and a mean pool a block; then the mean over bands, and mean plus maximum over time."""

    config: MelCnnConfig

    def __init__(self, config: MelCnnConfig) -> None:
        super().__init__(config)
        widths = (1, *config.channels)
        self.blocks = nn.Sequential(*map(_cnn_block, widths, widths[1:]))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], config.dim)

    def embed_clips(self, pictures: Tensor) -> Tensor:
        """`(N, 1, num_mel_bins, num_frames)` -> `(N, D_joint)`."""
        over_time = self.blocks(pictures).mean(dim=2)  # (N, C, T)
        return self.head(self.dropout(over_time.mean(dim=2) + over_time.amax(dim=2)))


def _cnn_block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU(),
        nn.Conv2d(width_out, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU(),
        nn.AvgPool2d(2),
    )  # fmt: skip
