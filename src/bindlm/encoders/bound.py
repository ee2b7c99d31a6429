"""A trained tower on the disk, and beside the encoder whose space it was bound to.

The folder holds `config.json` (kind and sizes, which anchor, what to tell its users) and `model.safetensors`, in which
there is only what was trained: a backbone of others is named in the configuration.
"""

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bindlm.checkpoints import load_state, save_state_atomic
from bindlm.checkpoints.state import write_text_atomic
from bindlm.encoders.base import JointEncoder
from bindlm.encoders.hosted import read_json
from bindlm.encoders.towers import Tower, build_tower, tower_settings
from bindlm.encoders.towers.views import ViewsAdapter
from bindlm.errors import CheckpointError, ConfigError

MODEL_TYPE = "bindlm_tower"
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Anchor:
    """The encoder whose space a tower was bound to."""

    reference: str
    """As `bindlm.load_embedder` takes it: "mini", a path or a hub id."""
    fingerprint: str
    """Of its `Embedder` (or of one sense of it, `fingerprint_of`) when the tower was trained."""
    modalities: tuple[str, ...] | None = None
    """Senses it was loaded with; None for all."""


@dataclass(frozen=True)
class TowerFolder:
    """What a tower's `config.json` says."""

    settings: dict[str, Any]
    """For `build_tower`."""
    anchor: Anchor | None
    """None for a tower bound to ready-made features alone."""
    notice: str | None
    """What a user is told once when the weights are loaded."""


def save_tower(
    tower: Tower,
    folder: str | os.PathLike[str],
    *,
    anchor: Anchor | Mapping[str, Any] | None = None,
    notice: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a trained tower into a folder; other files in it are kept.

    Args:
        tower: the tower.
        folder: made where absent.
        anchor: what it was bound to: `{"reference": ..., "fingerprint": ...}`.
        notice: what a user must be told, such as a licence or whom to name.
        dtype: of floating-point weights in the file; None keeps theirs.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    folder = Path(folder)
    state = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in tower.state_dict().items()
    }
    given = None if anchor is None else dict(anchor.__dict__ if isinstance(anchor, Anchor) else anchor)
    if given is not None and given.get("modalities") is None:
        given.pop("modalities", None)
    content = {"model_type": MODEL_TYPE, "tower": tower_settings(tower), "anchor": given, "notice": notice}
    save_state_atomic(folder / _WEIGHTS, state, metadata={"format": "pt"})
    write_text_atomic(folder / _CONFIG, json.dumps(content, indent=2) + "\n")


def read_tower_folder(folder: str | os.PathLike[str]) -> TowerFolder:
    """What a tower's folder says of itself; no weights are read.

    Raises:
        CheckpointError: it holds no tower, or its configuration is damaged.
    """
    path = Path(folder) / _CONFIG
    content = read_json(path)
    settings, anchor, notice = (content.get(name) for name in ("tower", "anchor", "notice"))
    if content.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{folder} holds a model of type {content.get('model_type')!r}, not {MODEL_TYPE!r}")
    if not isinstance(settings, dict) or not isinstance(settings.get("kind"), str):
        raise CheckpointError(f'{path} says no kind of tower; expected "tower": {{"kind": ..., sizes}}')
    if not isinstance(notice, (str, type(None))):
        raise CheckpointError(f'{path}: "notice" must be a text or null')
    return TowerFolder(settings, None if anchor is None else _anchor_of(path, anchor), notice)


def _anchor_of(path: Path, content: Any) -> Anchor:
    known = {"reference", "fingerprint", "modalities"}
    if not isinstance(content, dict) or not {"reference", "fingerprint"} <= set(content) <= known:
        raise CheckpointError(f'{path}: "anchor" must be null or {{"reference": ..., "fingerprint": ...}}')
    modalities = content.get("modalities")
    return Anchor(str(content["reference"]), str(content["fingerprint"]), modalities and tuple(modalities))


def load_tower_folder(folder: str | os.PathLike[str], *, dtype: torch.dtype | None = torch.float32) -> Tower:
    """A trained tower, frozen, in evaluation mode. Its backbone, if it has one, is not fetched yet.

    Args:
        folder: as `save_tower` writes it.
        dtype: of its weights; None keeps the file's.

    Raises:
        CheckpointError: a part is missing, damaged, or does not fit the configuration.
        ConfigError: the configuration names an unknown kind of tower, or an impossible size.
    """
    content = read_tower_folder(folder)
    tower = build_tower(**content.settings)
    expected = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    state = load_state(Path(folder) / _WEIGHTS, expected=expected)
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    tower.load_state_dict(state, assign=True)
    if content.notice:
        warnings.warn(content.notice, UserWarning, stacklevel=2)
    return tower.requires_grad_(False).eval()


class BoundEncoder(JointEncoder):
    """Towers in one joint space, with the encoder that the space is of or without.

    Args:
        towers: by sense.
        anchor: the encoder; where both have a sense, the tower's counts. None for the towers alone.

    Raises:
        ConfigError: there is nothing, or the widths differ.
    """

    def __init__(self, towers: Mapping[str, Tower], anchor: JointEncoder | None = None) -> None:
        super().__init__()
        self.anchor = anchor
        self.towers = nn.ModuleDict(towers)
        widths = {tower.dim for tower in towers.values()} | ({anchor.dim} if anchor is not None else set())
        if len(widths) != 1:
            raise ConfigError(f"Towers of one space need one width, got {sorted(widths) or 'no tower'}.")
        self.dim = widths.pop()
        held = anchor.modalities if anchor is not None else ()
        self.modalities = (*(sense for sense in held if sense not in towers), *towers)
        if anchor is not None:
            attach_towers(self.towers, anchor)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """By the sense's tower, or else by the anchor."""
        if modality in self.towers:
            return embed_by(self.towers, modality, values)
        assert self.anchor is not None  # `encode` has checked the sense
        return self.anchor.embed(modality, values)

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """By the sense's tower, or else by the anchor."""
        self.check_modality(modality)
        if modality in self.towers:
            return tower_of(self.towers, modality).preprocess(source, allow_url=allow_url)
        assert self.anchor is not None
        return self.anchor.preprocess(modality, source, allow_url=allow_url)

    def identity(self, modality: str) -> str:
        """The tower's settings, or else the anchor's."""
        if modality in self.towers:
            return tower_identity(self.towers, modality)
        return self.anchor.identity(modality) if self.anchor is not None else ""

    def tensor_names(self, modality: str) -> list[str]:
        """The tower's, or else the anchor's."""
        start = f"towers.{modality}." if modality in self.towers else "anchor."
        return [name for name in self.state_dict() if name.startswith(start)]

    def fetch_with(self, *, local_files_only: bool, progress: bool) -> None:
        """How backbones are fetched when they are needed."""
        set_fetching(self.towers.values(), local_files_only=local_files_only, progress=progress)
        if self.anchor is not None:
            self.anchor.fetch_with(local_files_only=local_files_only, progress=progress)


def attach_towers(towers: nn.ModuleDict, anchor: JointEncoder) -> None:
    """Give an encoder to the towers that look through its pictures."""
    for tower in towers.values():
        if isinstance(tower, ViewsAdapter):
            tower.attach(anchor)


def tower_of(towers: nn.ModuleDict, modality: str) -> Tower:
    """A sense's tower."""
    tower = towers[modality]
    assert isinstance(tower, Tower)
    return tower


def embed_by(towers: nn.ModuleDict, modality: str, values: Tensor) -> Tensor:
    """Embeddings by a sense's tower, in its own dtype."""
    tower = tower_of(towers, modality)
    weight = next(tower.parameters())
    return tower.embed(values.to(weight.dtype) if values.is_floating_point() else values)


def tower_identity(towers: nn.ModuleDict, modality: str) -> str:
    """Kind, sizes and references of a sense's tower, as one text."""
    return json.dumps(tower_settings(tower_of(towers, modality)), sort_keys=True)


def set_fetching(towers: Iterable[nn.Module], *, local_files_only: bool, progress: bool) -> None:
    """How the backbones of towers are fetched when they are needed."""
    for tower in towers:
        if isinstance(tower, Tower):
            for part in tower.frozen_parts():
                part.fetching = {"local_files_only": local_files_only, "progress": progress}


def build(towers: Mapping[str, Mapping[str, Any]]) -> JointEncoder:
    """Towers with fresh weights, by sense.

    Raises:
        ConfigError: an unknown kind or setting, or a tower under the name of another sense.
    """
    return BoundEncoder(build_towers(towers))


def build_towers(towers: Mapping[str, Mapping[str, Any]]) -> dict[str, Tower]:
    """Towers with fresh weights, by sense.

    Raises:
        ConfigError: as `build`.
    """
    built = {}
    for modality, settings in towers.items():
        if not isinstance(settings, Mapping) or "kind" not in settings:
            raise ConfigError(f'The tower of {modality!r} must be {{"kind": ..., sizes}}, got {settings!r}.')
        built[modality] = tower = build_tower(**settings)
        if tower.modality != modality:
            raise ConfigError(f"The tower of {modality!r} is one of {tower.modality!r}: {dict(settings)}.")
    return built


def load(path: Path, *, modalities: Sequence[str] | None = None, dtype: torch.dtype | None = None) -> JointEncoder:
    """The tower of a folder, without its anchor (which `bindlm.load_embedder` adds).

    Raises:
        CheckpointError: the folder is damaged.
        ConfigError: another sense is asked for.
    """
    tower = load_tower_folder(path, dtype=dtype)
    encoder = BoundEncoder({tower.modality: tower})
    for modality in modalities or ():
        encoder.check_modality(modality)
    return encoder.requires_grad_(False).eval()
