"""aiSFX: a frozen net that knows the sound-effect libraries of film, and the log-mel blocks it reads.

"Representation Learning for the Automatic Indexing of Sound Effects Libraries" (Ma and Lerch, ISMIR 2022); weights
CC BY 4.0. The net is convolutional, 9 layers with its heads, of which only the embedding is used here. Its module
names are those of the published checkpoint.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.checkpoints.pickled import convert_pickled_state
from bindlm.checkpoints.state import check_shapes, load_state
from bindlm.encoders.frozen import Frozen

AISFX = "wheel:aisfx==0.1.2/aisfx/models/checkpoint.pth"
"""The published weights (CC BY 4.0; name A. B. Ma and A. Lerch)."""
NUM_FEATURES = 512
SAMPLE_RATE_HZ = 44_100
NUM_MEL_BINS = 96
BLOCK_FRAMES = 100
"""2.3 s."""

_WINDOW = 2048
_HOP = 1024
_SCALE = 9.4578
"""The largest logarithm of the training sounds."""
_PREFIX = "embedding_net."


class AisfxNet(nn.Module):
    """Blocks of a log-mel spectrogram to 512 features.

    Two 3x3 convolutions with batch norm and ReLU in each of four stages, which all but the last halve the block; then
    the mean over bands and the maximum over time.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 64, 128, 256, NUM_FEATURES)
        for stage in range(1, 5):
            self.add_module(f"conv_block{stage}", _Stage(widths[stage - 1], widths[stage]))

    def forward(self, blocks: Tensor) -> Tensor:
        """`(N, 100, 96)`, as `log_mel_blocks` gives them -> `(N, 512)`."""
        # channels last, as the weights are: half the time on a CPU
        hidden = blocks[:, None].contiguous(memory_format=torch.channels_last)  # (N, 1, T, F)
        for stage in range(1, 5):
            hidden = self.get_submodule(f"conv_block{stage}")(hidden)
            if stage < 4:
                hidden = F.max_pool2d(hidden, 2)
        return hidden.mean(dim=3).amax(dim=2)


class _Stage(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = F.relu_(self.bn1(self.conv1(hidden)))
        return F.relu_(self.bn2(self.conv2(hidden)))


class Aisfx(Frozen):
    """The published net, its pickle opened once and kept as safetensors."""

    def __init__(self, reference: str = AISFX) -> None:
        super().__init__(reference)

    def build(self) -> nn.Module:
        """The net with its weights."""
        path = self.resolve()
        if path.suffix != ".safetensors":
            path = convert_pickled_state(path, entry=0, numpy_scalars=True, progress=self.fetching["progress"])
        state = {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in load_state(path).items()
            if name.startswith(_PREFIX)  # the rest are heads of the training sets
        }
        net = AisfxNet()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        check_shapes(path, shapes, {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()})
        net.load_state_dict(state)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, blocks: Tensor, like: Tensor) -> Tensor:
        """The mean over a recording's blocks.

        Args:
            blocks: `(B, N, 100, 96)`; a block that is not there holds -1.
            like: a tensor on the device to work on.

        Returns:
            float32 `(B, 512)`.
        """
        with torch.no_grad():
            given = blocks.to(like.device, torch.float32)
            is_there = given[:, :, 0, 0] >= 0  # (B, N)
            found = self.module(like)(given[is_there])  # (number there, 512)
            totals = found.new_zeros(len(given), NUM_FEATURES)
            totals.index_add_(0, is_there.nonzero()[:, 0], found)
            return totals / is_there.sum(dim=1, keepdim=True)


def log_mel_blocks(samples: Tensor, num_blocks: int) -> Tensor:
    """A recording as blocks of its log-mel spectrogram.

    Blocks lie half a block apart, as in the paper; of more than `num_blocks`, evenly spread ones are taken. A
    recording of less than one block is followed by silence.

    Args:
        samples: float32 `(S,)` at 44.1 kHz, any scale: the peak is brought to 1.
        num_blocks: most blocks.

    Returns:
        float32 `(num_blocks, 100, 96)`, from 0 to about 1; blocks that are not there hold -1.
    """
    frames = log_mel_spectrogram(samples)  # (T, 96)
    frames = F.pad(frames, (0, 0, 0, max(0, BLOCK_FRAMES - len(frames))))
    starts = torch.arange(0, len(frames) - BLOCK_FRAMES + 1, BLOCK_FRAMES // 2)
    if len(starts) > num_blocks:
        starts = starts[torch.linspace(0, len(starts) - 1, num_blocks).round().long()]
    blocks = torch.full((num_blocks, BLOCK_FRAMES, NUM_MEL_BINS), -1.0)
    for place, start in enumerate(starts.tolist()):
        blocks[place] = frames[start : start + BLOCK_FRAMES]
    return blocks


def log_mel_spectrogram(samples: Tensor) -> Tensor:
    """`(S,)` at 44.1 kHz -> float32 `(T, 96)`, T = 1 + S // 1024.

    Peak to 1; power of a Hann-windowed transform of 2048 samples every 1024, frames centred on their time, silence
    beyond both ends; triangles on the HTK mel scale from 0 to 22.05 kHz, each of unit sum;
    `log10(10000 x + 1) / 9.4578`.
    """
    peak = samples.abs().max()
    samples = samples / peak if peak > 0 else samples
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(samples, _WINDOW, _HOP, window=window, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square()  # (1025, T)
    mels = _mel_filters() @ power  # (96, T)
    return (mels * 10_000.0 + 1.0).log10().T.contiguous() / _SCALE


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    """float32 `(96, 1025)`: triangles between neighbours on mel = 2595 log10(1 + f / 700), each of unit sum."""
    top = 2595.0 * np.log10(1.0 + SAMPLE_RATE_HZ / 2 / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, top, NUM_MEL_BINS + 2) / 2595.0) - 1.0)  # Hz
    frequencies = np.linspace(0.0, SAMPLE_RATE_HZ / 2, _WINDOW // 2 + 1)
    slopes = frequencies[None] - corners[:, None]  # (98, 1025)
    widths = np.diff(corners)[:, None]
    triangles = np.maximum(0.0, np.minimum(slopes[:-2] / widths[:-1], -slopes[2:] / widths[1:]))
    return torch.from_numpy(triangles / triangles.sum(axis=1, keepdims=True)).float()
