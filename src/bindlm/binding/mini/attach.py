"""Trained towers join a saved mini: their weights its file, their settings its configuration."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bindlm.bound_encoder import WEIGHTS_FILE
from bindlm.checkpoints.state import load_state, save_state_atomic, write_text_atomic
from bindlm.encoders.bound import load_tower_folder, read_tower_folder, save_tower
from bindlm.encoders.towers import build_tower
from bindlm.errors import CheckpointError
from bindlm.training.mini.export import as_shipped

_CONFIG = "config.json"
_CACHE: dict[str, dict[str, Any]] = {
    "point": {"similarity": "cosine", "alpha": 0.9},
    "depth": {"similarity": "cosine", "alpha": 0.9},
    "text": {"similarity": "cosine"},
}
"""How senses consult the visual cache where it is not as pictures do (`VisualCacheConfig.by_sense`): its keys have the
lengths by which a photograph finds its class, and a drawn shape or a word would rather have none. Chosen on validation
names; measured on the test part in docs/cache.md, "Does it help?" (alpha) and "Keys of one length for the other
senses" (cosine). No part of the recipes, which train a tower and know of no cache."""
_SETTINGS: dict[str, dict[str, Any]] = {"point": {"azimuths": [61.0, 9.0, -14.0, -66.0]}}
"""What a tower is used with and was not trained with. A shape is learned from two drawings and known from four: on
validation names the nearest icon is right for 20 of 54, from two for 19. Answers on the test part: docs/mini.md,
"Other senses"."""


def attach_towers(model: Path, towers: Mapping[str, Path], folder: Path) -> None:
    """Write a mini with more senses; what it has of the same senses is replaced, all else stays bit for bit.

    Args:
        model: folder of a saved mini.
        towers: by sense, the folder of its tower.
        folder: of the result; may be `model`.

    Raises:
        CheckpointError: a part is missing or damaged, a tower is of another sense or width, or the disk is full.
    """
    config = json.loads((model / _CONFIG).read_text(encoding="utf-8"))
    state = load_state(model / WEIGHTS_FILE)
    settings = dict(config["encoder"].get("towers", {}))
    for sense, path in towers.items():
        tower = load_tower_folder(path)
        if tower.modality != sense or tower.dim != config["encoder"]["dim"]:
            raise CheckpointError(
                f"{path} holds a tower of {tower.modality!r}, {tower.dim} wide; wanted is one of {sense!r}, "
                f"{config['encoder']['dim']} wide."
            )
        prefix = f"encoder.towers.{sense}."
        state = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        state |= {prefix + name: as_shipped(tensor).contiguous() for name, tensor in tower.state_dict().items()}
        settings[sense] = read_tower_folder(path).settings | _SETTINGS.get(sense, {})
    config["encoder"]["towers"] = settings
    if config.get("cache") is not None:
        config["cache"]["by_sense"] = {sense: _CACHE[sense] for sense in settings if sense in _CACHE}
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != model.resolve():
        for file in model.iterdir():
            if file.is_file() and file.name not in (_CONFIG, WEIGHTS_FILE):
                shutil.copy2(file, folder / file.name)
    save_state_atomic(folder / WEIGHTS_FILE, state, metadata={"format": "pt"})
    write_text_atomic(folder / _CONFIG, json.dumps(config, indent=2) + "\n")


def add_prototypes(folder: Path, prototypes: Tensor) -> None:
    """Let a trained sound tower pull its embeddings toward what it was bound to.

    Args:
        folder: of the tower; written anew.
        prototypes: `(N, D_joint)`, unit length.

    Raises:
        CheckpointError: the tower is missing or damaged.
    """
    content, trained = read_tower_folder(folder), load_tower_folder(folder)
    tower = build_tower(**{**content.settings, "num_prototypes": len(prototypes)})
    tower.load_state_dict({**trained.state_dict(), "pull.prototypes": prototypes.float()})
    save_tower(tower, folder, anchor=content.anchor, notice=content.notice)
