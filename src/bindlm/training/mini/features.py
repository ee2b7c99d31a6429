"""Features of the mini's pictures, extracted once."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bindlm.checkpoints import load_state, save_state_atomic
from bindlm.encoders.efficientnet_lite import EfficientNetLite
from bindlm.space.entry_names import NamedEntry
from bindlm.training.mini.pictures import NamedPicture, load_emoji, load_furniture, paste_on_background

_SAVE_EVERY = 200
"""Pictures between saves: what a killed run has to do again."""


def picture_features(
    tower: EfficientNetLite, packages: Path, file: Path, *, num_views: int, seed: int
) -> tuple[list[NamedEntry], Tensor]:
    """Entries of the pictures and their pooled features.

    Args:
        tower: the image tower.
        packages: folder that keeps unpacked Debian packages.
        file: where features are kept; an interrupted extraction goes on there.
        num_views: V, random views of each picture.
        seed: of the views.

    Returns:
        P entries and `(P, V, 1280)`.
    """
    pictures = [*load_emoji(packages), *load_furniture(packages)]
    fingerprint = json.dumps([num_views, seed, tower.config.image_size, [picture.id for picture in pictures]])
    entries = [NamedEntry(picture.name, "", picture.source) for picture in pictures]
    done = _earlier(file, fingerprint)
    for start in tqdm(
        range(len(done), len(pictures), _SAVE_EVERY), desc="picture features", initial=len(done) // _SAVE_EVERY
    ):
        part = [
            _extract(tower, pictures[i], num_views, seed + i)
            for i in range(start, min(start + _SAVE_EVERY, len(pictures)))
        ]
        done = torch.cat([done, torch.stack(part)]) if len(done) else torch.stack(part)
        save_state_atomic(file, {"features": done.half()}, metadata={"fingerprint": fingerprint})
    return entries, done


def _earlier(file: Path, fingerprint: str) -> Tensor:
    """Features of an earlier run with the same settings, or none."""
    from safetensors import safe_open

    if file.is_file():
        with safe_open(file, framework="pt") as stored:
            if (stored.metadata() or {}).get("fingerprint") == fingerprint:
                return load_state(file)["features"].float()
    return torch.zeros(0)


def _extract(tower: EfficientNetLite, picture: NamedPicture, num_views: int, seed: int) -> Tensor:
    """`(V, 1280)`, rounded as they will be stored, so that a resumed run has the same numbers."""
    random = np.random.default_rng(seed)
    side = tower.config.image_size
    views = np.stack([np.asarray(paste_on_background(picture, random, side)) for _ in range(num_views)])
    pixels = torch.from_numpy(views).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return tower((pixels.float() - 127) / 128).half().float()
