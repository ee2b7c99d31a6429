"""What a tower takes of each medium: decoded once and changed anew at every look, or ready features of a backbone."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bindlm.binding.anchor import Advance, file_name
from bindlm.binding.array_store import ArrayStore
from bindlm.binding.augment import augment, mask_spectrogram
from bindlm.binding.augment_settings import AugmentRecipe
from bindlm.encoders.towers import AdapterTower, Tower
from bindlm.errors import ConfigError, MediaError
from bindlm.training.features.scan import read_ahead

__all__ = ["BackboneFeatures", "DecodedMedia", "MediaValues"]

SPECTROGRAM_AXES = {"mel_transformer": (-2, -1), "mel_cnn": (-2, -1)}
"""Kind of tower -> axes of the frequencies and the frames in what `prepare` gives, where these may be masked."""

_OF_THE_NET = (
    "channels depth dim drop_path dropout encoder family group_size hidden_dim lora_alpha lora_dropout mlp_ratio "
    "noise num_groups num_heads num_prototypes patch point_width prototype_share prototype_temperature r stem "
    "target_modules trained_modules width"
).split()
"""Fields of towers' configurations that what is kept of a medium does not depend on."""
_WORKERS = 2


class MediaValues(Protocol):
    """Gives a tower's input, medium by medium."""

    def plain(self, media: Sequence[int]) -> Tensor:
        """`(B, ...)` of media as they are."""

    def changed(self, media: Sequence[int], randoms: Sequence[np.random.Generator]) -> Tensor:
        """`(B, ...)` of media changed at random."""


class DecodedMedia:
    """Media decoded by a tower's `load`, kept as long as there is room.

    Args:
        tower: loads and prepares.
        media: paths or texts.
        cache: folder of stores.
        cache_gb: room; media beyond it are decoded anew each time.
        recipe: how media are changed.
    """

    def __init__(
        self, tower: Tower, media: Sequence[str], cache: Path, cache_gb: float, recipe: AugmentRecipe
    ) -> None:
        self._load, self._prepare = tower.load, tower.prepare
        self.modality, self.media, self.recipe = tower.modality, media, recipe
        self._axes = SPECTROGRAM_AXES.get(tower.kind) if tower.modality == "audio" else None
        self._rate = int(getattr(tower.config, "sample_rate_hz", 0) or 16_000)
        self._room = int(cache_gb * 1e9)
        self.store = ArrayStore(cache / f"media-{tower.modality}-{key_of(media_settings(tower))}")
        self.names = list(media) if tower.modality == "text" else [file_name(path) for path in media]
        self.partners: Sequence[int] = range(len(media))
        """Media that may be mixed under another: those that are trained on."""

    def decode(self, advance: Advance) -> dict[int, str]:
        """Decode what has not been decoded yet.

        Returns:
            Number of each medium that cannot be used, and why.

        Raises:
            CheckpointError: the disk is full.
        """
        missing = [number for number, name in enumerate(self.names) if name not in self.store]
        advance(len(self.names) - len(missing))
        ready = read_ahead(self._decoded, missing, workers=_WORKERS, depth=4 * _WORKERS)
        for number, made in zip(missing, ready, strict=True):
            self._keep(self.names[number], made)
            advance(1)
        return {number: why for number, name in enumerate(self.names) if (why := self.store.error(name)) is not None}

    def _decoded(self, number: int) -> Any:
        """The medium, if it can be prepared too."""
        try:
            raw = self._load(self.media[number])
            self._prepare(raw)
            return raw
        except MediaError as error:
            return error

    def _keep(self, name: str, made: Any) -> None:
        if name in self.store:
            return
        if isinstance(made, MediaError):
            self.store.put_error(name, str(made))
        elif isinstance(made, np.ndarray) and self.store.num_bytes + made.nbytes <= self._room:
            self.store.put(name, made)
        else:
            self.store.put_nothing(name)

    def raw(self, number: int) -> Any:
        """A decoded medium."""
        name = self.names[number]
        return self.store.get(name) if self.store.is_kept(name) else self._load(self.media[number])

    def plain(self, media: Sequence[int]) -> Tensor:
        """`(B, ...)` of media as they are."""
        return stacked([self._prepare(self.raw(number)) for number in media], self.modality)

    def changed(self, media: Sequence[int], randoms: Sequence[np.random.Generator]) -> Tensor:
        """`(B, ...)` of media changed at random, each by its own generator."""
        rows = [self._changed(number, random) for number, random in zip(media, randoms, strict=True)]
        return stacked(rows, self.modality)

    def _changed(self, number: int, random: np.random.Generator) -> Tensor:
        raw = self.raw(number)
        if not self.recipe.is_on:
            return self._prepare(raw)
        partner = self.partners[int(random.integers(len(self.partners)))]
        try:
            values = self._prepare(
                augment(self.modality, raw, random, self.recipe, rate=self._rate, other=lambda: self.raw(int(partner)))
            )
        except MediaError:  # a crop of a depth map in which nothing was measured
            return self._prepare(raw)
        if self._axes is not None:
            return torch.from_numpy(mask_spectrogram(values.numpy(), random, self.recipe.sound, self._axes))
        return values


class BackboneFeatures:
    """Features `(F,)` of a frozen backbone: of each medium as it is, and of some changed copies, made once.

    Args:
        tower: an adapter on a backbone.
        decoded: its media.
        cache: folder of stores.
        seed: of the changes.
    """

    def __init__(self, tower: AdapterTower, decoded: DecodedMedia, cache: Path, seed: int) -> None:
        self.tower, self.decoded = tower, decoded
        recipe = decoded.recipe
        self.num_copies = recipe.views if recipe.is_on and tower.modality != "text" else 0
        changes = [dataclasses.asdict(recipe), self.num_copies, seed] if self.num_copies else None
        backbone = getattr(tower.config, "backbone", "") or getattr(tower, "anchor_fingerprint", "")
        key = key_of([media_settings(tower), backbone, changes])
        self.store = ArrayStore(cache / f"features-{tower.modality}-{key}")
        self.seed = seed

    def make(self, usable: Sequence[int], advance: Advance) -> None:
        """Run the backbone over what is not there yet.

        Args:
            usable: numbers of media.
            advance: told how many are done.

        Raises:
            CheckpointError: the backbone cannot be had, or the disk is full.
        """
        names = self.decoded.names
        missing = [number for number in usable if names[number] not in self.store]
        advance(len(usable) - len(missing))
        was_training = self.tower.training
        self.tower.eval()
        for number in missing:
            if names[number] not in self.store:
                with torch.inference_mode():
                    features = self.tower.features(self._copies(number)).float().cpu().numpy()  # (1 + V, F)
                self.store.put(names[number], features)
            advance(1)
        self.tower.train(was_training)

    def _copies(self, number: int) -> Tensor:
        """`(1 + V, ...)`: the medium as it is, then its changed copies."""
        name = hashlib.blake2b(self.decoded.media[number].rpartition("/")[2].encode(), digest_size=8).digest()
        seed = int.from_bytes(name)
        randoms = [np.random.default_rng([self.seed, seed, copy]) for copy in range(self.num_copies)]
        plain = self.decoded.plain([number])
        return torch.cat([plain, self.decoded.changed([number] * len(randoms), randoms)]) if randoms else plain

    def plain(self, media: Sequence[int]) -> Tensor:
        """`(B, F)` of media as they are."""
        return torch.from_numpy(np.stack([self._of(number)[0] for number in media]))

    def changed(self, media: Sequence[int], randoms: Sequence[np.random.Generator]) -> Tensor:
        """`(B, F)`: of each medium one of its changed copies."""
        if not self.num_copies:
            return self.plain(media)
        drawn = [int(random.integers(self.num_copies)) for random in randoms]
        return torch.from_numpy(
            np.stack([self._of(number)[1 + copy] for number, copy in zip(media, drawn, strict=True)])
        )

    def _of(self, number: int) -> np.ndarray:
        return self.store.get(self.decoded.names[number])


def media_settings(tower: Tower) -> dict[str, Any]:
    """What of a tower's settings changes what is decoded and prepared."""
    settings = {key: value for key, value in dataclasses.asdict(tower.config).items() if key not in _OF_THE_NET}
    return {"loader": f"{type(tower).load.__module__}.{type(tower).load.__qualname__}", **settings}


def key_of(value: Any) -> str:
    """16 hexadecimal digits that stand for settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def stacked(rows: Sequence[Tensor], modality: str) -> Tensor:
    """Rows of one shape as a batch.

    Raises:
        ConfigError: their shapes differ.
    """
    if len({row.shape for row in rows}) > 1:
        shapes = ", ".join(str(tuple(row.shape)) for row in rows[:2])
        raise ConfigError(f"A tower's prepare must give {modality} values of one shape, got {shapes}, ...")
    return torch.stack(list(rows))
