"""Tables of pairs for the mini's senses: each medium beside the prototype, in the mini's own cache, of what it is.

The anchors are the cache's keys at unit length: the head's classes, emoji, and furniture icons. A sound has no
picture; it is bound to the prototypes of its name. Names held out by `split_of` are left out of training in every
sense.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.binding.sources.sound_labels import load_sound_labels
from bindlm.binding.sources.source import PAIRS, write_table
from bindlm.binding.sources.splits import split_of
from bindlm.bound_encoder import WEIGHTS_FILE
from bindlm.checkpoints.mapped import open_mapped
from bindlm.checkpoints.state import save_state_atomic
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.entry_names import NamedEntry, read_entry_names
from bindlm.training.mini.vocabulary import TABLE as VOCABULARY
from bindlm.training.mini.vocabulary import with_article

FEATURES = "features.safetensors"
_CACHE_KEYS = "cache.keys"


@dataclass(frozen=True)
class Prototypes:
    """A mini's cache, by name."""

    entries: list[NamedEntry]
    keys: Tensor
    """`(N, D_joint)`, unit length."""

    def places(self, source: str) -> list[int]:
        """Of the entries of one source, in order."""
        return [place for place, entry in enumerate(self.entries) if entry.source == source]


def read_prototypes(model: Path) -> Prototypes:
    """The cache of a saved mini.

    Raises:
        CheckpointError: the folder holds no mini.
    """
    entries = read_entry_names(model)
    keys = open_mapped(model / WEIGHTS_FILE).take([_CACHE_KEYS])[_CACHE_KEYS].float()
    if len(keys) != len(entries):
        raise CheckpointError(f"{model} has {len(keys)} cache keys and {len(entries)} names; make it anew.")
    return Prototypes(entries, F.normalize(keys, dim=-1))


def write_pairs(sense: str, prototypes: Prototypes, sources: Path, folder: Path) -> Path:
    """The table of a sense, with the features that its rows count.

    Args:
        sense: "audio", "point", "depth" or "text".
        prototypes: of the mini that it is bound to.
        sources: folder of fetched sources, each under its name.
        folder: of the result.

    Raises:
        ConfigError: an unknown sense, or sources that do not belong to this mini.
    """
    if sense not in _ROWS:
        raise ConfigError(f"The mini has no sense {sense!r}; it can be given {', '.join(_ROWS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    features, rows = _ROWS[sense](prototypes, sources, folder)
    save_state_atomic(folder / FEATURES, {"features": features.contiguous()})
    write_table(folder / PAIRS, rows)
    return folder / PAIRS


def _furniture(column: str, table: str) -> "Rows":
    """Shapes beside their icons."""

    def rows(prototypes: Prototypes, sources: Path, folder: Path) -> tuple[Tensor, list[dict[str, Any]]]:
        source = sources / "furniture"
        pairs = _read(source / table)
        objects = list(dict.fromkeys((row["object"], row["label"]) for row in pairs))
        places = prototypes.places("furniture")
        if [prototypes.entries[place].name for place in places] != [label for _, label in objects]:
            raise ConfigError(f"The furniture in {source} is not the one in the mini's cache; fetch it anew.")
        place_of = {name: place for (name, _), place in zip(objects, places, strict=True)}
        kept = ("label", "object", "split")
        return prototypes.keys, [
            {column: _path(source, row[column], folder), "feature": place_of[row["object"]]}
            | {name: row[name] for name in kept}
            for row in pairs
        ]

    return rows


def _sounds(prototypes: Prototypes, sources: Path, folder: Path) -> tuple[Tensor, list[dict[str, Any]]]:
    """Clips beside the mean prototype of their names; a label that the mini has no name for is left out."""
    labels = load_sound_labels()
    places = {label: entry.entries(prototypes.entries) for label, entry in labels.items()}
    named = [label for label in labels if places[label]]
    means = F.normalize(torch.stack([prototypes.keys[places[label]].mean(dim=0) for label in named]), dim=-1)
    number = {label: place for place, label in enumerate(named)}
    rows = []
    for name in ("soundfonts", "recordings"):
        for row in _read(sources / name / PAIRS):
            if row["label"] in number:
                audio = _path(sources / name, row["audio"], folder)
                kept = {"label": row["label"], "object": row["object"], "split": "train"}
                rows.append({"audio": audio, "feature": number[row["label"]], **kept})
    return means, rows


def _texts(prototypes: Prototypes, sources: Path, folder: Path) -> tuple[Tensor, list[dict[str, Any]]]:
    """Names and synonyms beside their prototypes; of a held-out name's class no synonym either."""
    pictures = [*prototypes.places("emoji"), *prototypes.places("furniture")]
    names = {prototypes.entries[place].name for place in pictures}
    held = {name for name in names if split_of(name) != "train"}
    rows = [
        {"text": text, "feature": place, "label": name, "object": name, "split": "train"}
        for place, name, texts in _class_texts()
        if held.isdisjoint(texts)
        for text in texts
    ]
    for place in pictures:
        name = prototypes.entries[place].name
        split = split_of(name)
        for text in _said(name) if split == "train" else [name]:
            rows.append({"text": text, "feature": place, "label": name, "object": name, "split": split})
    return prototypes.keys, rows


def _said(name: str) -> list[str]:
    """A name alone and in phrases: pictures then weigh as much as the many synonyms of the classes."""
    return [name, with_article(name), f"a picture of {with_article(name)}"]


def _class_texts() -> Iterator[tuple[int, str, list[str]]]:
    """Number, name and texts of each class: its synonyms, bare and with their kind."""
    with VOCABULARY.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            synonyms = list(dict.fromkeys([row["name"], *row["lemmas"].split("|")]))
            kinds = [f"{synonym}, a kind of {row['kind']}" for synonym in synonyms if row["kind"]]
            yield int(row["index"]), row["name"], [*synonyms, *kinds]


Rows = Callable[[Prototypes, Path, Path], tuple[Tensor, list[dict[str, Any]]]]
_ROWS: Mapping[str, Rows] = {
    "audio": _sounds,
    "point": _furniture("point", PAIRS),
    "depth": _furniture("depth", "pairs-depth.jsonl"),
    "text": _texts,
}
SENSES: tuple[str, ...] = tuple(_ROWS)
SOURCES_OF: Mapping[str, Sequence[str]] = {
    "audio": ("soundfonts", "recordings"),
    "point": ("furniture",),
    "depth": ("furniture",),
    "text": (),
}
"""Sense to the sources that its table is made of."""


def _read(table: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    except OSError:
        raise ConfigError(
            f"{table} is not there: `bindlm data fetch {table.parent.name} -o {table.parent}`."
        ) from None


def _path(source: Path, name: str, folder: Path) -> str:
    return os.path.relpath(source.resolve() / name, folder.resolve())
