"""The held-out media on which the visual cache's effect is measured, embedded once."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bindlm.embedding import Embedder
from bindlm.errors import CheckpointError
from bindlm.evaluation.photographs import load_photographs
from bindlm.evaluation.recordings import GROUPS, load_recordings
from bindlm.evaluation.senses.answers import embed_all
from bindlm.evaluation.senses.exam import Item
from bindlm.evaluation.senses.shapes import shapes_exam
from bindlm.evaluation.senses.texts import texts_exam

MEDIA_AT_ONCE = 16


@dataclass(frozen=True)
class Panel:
    """Held-out media that are reported together."""

    title: str
    """What they are, for a reader."""
    sense: str
    """As the encoder calls it."""
    items: tuple[Item, ...]
    own_sources: tuple[str, ...] = ()
    """Sources of cache entries that show these very objects."""


def load_panels(
    split: str,
    *,
    data: Path | None = None,
    photographs: Path | None = None,
    recordings: Path | None = None,
    without: Sequence[str] = (),
) -> list[Panel]:
    """3-D objects, depth maps, sounds by group, names and photographs of one split.

    Args:
        split: "validation" or "test".
        data: folder of furniture and emoji; None fetches them.
        photographs, recordings: their folders; None is where `python -m bindlm.evaluation.photographs` puts them.
        without: beginnings of sources of recordings to leave out: those that a tower was trained on.

    Raises:
        CheckpointError: something of it is not to be had.
    """
    shapes = {sense: shapes_exam(sense, split, root=data) for sense in ("point", "depth")}
    names = texts_exam(split, root=data)
    heard = load_recordings(split, root=recordings, without=without, allow_missing=True)
    seen = [each for each in load_photographs(split, root=photographs, allow_missing=True) if each.photo]
    pictures = tuple(
        Item(each.id, each.path, each.object, each.acceptable, each.parents, (each.kind,)) for each in seen
    )
    sounds = {
        group: tuple(
            Item(each.id, each.path, each.label, each.acceptable, each.parents, (group,))
            for each in heard
            if each.group == group
        )
        for group in GROUPS
    }
    panels = [
        Panel("3-D objects", "point", shapes["point"].items, shapes["point"].own_sources),
        Panel("depth maps", "depth", shapes["depth"].items, shapes["depth"].own_sources),
        Panel("instruments, heard", "audio", sounds["instrument"]),
        Panel("animals and effects, heard", "audio", (*sounds["animal"], *sounds["effect"])),
        Panel("names", "text", names.items, names.own_sources),
        Panel("photographs", "image", pictures),
    ]
    return [panel for panel in panels if panel.items]


def embed_once(bound: Any, panels: Sequence[Panel], file: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
    """Joint embeddings `(N, D_joint)` by panel title, from a file of an earlier call where there is one.

    Args:
        bound: a bound model with its processor.
        panels: what to embed.
        file: `.safetensors` to read, or to write; None keeps nothing.

    Raises:
        MediaError: a medium cannot be used.
        CheckpointError: the file holds other media, or comes of another encoder.
    """
    from bindlm.checkpoints.state import load_state, save_state_atomic

    stamp = _stamp(bound, panels)
    if file is not None and Path(file).is_file():
        state = load_state(file)
        if _stamp_of(Path(file)) != stamp or {panel.title for panel in panels} - set(state):
            raise CheckpointError(
                f"{file} holds embeddings of other media or of another encoder; name another file, or remove it"
            )
        return {panel.title: state[panel.title] for panel in panels}
    joint = {
        panel.title: embed_all(bound, panel.sense, [item.medium for item in panel.items], MEDIA_AT_ONCE)
        for panel in panels
    }
    if file is not None:
        save_state_atomic(file, joint, {"stamp": stamp})
    return joint


def _stamp(bound: Any, panels: Sequence[Panel]) -> str:
    """Tells one set of media and towers from another."""
    embedder = Embedder(bound.encoder)
    towers = {panel.sense: embedder.fingerprint_of(panel.sense) for panel in panels}
    media = [[panel.title, panel.sense, [item.id for item in panel.items]] for panel in panels]
    return hashlib.sha256(json.dumps([dict(sorted(towers.items())), media]).encode()).hexdigest()


def _stamp_of(file: Path) -> str:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        return (stored.metadata() or {}).get("stamp", "")
