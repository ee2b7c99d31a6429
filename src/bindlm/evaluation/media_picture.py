"""A medium of any sense as a picture that a reader can take in at a glance."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from bindlm.errors import MediaError

__all__ = ["picture_of"]

_SECONDS = 10.0
"""Of a sound that are drawn; more would be too narrow to read."""
_MEL_BINS = 96
_DECIBELS = 60.0
"""Below the loudest: what is quieter is drawn black."""
_RAMP = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)
"""Black by violet and orange to yellow: brighter is louder, in grey print too."""
_AZIMUTH, _ELEVATION = 35.0, 20.0


def picture_of(sense: str, source: Any, *, size: int = 256) -> Image.Image | None:
    """A picture as it is, a sound's spectrogram, a cloud or a depth map shaded; None where there is no way to draw it.

    Args:
        sense: as the encoder calls it.
        source: what the loaders of that sense take, addresses of the web excepted.
        size: pixels of the longer side.

    Returns:
        RGB; a sense without a drawing ("text"), or a medium that cannot be read, gives None.
    """
    draw = _DRAWN.get(sense)
    if draw is None:
        return None
    try:
        picture = draw(source, size)
    except MediaError:
        return None
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return picture


def _image(source: Any, size: int) -> Image.Image:
    from bindlm.media.image import load_image

    return load_image(source)


def _audio(source: Any, size: int) -> Image.Image:
    import torch

    from bindlm.media.audio import load_audio
    from bindlm.media.log_mel import log_mel

    audio = load_audio(source)
    mono = torch.from_numpy(np.asarray(audio.samples)).float().mean(dim=0)
    mono = mono[: int(_SECONDS * audio.sample_rate_hz)]
    levels = log_mel(mono, sample_rate_hz=audio.sample_rate_hz, num_mel_bins=_MEL_BINS).numpy().T[::-1]  # (F, T)
    if not levels.size:
        raise MediaError("Cannot draw a sound of less than 25 ms.")
    share = 1 + (levels - levels.max()) * (10 / np.log(10)) / _DECIBELS
    place = np.clip(share, 0, 1) * (len(_RAMP) - 1)
    colours = np.stack([np.interp(place, range(len(_RAMP)), channel) for channel in _RAMP.T], axis=-1)  # (F, T, 3)
    return Image.fromarray(np.rint(colours).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)


def _point(source: Any, size: int) -> Image.Image:
    from bindlm.media.drawing import draw_points
    from bindlm.media.points import load_points

    return Image.fromarray(
        draw_points(load_points(source), azimuth=_AZIMUTH, elevation=_ELEVATION, size=size)
    ).convert("RGB")


def _depth(source: Any, size: int) -> Image.Image:
    from bindlm.media.depth import load_depth
    from bindlm.media.drawing import draw_depth

    return Image.fromarray(draw_depth(load_depth(source), size=size)).convert("RGB")


_DRAWN: dict[str, Callable[[Any, int], Image.Image]] = {
    "image": _image,
    "audio": _audio,
    "point": _point,
    "depth": _depth,
}
