"""The visual cache of a bound model: part of its own weights, or a folder on disk that it refers to."""

import copy
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from bindlm.configuration import BindLMConfig
from bindlm.embedding import Embedder
from bindlm.encoders import JointEncoder
from bindlm.encoders.licences import tell_licence
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space import CacheEntry, StoredVisualCache, VisualCache, VisualCacheBase, VisualCacheConfig
from bindlm.space.entry_names import ENTRIES_FILE, read_entry_names

FOLDER = "folder"
"""Key in `BindLMConfig.cache` of a cache on disk: its path."""


class CacheMixin:
    """`add_cache` and `attach_cache` for a bound model."""

    cache: VisualCacheBase | None
    config: Any
    encoder: JointEncoder

    def add_cache(self, keys: Tensor, values: Tensor | None = None, **settings: Any) -> None:
        """Give the model a visual cache of its own, saved with its weights.

        Args:
            keys, values: `(N, D_joint)`, see `VisualCache`; without values, the keys at unit length are mixed in.
            **settings: fields of `VisualCacheConfig` other than its sizes.

        Raises:
            ConfigError: the keys are not as wide as the joint space, or a setting is impossible.
        """
        sizes: dict[str, Any] = {
            "num_entries": keys.shape[0],
            "dim": keys.shape[1],
            "has_own_values": values is not None,
        }
        cache = VisualCache(VisualCacheConfig(**sizes, **settings))
        self._check_width(cache)
        cache.keys.copy_(keys)
        if cache.values is not None and values is not None:
            cache.values.copy_(values)
        self.cache = cache.to(self.device)  # type: ignore[attr-defined]
        self.config.cache = {**sizes, **settings}

    def attach_cache(
        self, cache: str | os.PathLike[str] | StoredVisualCache | None, *, verify: bool = False, **settings: Any
    ) -> None:
        """Have the model consult a visual cache on disk from now on, in place of any it has.

        The cache stays where it is: `save_pretrained` writes its path, relative where the folder lies within the
        model's, and never copies it; `from_pretrained` opens it again, or says that it is missing.

        Args:
            cache: a folder, as `bindlm cache build` makes them, or an open cache; None leaves the model without one.
            verify: whether every byte of a folder is compared with its checksum.
            **settings: `top_k`, `alpha`, `temperature`, `weighting`, `modalities` in place of the folder's own.

        Raises:
            CheckpointError: there is no cache, it is damaged, or another encoder made it.
            ConfigError: an impossible setting, or a model that has no place for a cache.

        Example:
            >>> model = bindlm.load()
            >>> model.attach_cache("photos-cache", alpha=0.3)
            >>> model.ask("What is this?", audio="horn.wav")
        """
        if cache is None:
            self.cache, self.config.cache = None, None
            return
        if self.config.mixing == "sum":
            raise ConfigError("This model sums its media (PandaGPT); a visual cache has no place there.")
        fingerprint = self._picture_fingerprint()
        if not isinstance(cache, StoredVisualCache):
            if fingerprint is None:
                raise ConfigError(
                    "This model has no picture tower to compare with the cache's. If its joint embeddings come from "
                    "that encoder, open it yourself: model.attach_cache(StoredVisualCache.open(folder))."
                )
            cache = StoredVisualCache.open(cache, fingerprint=fingerprint, verify=verify, **settings)
        elif verify or settings:
            raise ConfigError("An open cache has its settings: give them to StoredVisualCache.open, or give a folder.")
        elif fingerprint not in (None, cache.record.fingerprint):
            cache = StoredVisualCache.open(cache.path, fingerprint=fingerprint)  # raises, with the cure
        self._check_width(cache)
        if cache.record.notice is not None:
            tell_licence(f"the visual cache {cache.path}", cache.record.notice)
        self.cache = cache
        changed = {name: value for name, value in _settings(cache).items() if value != _own(cache)[name]}
        self.config.cache = {FOLDER: str(cache.path), **changed}

    def _check_width(self, cache: VisualCacheBase) -> None:
        if cache.config.dim != self.encoder.dim:
            raise ConfigError(f"The cache is {cache.config.dim} wide, the encoder {self.encoder.dim}.")

    def _picture_fingerprint(self) -> str | None:
        """Of the picture tower; None for a model without one."""
        return Embedder(self.encoder).fingerprint_of("image") if "image" in self.encoder.modalities else None

    def _load_cache(self, cache: str | os.PathLike[str] | bool | None, folder: Path) -> None:
        """The cache that a loaded model is to have.

        Args:
            cache: a folder in place of its own; False for none; None or True for its own.
            folder: the model's.
        """
        own = self.config.cache
        if cache is False:
            self.attach_cache(None)
        elif cache is not None and not isinstance(cache, bool):
            self.attach_cache(cache)
        elif own is not None and FOLDER in own:
            settings = {name: value for name, value in own.items() if name != FOLDER}
            place = folder / own[FOLDER]
            if not place.is_dir():
                raise CheckpointError(
                    f"the visual cache {place}, which {folder / 'config.json'} names, is missing; give its folder as "
                    "cache=…, or cache=False to do without (on the command line: --cache FOLDER, --no-cache)"
                )
            self.attach_cache(place, **settings)
        elif isinstance(self.cache, VisualCache):
            self.cache.names = _names(folder, self.cache)
        if cache is True and self.cache is None:
            raise ConfigError(f"{folder} has no visual cache; give its folder as cache=…")


def config_for(config: BindLMConfig, folder: Path) -> BindLMConfig:
    """The configuration to save in a model's folder: a cache within it is named by its path from there."""
    if config.cache is None or FOLDER not in config.cache:
        return config
    place, here = Path(config.cache[FOLDER]).resolve(), folder.resolve()
    if not place.is_relative_to(here):
        return config
    saved = copy.deepcopy(config)
    saved.cache = {**config.cache, FOLDER: place.relative_to(here).as_posix()}
    return saved


def _settings(cache: StoredVisualCache) -> dict[str, Any]:
    """How a cache is consulted, as JSON has it."""
    chosen = {name: getattr(cache.config, name) for name in vars(cache.record.settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def _own(cache: StoredVisualCache) -> dict[str, Any]:
    """As `_settings`, of a cache whose folder alone decides."""
    return _settings(StoredVisualCache(cache.files))


def _names(folder: Path, cache: VisualCache) -> list[CacheEntry]:
    """What the entries of a model's own cache are called; [] where no file says.

    Raises:
        CheckpointError: the file is damaged, or of another cache.
    """
    path = folder / ENTRIES_FILE
    if not path.is_file():
        return []
    names = [CacheEntry(f"{source}:{name}", name, source) for name, _, source in read_entry_names(folder)]
    if len(names) != cache.config.num_entries:
        raise CheckpointError(
            f"{path} names {len(names)} entries, and the cache has {cache.config.num_entries}; get the folder again"
        )
    return names
