"""LanguageBind: video, sound, depth, heat and pictures bound to the text tower of CLIP.

Source: LanguageBind (arXiv 2310.01852). The graph is CLIP's (transformers, Apache-2.0), the video block is written
from the paper. The published code is under MIT; the training data VIDAL-10M is CC-BY-NC 4.0, so ask yourself whether
weights made from it suit your purpose. This package brings no weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bindlm.checkpoints.mapped import MappedState, open_mapped
from bindlm.encoders.base import JointEncoder
from bindlm.encoders.chosen import choose_modalities
from bindlm.encoders.hosted import read_json
from bindlm.encoders.languagebind_config import (
    LANGUAGEBIND_SENSES,
    LanguageBindConfig,
    LanguageBindTextConfig,
    parse_official_config,
    sense_of,
)
from bindlm.encoders.languagebind_keys import OfficialNames, sort_names, take_official
from bindlm.encoders.licences import tell_licence
from bindlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import CLIPTextModel

_PathLike = str | os.PathLike[str]

MODEL_TYPES = tuple(f"LanguageBind{sense.title()}" for sense in LANGUAGEBIND_SENSES)
"""Values of `model_type` in the published config.json."""

_PUBLISHED_WIDTHS = (768, 1024)
_TERMS = "published under MIT, but trained on VIDAL-10M, which is under CC BY-NC 4.0, not for commercial use"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_SAME_TEXT_TOLERANCE = 1e-2
"""Two text projections whose weights all differ by less are the same one, perhaps in another precision: bf16 moves a
weight of 1 by 4e-3 at most."""


class LanguageBindEncoder(JointEncoder):
    """One text tower and a vision tower for each sense, all into one joint space.

    What is released gives unit vectors for text only; those of other senses come multiplied by the temperature.
    `encode` gives unit vectors for all, `official_output` what is released.

    Args:
        config: sizes of the towers.

    Example:
        >>> encoder = LanguageBindEncoder.from_official({"video": "LanguageBind_Video_FT"})
        >>> clip = encoder.preprocess("video", "dog.mp4")  # (3, 8, 224, 224)
        >>> encoder.encode("video", clip[None]).shape
        torch.Size([1, 768])
    """

    modalities: tuple[str, ...]

    def __init__(self, config: LanguageBindConfig) -> None:
        from bindlm.encoders.languagebind_tower import LanguageBindTower

        super().__init__()
        self.config = config
        self.dim = config.dim
        self.modalities = (*config.towers, "text")
        self.text_model = _text_model(config.text)
        self.text_projection = nn.Linear(config.text.hidden_size, config.dim, bias=False)
        self.towers = nn.ModuleDict(
            {sense: LanguageBindTower(tower, config.dim) for sense, tower in config.towers.items()}
        )

    @classmethod
    def from_official(
        cls, folders: _PathLike | Mapping[str, _PathLike], dtype: torch.dtype | None = None
    ) -> LanguageBindEncoder:
        """Load published folders, one for each sense; adapters are merged, the text tower is read once.

        Args:
            folders: one folder, or sense to folder. Each holds `config.json` and `model.safetensors` or
                `pytorch_model.bin`.
            dtype: of all weights; None keeps that of the files, which then are mapped, not read.

        Raises:
            CheckpointError: a file is missing or damaged, is made for another sense, does not hold exactly the weights
                its config states, or two folders do not share the text tower.
            ConfigError: no folder is given.
        """
        sources = _open_sources(folders)
        first = sources[0]
        for other in sources[1:]:
            _check_same_space(first, other)
        config = LanguageBindConfig(
            dim=first.dim, towers={source.sense: source.tower for source in sources}, text=first.text
        )
        with torch.device("meta"):
            encoder = cls(config)
        # Not in the files, and not to be left on the meta device.
        encoder.text_model.embeddings.position_ids = torch.arange(config.text.max_tokens)[None]
        shapes = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
        state: dict[str, Tensor] = {}
        for source in sources:
            own = f"towers.{source.sense}."
            expected = {name: shape for name, shape in shapes.items() if not name.startswith("towers.")}
            expected |= {name: shape for name, shape in shapes.items() if name.startswith(own)}
            wanted = [name for name in expected if source is first or name.startswith(own)]
            state |= take_official(source.mapped, source.names, expected, wanted, source.vision_config, dtype)
        encoder.load_state_dict(state, assign=True)
        if config.text.hidden_size in _PUBLISHED_WIDTHS:
            tell_licence("LanguageBind", _TERMS)
        return encoder.eval().requires_grad_(False)

    def embed(self, modality: str, values: Tensor) -> Tensor:
        """Embeddings `(B, D_joint)` before normalisation.

        Args:
            modality: one of `modalities`.
            values: image, depth, thermal: `(B, 3, H, W)`; video: `(B, 3, T, H, W)`; audio: `(B, 3, mel, frames)`;
                text: int64 `(B, T)`, T up to 77, each row with an end token.

        Raises:
            ConfigError: the encoder has no such modality, or the values have another shape.
        """
        self.check_modality(modality)
        if modality != "text":
            return self.towers[modality](values)
        longest = self.config.text.max_tokens
        if values.ndim != 2 or not 1 <= values.shape[1] <= longest or values.is_floating_point():
            raise ConfigError(
                f"LanguageBind's text tower takes token ids (B, T) with T up to {longest}, got {tuple(values.shape)} "
                f"of {values.dtype}; make them with the encoder's preprocess."
            )
        return self.text_projection(self.text_model(input_ids=values).pooler_output)

    def official_output(self, modality: str, values: Tensor, use_temp: bool = True) -> Tensor:
        """What the released wrapper gives: unit vectors, and except for text times `exp(logit_scale)` of the sense.

        Args:
            modality: one of `modalities`.
            values: as for `embed`.
            use_temp: False leaves the temperature out.

        Returns:
            `(B, D_joint)`.
        """
        unit = self.encode(modality, values)
        if modality == "text" or not use_temp:
            return unit
        return unit * self.towers.get_parameter(f"{modality}.logit_scale").exp()

    def preprocess(self, modality: str, source: Any, *, allow_url: bool = False) -> Tensor:
        """One medium to what `encode` takes a batch of.

        Everything is as released for inference, except where that is random: a clip is not mirrored (the released
        transform mirrors one in two), and of a sound the first start of each third is taken.

        Args:
            modality: one of `modalities`.
            source: as `bindlm.media` reads the modality; for text the text itself.
            allow_url: whether an http(s) address is fetched.

        Returns:
            image, depth, thermal: float32 `(3, 224, 224)`; video: `(3, 8, 224, 224)`; audio: `(3, mel, frames)`; text:
            int64 `(77,)`. Sizes are those of the config.

        Raises:
            MediaError: the medium cannot be used.
            ConfigError: the encoder has no such modality.
        """
        from bindlm.encoders import languagebind_media

        self.check_modality(modality)
        if modality == "text":
            return languagebind_media.text_values(source, self.config.text)
        return languagebind_media.sense_values(
            modality, source, self.config.towers[modality], antialias=self.config.antialias, allow_url=allow_url
        )


def build(**settings: Any) -> LanguageBindEncoder:
    """Fresh weights by the settings of `LanguageBindConfig`."""
    return LanguageBindEncoder(LanguageBindConfig(**settings))


def from_official(
    path: _PathLike | Mapping[str, _PathLike],
    *,
    modalities: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
) -> LanguageBindEncoder:
    """`LanguageBindEncoder.from_official`, offering only some of the modalities: the others are mapped, never read.

    Raises:
        CheckpointError: as there.
        ConfigError: the folders have no such modality.
    """
    encoder = LanguageBindEncoder.from_official(path, dtype)
    encoder.modalities = choose_modalities(encoder, modalities)
    return encoder


def _text_model(config: LanguageBindTextConfig) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_tokens,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            eos_token_id=config.eos_token_id,
        )
    )


class _Source:
    """One published folder, opened: its config is read, its weights are only mapped."""

    def __init__(self, folder: Path, sense: str | None) -> None:
        path = folder / "config.json"
        official = read_json(path)
        self.sense = sense_of(official, path)
        if sense not in (None, self.sense):
            raise CheckpointError(f"{path} is for {self.sense}, but was given for {sense!r}")
        self.dim, self.tower, self.text = parse_official_config(official, self.sense, path)
        self.vision_config: dict[str, Any] = official["vision_config"]
        self.mapped: MappedState = open_mapped(_weights_in(folder))
        self.names: OfficialNames = sort_names(self.mapped.path, self.mapped.shapes, self.sense)


def _open_sources(folders: _PathLike | Mapping[str, _PathLike]) -> list[_Source]:
    if isinstance(folders, Mapping):
        if not folders:
            raise ConfigError("from_official needs at least one folder, got none.")
        return [_Source(Path(folder), sense) for sense, folder in folders.items()]
    return [_Source(Path(folders), None)]


def _weights_in(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds no {' or '.join(_WEIGHT_FILES)}; get the folder again")


def _check_same_space(first: _Source, other: _Source) -> None:
    """Refuse two folders whose text towers differ: their embeddings could not be compared."""
    stored = [source.names.plain.get("text_projection.weight") for source in (first, other)]
    texts = [replace(source.text, eos_token_id=0) for source in (first, other)]  # 2 and 49407 are one rule
    is_alike = first.dim == other.dim and texts[0] == texts[1] and None not in stored
    if is_alike:
        weights = [
            source.mapped.take([str(name)])[str(name)].float()
            for source, name in zip((first, other), stored, strict=True)
        ]
        is_alike = weights[0].shape == weights[1].shape
        is_alike = is_alike and bool((weights[0] - weights[1]).abs().max() < _SAME_TEXT_TOLERANCE)
    if not is_alike:
        raise CheckpointError(
            f"{first.mapped.path} and {other.mapped.path} do not share one text tower, so their embeddings lie in two "
            "spaces; load them as two encoders"
        )
