"""The image tower: padding as TensorFlow does it, and the published sizes and weights as they are."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bindlm
from bindlm.checkpoints import known_files, load_pickled_state, resolve
from bindlm.encoders.efficientnet_lite import NUM_FEATURES, SIZES, EfficientNetLite, SamePadConv2d
from bindlm.media import ImagePreprocessConfig, load_image, preprocess_image

MILLIONS = {"lite0": 4.7, "lite1": 5.4, "lite2": 6.1, "lite3": 8.2, "lite4": 13.0}
"""Parameters with the head, as the table of the Lite release has them."""
DEMO = Path(bindlm.__file__).parent / "mini" / "demo.jpg"
CATS = range(281, 286)
"""ImageNet's domestic cats; the demo picture shows one."""


def convolved(image: Tensor, weight: Tensor, stride: int, before: int) -> np.ndarray:
    """One channel, one filter, by its definition: rows and columns outside the picture are zero."""
    pixels, kernel = image.double().numpy(), weight.double().numpy()
    height, width, side = *pixels.shape, len(kernel)
    result = np.zeros((math.ceil(height / stride), math.ceil(width / stride)))
    for i, j in np.ndindex(*result.shape):
        for a, b in np.ndindex(side, side):
            row, column = i * stride + a - before, j * stride + b - before
            if 0 <= row < height and 0 <= column < width:
                result[i, j] += kernel[a, b] * pixels[row, column]
    return result


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "before"),
    [
        (8, 3, 2, 0),  # even: one zero, at the end only
        (7, 3, 2, 1),  # odd: one on each side
        (8, 5, 2, 1),  # even: one before, two after
        (9, 5, 2, 2),  # odd: two on each side
        (8, 3, 1, 1),
        (7, 5, 1, 2),
        (8, 1, 1, 0),
    ],
)
def test_same_padding_is_tensorflows(side: int, kernel: int, stride: int, before: int) -> None:
    torch.manual_seed(side * kernel)
    conv = SamePadConv2d(1, 1, kernel, stride, bias=False)
    image = torch.randn(side, side)
    result = conv(image[None, None])[0, 0]
    assert result.shape == (math.ceil(side / stride),) * 2
    expected = convolved(image, conv.weight[0, 0].detach(), stride, before)
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_even_input_is_padded_at_the_end_only() -> None:
    """What symmetric padding, torch's own, gets wrong at stride 2."""
    conv = SamePadConv2d(2, 3, 3, 2)
    image = torch.randn(1, 2, 6, 6)
    at_the_end = F.conv2d(F.pad(image, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    assert torch.equal(conv(image), at_the_end)
    assert (conv(image) - F.conv2d(image, conv.weight, conv.bias, stride=2, padding=1)).abs().max() > 0.1


def test_height_and_width_are_padded_apart() -> None:
    conv = SamePadConv2d(1, 1, 3, 2, bias=False)
    image = torch.randn(1, 1, 6, 7)
    expected = F.conv2d(F.pad(image, (1, 1, 0, 1)), conv.weight, stride=2)  # left, right, top, bottom
    assert torch.equal(conv(image), expected)


@pytest.mark.parametrize("kernel", [3, 5])
def test_stride_one_is_torchs_same(kernel: int) -> None:
    conv = SamePadConv2d(4, 4, kernel, groups=4, bias=False)
    image = torch.randn(2, 4, 9, 6)
    torch.testing.assert_close(conv(image), F.conv2d(image, conv.weight, padding="same", groups=4))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        tower = EfficientNetLite(SIZES[size])
    assert round(sum(parameter.numel() for parameter in tower.parameters()) / 1e6, 1) == MILLIONS[size]


def test_feature_is_pooled_over_any_side() -> None:
    torch.manual_seed(0)
    tower = EfficientNetLite(SIZES["lite0"]).eval()
    for side in (32, 47):
        features = tower(torch.randn(2, 3, side, side))
        assert features.shape == (2, NUM_FEATURES)
        assert 0 <= features.min()
        assert features.max() <= 6
    assert tower.class_logits(features).shape == (2, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["lite0", "lite1", "lite2"])
def test_published_weights_load_strictly_and_as_they_are(size: str) -> None:
    [reference] = [name for name in known_files() if f"/efficientnet-{size}-" in name]
    published = load_pickled_state(resolve(reference, progress=False))
    tower = EfficientNetLite(SIZES[size]).eval()
    own = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tower.state_dict().items()}
    assert own == {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in published.items()}
    tower.load_state_dict(published)
    assert all(torch.equal(tensor, published[name]) for name, tensor in tower.state_dict().items())
    # No error of padding, order or eps would break the load; it would show in what the tower sees.
    config = ImagePreprocessConfig(
        size=tower.config.image_size, crop_fraction=0.875, mean=(127 / 255,) * 3, std=(128 / 255,) * 3
    )
    with torch.no_grad():
        features = tower(torch.from_numpy(preprocess_image(load_image(DEMO), config)))
    assert features.mean().item() == pytest.approx(0.125, abs=0.01)
    assert set(tower.class_logits(features)[0].topk(3).indices.tolist()) <= set(CATS)
