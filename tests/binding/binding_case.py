"""A toy sense to bind: depth maps of ramps, each in the direction of its object, against embeddings of sixteen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bindlm.binding.recipe import BindRecipe
from bindlm.training.recipe import load_recipe

DIM = 16
TINY_VIT: dict[str, Any] = {
    "modality": "depth", "size": 32, "stem": [4, 8, 8], "width": 16, "depth": 1, "num_heads": 2
}  # fmt: skip


def write_pairs(folder: Path, *, objects: int = 24, each: int = 2, broken: int = 0) -> Path:
    """A table `pairs.jsonl` with `depth`, `feature`, `label` and `object`, and what it names."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    features = random.standard_normal((objects, DIM)).astype(np.float32)
    np.save(folder / "features.npy", features)
    ways = random.standard_normal((DIM, 2)) / 4
    lines = []
    for item in range(objects):
        for view in range(each):
            name = f"{item}-{view}.npy"
            slope = features[item] @ ways
            rows, columns = np.mgrid[-1:1:24j, -1:1:24j]
            noise = 0.02 * random.standard_normal((24, 24))
            np.save(folder / name, np.exp(slope[0] * rows + slope[1] * columns + noise).astype(np.float32))
            lines.append({"depth": name, "feature": item, "label": f"kind {item % 4}", "object": f"thing {item}"})
    for number in range(broken):
        (folder / f"broken-{number}.npy").write_bytes(b"not an array")
        lines.append({"depth": f"broken-{number}.npy", "feature": 0, "label": "kind 0", "object": "thing 0"})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_recipe(folder: Path, pairs: Path, **sections: Any) -> Path:
    """A recipe of a few steps."""
    recipe = {
        "output": str(folder / "run"),
        "tower": {"kind": "vit", "settings": TINY_VIT},
        "data": {"pairs": [str(pairs)], "split": {"validation": 0.2, "test": 0.2}},
        "optimizer": {"learning_rate": 0.003, "num_steps": 6, "batch_size": 12, "micro_batch_size": 5},
        "evaluate": {"every": 3},
        "run": {"log_every": 1, "save_every": 2},
    }
    for name, values in sections.items():
        recipe[name] = {**recipe[name], **values} if isinstance(recipe.get(name), dict) else values
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def read_recipe(folder: Path, pairs: Path, **sections: Any) -> BindRecipe:
    """The same, read."""
    return load_recipe(write_recipe(folder, pairs, **sections), BindRecipe)


def unit_rows(rows: int, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    """`(rows, dim)` of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1)
