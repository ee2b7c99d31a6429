"""Small stand-ins for fetched data and trained towers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests import tiny
from torch import Tensor

from bindlm.encoders.towers import Tower
from bindlm.modeling import BindLMForConditionalGeneration

LABELS = {"train": ["armchair", "door", "bathtub"], "test": ["couch", "vase", "vase", "broom"], "validation": ["oven"]}
ENTRIES = [
    ["sofa", "furniture", "imagenet"],
    ["dog", "animal", "imagenet"],
    ["beagle", "dog", "imagenet"],
    ["couch", "", "furniture"],
    ["vase", "", "furniture"],
    ["armchair", "", "furniture"],
    ["broom", "", "emoji"],
]


class StandIn(Tower):
    """A medium's bytes, or a text's, to a fixed random direction."""

    def __init__(self, modality: str, dim: int = tiny.DIM) -> None:
        super().__init__()
        self.modality, self.dim, self.config, self.kind = modality, dim, None, "stand-in"
        self.weight = torch.nn.Parameter(torch.eye(dim))

    def load(self, source: Any, *, allow_url: bool = False) -> Any:
        return source.encode() if self.modality == "text" else Path(source).read_bytes()

    def prepare(self, raw: Any) -> Tensor:
        return tiny.unit_rows(1, self.dim, seed=sum(raw) % 10_000)[0]

    def embed(self, values: Tensor) -> Tensor:
        return values @ self.weight


def bound_model(folder: Path, *senses: str) -> BindLMForConditionalGeneration:
    """A tiny model with a cache whose entries are named in `folder`, and stand-ins for its towers."""
    cache = {"num_entries": len(ENTRIES), "dim": tiny.DIM, "top_k": 3}
    model = tiny.tiny_model(cache=cache)
    model.processor = tiny.tiny_processor()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cache_entries.json").write_text(json.dumps(ENTRIES), encoding="utf-8")
    model.name = str(folder)
    for sense in senses:
        model.encoder.towers[sense] = StandIn(sense)
    model.encoder.modalities = ("image", *senses)
    return model


def write_source(folder: Path, *, seed: int = 0) -> Path:
    """Tables and media as `bindlm data fetch furniture` leaves them, of eight objects."""
    for name in ("images", "points", "depth"):
        (folder / name).mkdir(parents=True)
    pairs, depth, objects = [], [], []
    random = np.random.default_rng(seed)
    for split, labels in LABELS.items():
        for label in labels:
            id = f"{seed}-{len(pairs)}"
            tiny.picture(seed * 100 + len(pairs)).save(folder / "images" / f"{id}.png")
            np.save(folder / "points" / f"{id}.npy", random.random((16, 6), dtype=np.float32))
            shared = {"image": f"images/{id}.png", "label": label, "object": id, "split": split}
            pairs.append({"point": f"points/{id}.npy", "text": label, **shared})
            for view in range(2):
                file = f"depth/{id}-{view}.png"
                Image.fromarray(random.integers(0, 4000, (8, 8)).astype(np.uint16)).save(folder / file)
                depth.append({"depth": file, **shared})
            objects.append({"object": id, "category": "Kitchen" if "o" in label else "Bathroom"})
    for name, rows in {"pairs": pairs, "pairs-depth": depth, "objects": objects}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
