"""A stage of a few steps on a tiny bound model and drawn pictures, for the tests that run one from its recipe."""

import json
from pathlib import Path
from typing import Any

import yaml

from ..tiny import picture, tiny_model, tiny_processor

NAMES = ("cat", "dog", "red boat", "old house", "tree", "blue sky", "bicycle", "kitchen table")


def write_start(folder: Path) -> Path:
    """The bound model that the stage starts from."""
    model = tiny_model(gate=None)
    model.processor = tiny_processor()
    model.save_pretrained(folder)
    return folder


def write_data(folder: Path) -> None:
    """Pictures with captions in a table, one of them torn, and dialogues with pictures and without."""
    (folder / "images").mkdir(parents=True)
    rows = ["image\tcaption\n"]
    for number, name in enumerate(NAMES):
        picture(number).save(folder / "images" / f"{number}.png")
        rows.append(f"images/{number}.png\ta picture of a {name}\n")
    (folder / "images" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    rows.append("images/torn.png\ta torn picture\n")
    (folder / "captions.tsv").write_text("".join(rows), encoding="utf-8")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A picture."}]
    talk: list[dict[str, Any]] = [{"id": "0", "image": "images/0.png", "conversations": turns}]
    talk.append({"id": "1", "conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]})
    (folder / "talk.json").write_text(json.dumps(talk), encoding="utf-8")


def write_recipe(folder: Path, **changes: Any) -> Path:
    """`recipe.yaml`, with the folder's model and data; `changes` replace whole sections."""
    recipe: dict[str, Any] = {
        "stage": "instruct",
        "output": str(folder / "run"),
        "model": {"start_from": str(write_start(folder / "start"))},
        "data": {
            "sources": [
                {"format": "captions", "path": str(folder / "data" / "captions.tsv")},
                {"format": "llava", "path": str(folder / "data" / "talk.json")},
            ],
            "prompt": {"caption_instruction": "Say what it is.", "max_tokens": 96},
        },
        "features": {"path": str(folder / "features"), "batch_size": 4},
        "optimizer": {"learning_rate": 0.02, "num_steps": 6, "batch_size": 4, "micro_batch_size": 2},
        "tuning": {"lora": {"r": 2}, "train_bridge": True},
        "run": {"save_every": 2, "log_every": 1, "row_tokens": 128},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
