"""One picture, from anywhere, as an upright RGB `PIL.Image.Image`."""

from __future__ import annotations

import os
from typing import IO, Any, Literal

import numpy as np
from PIL import Image

from bindlm.errors import ConfigError
from bindlm.media.image_array import array_to_image, is_tensor, tensor_to_image
from bindlm.media.image_color import to_rgb
from bindlm.media.image_decode import decode_image, decoder_errors
from bindlm.media.limits import ImageLimits, UrlLimits
from bindlm.media.names import Medium
from bindlm.media.source import describe, read_bytes

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright. Pillow's turns are counter-clockwise."""


def load_image(
    source: str | os.PathLike[Any] | bytes | IO[bytes] | Image.Image | np.ndarray | Any,
    *,
    limits: ImageLimits = ImageLimits(),
    allow_url: bool | UrlLimits = False,
    name: str | None = None,
    transparency: Literal["white", "drop"] = "white",
) -> Image.Image:
    """Read a picture: upright, in RGB, all pixels there, and nothing else attached.

    The format is told by the content: PNG, JPEG, WEBP, GIF, BMP, TIFF, or binary PBM, PGM and PPM. Of an animation or
    a file with several pages it is the first frame (of an animated PNG the picture that viewers without animation
    show). Transparency is laid over white, unless `transparency` says else. Colours go through the file's ICC profile
    to sRGB; a broken profile is ignored. Grey of 16 bits and of floats is scaled to 8 bits, not clipped. The EXIF
    orientation is applied.

    Args:
        source: One of

            - a path, as `str` or `os.PathLike`, of a regular file;
            - an `http(s)://` address, if `allow_url`; or a `data:...;base64,` address;
            - the bytes of a file, or a file opened with mode `rb` (read from where it stands, left open);
            - a `PIL.Image.Image` (its current frame; its EXIF orientation and ICC profile are applied if it still has
              them; mode `I` is read as grey of 16 bits);
            - a numpy array `(H, W)`, `(H, W, 1)`, `(H, W, 3)` or `(H, W, 4)` of uint8, uint16, bool, or floats from
              0 to 1, of which 255, 65535, True and 1.0 are white;
            - a torch tensor `(3, H, W)` or `(H, W, 3)`, unless 3 stands at both ends.
        limits: Bounds on bytes and pixels, enforced before and while decoding.
        allow_url: Whether addresses of the web are fetched; `UrlLimits` says within which bounds.
        name: What to call the picture in messages, in place of its path or a description.
        transparency: "white", as on a page; or "drop": the colours stored under transparency are taken as if opaque,
            which is how the released ImageBind reads pictures (Pillow's `convert("RGB")`). They may be anything, often
            black.

    Returns:
        A new picture of mode RGB that shares nothing with `source`.

    Raises:
        MediaError: Whatever is wrong with the source, with its name, the reason, and what to do.
        ConfigError: An unknown `transparency`.

    Example:
        >>> import numpy as np
        >>> load_image(np.zeros((2, 3), dtype=np.uint16)).size
        (3, 2)
    """
    if transparency not in ("white", "drop"):
        raise ConfigError(f'transparency must be "white" or "drop", got {transparency!r}.')
    medium = _describe(source, name)
    if isinstance(source, Image.Image):
        image = _check_given(source, medium, limits)
    elif isinstance(source, np.ndarray):
        image = array_to_image(source, medium, limits)
    elif is_tensor(source):
        image = tensor_to_image(source, medium, limits)
    else:
        data = read_bytes(source, medium, max_bytes=limits.max_bytes, allow_url=allow_url)
        image = decode_image(data, medium, limits)
    with decoder_errors(medium):  # a lazy picture of the caller's, or a palette that does not fit, fails only here
        upright = turn_upright(to_rgb(image, medium, is_alpha_dropped=transparency == "drop"), image)
        upright.info = {}  # with its profile and orientation still there, a second call would apply them again
    return upright


def turn_upright(image: Image.Image, original: Image.Image) -> Image.Image:
    """`image` turned as the EXIF orientation of `original`, from whose pixels it was made, asks for."""
    transposition = _UPRIGHT.get(_orientation(original))
    return image if transposition is None else image.transpose(transposition)


def _describe(source: Any, name: str | None) -> Medium:
    if name is None and isinstance(source, Image.Image):
        path = getattr(source, "filename", "")
        if not path:
            return Medium("picture", f"<{source.mode} picture, {source.width} x {source.height}>")
        name = os.fsdecode(path)
    if name is None and (isinstance(source, np.ndarray) or is_tensor(source)):
        what = "array" if isinstance(source, np.ndarray) else "tensor"
        return Medium("picture", f"<{what}, shape {tuple(source.shape)}>")
    return describe(source, "picture", name)


def _check_given(image: Image.Image, medium: Medium, limits: ImageLimits) -> Image.Image:
    if 0 in image.size:
        raise medium.error(f"it is {image.width} x {image.height} pixels", "Give a picture of at least one pixel")
    limits.check(medium, *image.size)
    unreadable = medium.error("its pixels cannot be read", "Open it anew: it is closed, or its file is damaged")
    with decoder_errors(medium, unreadable):
        image.load()
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF data are broken, as viewers do."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a parser of its own, with errors of all classes
        return 1
    return orientation if isinstance(orientation, int) else 1
