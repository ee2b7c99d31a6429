"""From arrays and tensors to Pillow pictures, where shape and type leave no doubt."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image

from bindlm.media.image_color import floats_to_bytes, scale_to_bytes
from bindlm.media.limits import ImageLimits
from bindlm.media.names import Medium

_SHAPES = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"


def is_tensor(source: object) -> bool:
    """Whether `source` is a torch tensor. Torch is not imported: without it there are no tensors."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def array_to_image(array: np.ndarray, medium: Medium, limits: ImageLimits) -> Image.Image:
    """A picture of mode L, RGB or RGBA from numbers, channels last.

    Args:
        array: `(H, W)` or `(H, W, 1)` grey, `(H, W, 3)` RGB, or `(H, W, 4)` RGB and opacity. White is 255 for uint8,
            65535 for uint16, 1.0 for floats and True for bool.
        medium: What to call it in messages.
        limits: Bounds on its size.

    Raises:
        MediaError: Another shape or type, values out of range, NaN, masked values, or out of bounds.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise medium.error("it is a masked array", "Fill the masked values: array.filled(0)")
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        cure = "Give one picture, channels last"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            cure = "Move the channels to the end: array.transpose(1, 2, 0)"
        raise medium.error(f"its shape is {array.shape}, and {_SHAPES} is expected", cure)
    if array.size == 0:
        raise medium.error(f"its shape {array.shape} holds no pixel", "Give at least one")
    limits.check(medium, array.shape[1], array.shape[0])
    pixels = _to_bytes(array, medium)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def tensor_to_image(tensor: Any, medium: Medium, limits: ImageLimits) -> Image.Image:
    """A picture from a torch tensor of shape `(3, H, W)` or `(H, W, 3)`, uint8 or floats from 0 to 1, on any device.

    Raises:
        MediaError: Another shape, a shape with 3 at both ends (either could be the channels), or bad values.
    """
    shape = tuple(tensor.shape)
    channels = [axis for axis in (0, 2) if len(shape) == 3 and shape[axis] == 3]
    if len(channels) != 1:
        raise medium.error(
            f"its shape is {shape}, and (3, H, W) or (H, W, 3), not both at once, is expected",
            "Give it as a numpy array, channels last",
        )
    if 0 in shape:
        raise medium.error(f"its shape {shape} holds no pixel", "Give at least one")
    height, width = shape[1:] if channels == [0] else shape[:2]
    limits.check(medium, width, height)
    try:
        tensor = tensor.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy knows no bfloat16
    except (RuntimeError, TypeError, NotImplementedError):  # sparse, meta, quantised
        raise medium.error("it is no plain tensor with values", "Give it as a numpy array") from None
    return array_to_image(array.transpose(1, 2, 0) if channels == [0] else array, medium, limits)


def _to_bytes(array: np.ndarray, medium: Medium) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.newbyteorder("=") == np.uint16:
        return scale_to_bytes(array, 65_535)
    if array.dtype.kind == "f":
        return floats_to_bytes(array, medium)
    raise medium.error(
        f"its numbers are {array.dtype.name}, and uint8, uint16, bool, or floats from 0 to 1 are expected",
        "Convert it, for example with array.astype('uint8') if the values go from 0 to 255",
    )
