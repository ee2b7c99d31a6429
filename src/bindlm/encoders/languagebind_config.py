"""Sizes of LanguageBind, by hand or as the published `config.json` of one sense states them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bindlm.errors import CheckpointError, ConfigError

LANGUAGEBIND_SENSES = ("image", "video", "audio", "depth", "thermal")
"""Senses with a published checkpoint; each checkpoint holds the same text tower."""

_ACTIVATIONS = ("gelu", "quick_gelu")


def _check_sizes(config: object, names: tuple[str, ...], least: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"{type(config).__name__}.{name} must be a whole number of at least {least}, got {value!r}."
            )


def _check_numbers(config: object, names: tuple[str, ...], *, above: float = -math.inf) -> None:
    for name in names:
        value = getattr(config, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value <= above
        ):
            raise ConfigError(
                f"{type(config).__name__}.{name} must be a finite number above {above:g}, got {value!r}."
            )


def _check_transformer(config: Any) -> None:
    _check_sizes(config, ("hidden_size", "num_layers", "num_heads", "mlp_size"))
    _check_numbers(config, ("layer_norm_eps",), above=0.0)
    if config.hidden_size % config.num_heads:
        raise ConfigError(
            f"{type(config).__name__}.hidden_size must be a multiple of num_heads ({config.num_heads}), "
            f"got {config.hidden_size}."
        )
    if config.hidden_act not in _ACTIVATIONS:
        raise ConfigError(
            f"{type(config).__name__}.hidden_act must be one of {', '.join(_ACTIVATIONS)}, got {config.hidden_act!r}."
        )


@dataclass(frozen=True)
class LanguageBindTextConfig:
    """The text tower, the anchor of the space. Defaults: CLIP ViT-L/14."""

    hidden_size: int = 768
    """Width."""
    num_layers: int = 12
    """Transformer layers."""
    num_heads: int = 12
    """Attention heads of each layer."""
    mlp_size: int = 3072
    """Width inside each MLP."""
    vocab_size: int = 49408
    """Tokens of CLIP's byte-pair vocabulary."""
    max_tokens: int = 77
    """Positions; every text is padded or cut to that many."""
    hidden_act: str = "gelu"
    """`gelu` (exact) or `quick_gelu`; OpenAI's own CLIP has the latter, LanguageBind's the former."""
    layer_norm_eps: float = 1e-5
    """Of every LayerNorm."""
    eos_token_id: int = 49407
    """Token whose position is the sentence; 2 (configs of old) means the largest id, which is the same token."""

    def __post_init__(self) -> None:
        _check_transformer(self)
        _check_sizes(self, ("vocab_size", "max_tokens"))
        _check_sizes(self, ("eos_token_id",), least=0)


@dataclass(frozen=True)
class LanguageBindTowerConfig:
    """The vision tower of one sense: every sense is shown to it as a picture of three channels."""

    hidden_size: int = 1024
    """Width."""
    num_layers: int = 24
    """Transformer layers."""
    num_heads: int = 16
    """Attention heads of each layer."""
    mlp_size: int = 4096
    """Width inside each MLP."""
    patch_size: int = 14
    """Pixels of each side of a patch; a rest at the right and at the bottom is left out."""
    height: int = 224
    """Pixels; for audio the number of mel bins."""
    width: int = 224
    """Pixels; for audio the number of spectrogram frames (10 ms each)."""
    hidden_act: str = "gelu"
    """`gelu` (exact) or `quick_gelu`."""
    layer_norm_eps: float = 1e-5
    """Of every LayerNorm."""
    num_frames: int = 1
    """Frames of a clip."""
    has_time_attention: bool = False
    """Whether each layer looks over the frames first."""
    tube_size: int = 0
    """Frames that one patch spans, in the V1.5 form ("vl_new"); 0 is the form of the first releases, without tubes."""
    max_depth_m: float = 10.0
    """Depth in metres that counts as 1; 0 takes each picture's own largest. Depth only."""
    sample_rate_hz: int = 16_000
    """Audio only."""
    mel_mean: float = -4.2677393
    """Subtracted from log-mel energies. Audio only."""
    mel_std: float = 4.5689974
    """Twice this divides them after that. Audio only."""

    def __post_init__(self) -> None:
        _check_transformer(self)
        _check_sizes(self, ("patch_size", "height", "width", "num_frames", "sample_rate_hz"))
        _check_sizes(self, ("tube_size",), least=0)
        _check_numbers(self, ("mel_mean", "max_depth_m"))
        _check_numbers(self, ("mel_std",), above=0.0)
        if not isinstance(self.has_time_attention, bool):
            raise ConfigError(
                f"LanguageBindTowerConfig.has_time_attention must be true or false, got {self.has_time_attention!r}."
            )
        if self.max_depth_m < 0:
            raise ConfigError(f"LanguageBindTowerConfig.max_depth_m must be at least 0, got {self.max_depth_m!r}.")
        if min(self.height, self.width) < self.patch_size:
            raise ConfigError(
                f"LanguageBindTowerConfig.patch_size must not exceed height and width ({self.height}, {self.width}), "
                f"got {self.patch_size}."
            )
        if self.tube_size and self.num_frames % self.tube_size:
            raise ConfigError(
                f"LanguageBindTowerConfig.tube_size must divide num_frames ({self.num_frames}), got {self.tube_size}."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def num_slots(self) -> int:
        """Frames that the layers see: those of the clip, or its tubes."""
        return self.num_frames // self.tube_size if self.tube_size else self.num_frames


@dataclass(frozen=True)
class LanguageBindConfig:
    """LanguageBind: a text tower and a vision tower for each sense."""

    dim: int = 768
    """Width of the joint embedding: 768 for Large, 1024 for Huge."""
    towers: Mapping[str, LanguageBindTowerConfig] = field(default_factory=lambda: {"image": LanguageBindTowerConfig()})
    """Sense (image, video, audio, depth, thermal) to its tower; settings by name will do."""
    text: LanguageBindTextConfig = LanguageBindTextConfig()
    """The text tower; settings by name will do."""
    antialias: bool = True
    """Whether pictures (image, thermal) are smoothed as they shrink. The published code leaves it to the torchvision
    installed, whose default for tensors went from off to on with version 0.17; off gives the jagged ones of before."""

    def __post_init__(self) -> None:
        _check_sizes(self, ("dim",))
        if not isinstance(self.antialias, bool):
            raise ConfigError(f"LanguageBindConfig.antialias must be true or false, got {self.antialias!r}.")
        if not isinstance(self.towers, Mapping) or not self.towers or not set(self.towers) <= set(LANGUAGEBIND_SENSES):
            known = ", ".join(LANGUAGEBIND_SENSES)
            given = list(self.towers) if isinstance(self.towers, Mapping) else self.towers
            raise ConfigError(f"LanguageBindConfig.towers must name one or more of {known}, got {given!r}.")
        towers = {sense: _as(LanguageBindTowerConfig, tower, "towers") for sense, tower in self.towers.items()}
        object.__setattr__(self, "towers", {sense: towers[sense] for sense in LANGUAGEBIND_SENSES if sense in towers})
        for sense, tower in towers.items():
            if sense != "audio" and tower.height != tower.width:
                raise ConfigError(
                    f"LanguageBindConfig.towers: height and width of {sense} must be equal, got {tower.height} and "
                    f"{tower.width}."
                )
        object.__setattr__(self, "text", _as(LanguageBindTextConfig, self.text, "text"))

    @classmethod
    def large(cls, senses: Iterable[str] = ("image",)) -> LanguageBindConfig:
        """The published Large towers (ViT-L/14) of `senses`: video with 8 frames, audio with 112 x 1036 mel values."""
        special = {
            "video": LanguageBindTowerConfig(num_frames=8, has_time_attention=True),
            "audio": LanguageBindTowerConfig(height=112, width=1036),
        }
        return cls(towers={sense: special.get(sense, LanguageBindTowerConfig()) for sense in senses})

    @classmethod
    def huge_video(cls) -> LanguageBindConfig:
        """The published Huge V1.5 (ViT-H/14), which exists for video only."""
        tower = LanguageBindTowerConfig(
            hidden_size=1280, num_layers=32, mlp_size=5120, num_frames=8, has_time_attention=True, tube_size=1
        )
        text = LanguageBindTextConfig(hidden_size=1024, num_layers=24, num_heads=16, mlp_size=4096)
        return cls(dim=1024, towers={"video": tower}, text=text)


def _as(kind: Any, value: Any, name: str) -> Any:
    """`value` as a config of `kind`: JSON gives dictionaries."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"LanguageBindConfig.{name} must hold a {kind.__name__} or its settings, got {value!r}.")
    try:
        return kind(**value)
    except TypeError:
        known = ", ".join(kind.__dataclass_fields__)
        raise ConfigError(f"LanguageBindConfig.{name}: {kind.__name__} takes {known}; got {list(value)}.") from None


def sense_of(official: Mapping[str, Any], path: object) -> str:
    """The sense that a published `config.json` is for, by its `model_type` ("LanguageBindVideo").

    Raises:
        CheckpointError: it names no sense of LanguageBind.
    """
    kind = official.get("model_type")
    sense = str(kind).removeprefix("LanguageBind").lower()
    if not str(kind).startswith("LanguageBind") or sense not in LANGUAGEBIND_SENSES:
        known = ", ".join(f"LanguageBind{name.title()}" for name in LANGUAGEBIND_SENSES)
        raise CheckpointError(f"{path} names model_type {kind!r}; expected one of {known}")
    return sense


def parse_official_config(
    official: Mapping[str, Any], sense: str, path: object
) -> tuple[int, LanguageBindTowerConfig, LanguageBindTextConfig]:
    """The joint width, the tower and the text tower that a published `config.json` states.

    What it leaves out has the value that the published classes give it, which are those of CLIP ViT-B/32.
    `projection_dim` inside `vision_config` is a leftover and not read: the one at the top counts.

    Raises:
        CheckpointError: a value is missing or impossible.
    """
    vision, text = _section(official, "vision_config", path), _section(official, "text_config", path)
    is_audio = sense == "audio"
    size = vision.get("image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if is_audio:
        height, width = vision.get("num_mel_bins"), vision.get("target_length")
        if not height or not width:
            raise CheckpointError(f"{path} states no num_mel_bins and target_length in vision_config; get it again")
    is_tubes = "vl_new" in (vision.get("clip_type"), official.get("clip_type"))
    try:
        tower = LanguageBindTowerConfig(
            hidden_size=vision.get("hidden_size", 768),
            num_layers=vision.get("num_hidden_layers", 12),
            num_heads=vision.get("num_attention_heads", 12),
            mlp_size=vision.get("intermediate_size", 3072),
            patch_size=vision.get("patch_size", 32),
            height=_whole(height),
            width=_whole(width),
            hidden_act=vision.get("hidden_act", "quick_gelu"),
            layer_norm_eps=vision.get("layer_norm_eps", 1e-5),
            num_frames=vision.get("num_frames", 1),
            has_time_attention=bool(vision.get("add_time_attn", False)),
            tube_size=vision.get("tube_size", 1) if is_tubes else 0,
            max_depth_m=vision.get("max_depth", 10.0) if sense == "depth" else 10.0,
            sample_rate_hz=_whole(vision.get("audio_sample_rate", 16_000)) if is_audio else 16_000,
            mel_mean=vision.get("audio_mean", -4.2677393) if is_audio else -4.2677393,
            mel_std=vision.get("audio_std", 4.5689974) if is_audio else 4.5689974,
        )
        text_tower = LanguageBindTextConfig(
            hidden_size=text.get("hidden_size", 512),
            num_layers=text.get("num_hidden_layers", 12),
            num_heads=text.get("num_attention_heads", 8),
            mlp_size=text.get("intermediate_size", 2048),
            vocab_size=text.get("vocab_size", 49408),
            max_tokens=text.get("max_position_embeddings", 77),
            hidden_act=text.get("hidden_act", "quick_gelu"),
            layer_norm_eps=text.get("layer_norm_eps", 1e-5),
            eos_token_id=text.get("eos_token_id", 49407),
        )
        dim = official.get("projection_dim", 512)
        return LanguageBindConfig(dim=dim, towers={sense: tower}, text=text_tower).dim, tower, text_tower
    except ConfigError as error:
        raise CheckpointError(f"{path} states an impossible model: {error}") from None


def _section(official: Mapping[str, Any], name: str, path: object) -> dict[str, Any]:
    """One part of the file; where an older transformers wrote `<name>_dict` too, that part's values win."""
    sections = (official.get(name), official.get(f"{name}_dict") or {})
    if not all(isinstance(section, Mapping) for section in sections):
        raise CheckpointError(f"{path} holds no {name}; get the folder's config.json again")
    return {**sections[0], **sections[1]}  # type: ignore[dict-item]


def _whole(value: Any) -> Any:
    """A number that a published file may write as 112.0 for 112; anything else is left for the config to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
