"""Thermal pictures that must be refused, quickly and in little memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from bindlm.media.thermal import load_thermal

from .nasty_sources import Case, nasty_npy, nasty_pictures, nasty_sources, picture_bytes

GOOD = np.arange(29_000, 29_000 + 30 * 40, dtype=np.uint16).reshape(30, 40)


def cases(tmp_path: Path) -> list[Case]:
    """What `load_thermal` must refuse with a `MediaError`."""
    colour = np.stack([(GOOD >> 3).astype(np.uint8)] * 3, axis=-1)
    jpeg = picture_bytes(colour, "JPEG")
    own = {
        "one count only": np.full_like(GOOD, 7),
        "degrees": GOOD.astype(np.float32) / 100 - 273.15,
        "below zero": np.full((4, 4), -0.1),
        "JPEG cut": jpeg[: len(jpeg) // 2],
        "JPEG header": jpeg[:4],
        "colour as array": colour,
        "colour PNG cut": picture_bytes(colour)[:-20],
    }
    found: list[Case] = [(name, partial(load_thermal, source)) for name, source in own.items()]
    for sources in (nasty_sources(tmp_path), nasty_npy(GOOD), nasty_pictures(GOOD)):
        found += [(name, partial(load_thermal, source)) for name, source in sources]
    return found
