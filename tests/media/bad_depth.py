"""Depth maps that must be refused, quickly and in little memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from bindlm.media.depth import load_depth

from .nasty_sources import Case, nasty_npy, nasty_pictures, nasty_sources, picture_bytes

GOOD = np.arange(500, 500 + 30 * 40, dtype=np.uint16).reshape(30, 40)


def cases(tmp_path: Path) -> list[Case]:
    """What `load_depth` must refuse with a `MediaError`."""
    grey = (GOOD >> 3).astype(np.uint8)
    own = {
        "8 bits": picture_bytes(grey),
        "colour": picture_bytes(np.stack([grey] * 3, axis=-1)),
        "JPEG": picture_bytes(grey, "JPEG"),
        "GIF": picture_bytes(grey, "GIF"),
        "32 bits": picture_bytes(GOOD.astype(np.int32), "TIFF"),
        "all zeros": np.zeros_like(GOOD),
        "negative": np.full((4, 4), -1.0),
        "millimetres as floats": GOOD.astype(np.float32) * 100,
        "1e300 metres": np.full((4, 4), 1e300),
        "64 bits": GOOD.astype(np.int64),
    }
    found: list[Case] = [(name, partial(load_depth, source)) for name, source in own.items()]
    for sources in (nasty_sources(tmp_path), nasty_npy(GOOD), nasty_pictures(GOOD)):
        found += [(name, partial(load_depth, source)) for name, source in sources]
    found.append(("SUN RGB-D in 8 bits", partial(load_depth, grey, encoding="sunrgbd")))
    found.append(("SUN RGB-D in floats", partial(load_depth, GOOD / 1000, encoding="sunrgbd")))
    return found
