"""The table of encoder families, and how published weights find theirs."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bindlm.checkpoints.mapped import open_mapped
from bindlm.encoders import bound, clip, clip_tokens, imagebind, languagebind, patches, pe_av, point_bind
from bindlm.encoders.absent import AbsentEncoder
from bindlm.encoders.base import JointEncoder
from bindlm.encoders.hosted import read_json
from bindlm.encoders.mini import MiniEncoder, MiniEncoderConfig
from bindlm.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class EncoderFamily:
    """One row of the table."""

    build: Callable[..., JointEncoder]
    """Settings by name to an encoder with fresh weights."""
    load: Callable[..., JointEncoder] | None = None
    """`(path, *, modalities, dtype)` to an encoder with published weights; None where they come with a bound model."""
    key_prefixes: tuple[str, ...] = ()
    """A weight file with a name that starts so is this family's."""
    model_types: tuple[str, ...] = ()
    """A folder whose config.json says so is this family's."""


def _mini(**settings: Any) -> JointEncoder:
    return MiniEncoder(MiniEncoderConfig(**settings))


def _imagebind(modalities: Sequence[str] | None = None, **settings: Any) -> JointEncoder:
    return imagebind.ImageBindEncoder(settings, modalities)


def _point_bind(modalities: Sequence[str] | None = None, **settings: Any) -> JointEncoder:
    others = tuple(modality for modality in modalities or () if modality != "point")
    partner = imagebind.ImageBindEncoder(modalities=others) if others else None
    return point_bind.PointBindEncoder(settings, partner)


ENCODER_FAMILIES: dict[str, EncoderFamily] = {
    "mini": EncoderFamily(_mini),
    # before ImageBind, whose towers a Point-Bind file may hold too
    "point_bind": EncoderFamily(_point_bind, point_bind.load, key_prefixes=("point_trunk.", "point_encoder.")),
    "imagebind": EncoderFamily(_imagebind, imagebind.from_official, key_prefixes=("modality_trunks.",)),
    "languagebind": EncoderFamily(
        languagebind.build,
        languagebind.from_official,
        model_types=languagebind.MODEL_TYPES,
    ),
    "clip": EncoderFamily(clip.build, clip.from_folder, model_types=clip.CLIP_FAMILIES),
    # a folder of CLIP is told to be of "clip": these two are asked for by name
    clip_tokens.CLIP_TOKENS: EncoderFamily(clip_tokens.build, clip_tokens.load),
    clip_tokens.CLIP_TOKENS_BGR: EncoderFamily(clip_tokens.build_bgr, clip_tokens.load_bgr),
    "tower": EncoderFamily(bound.build, bound.load, model_types=(bound.MODEL_TYPE,)),
    "none": EncoderFamily(AbsentEncoder),
    "patches": EncoderFamily(patches.build),
    "pe_av": EncoderFamily(pe_av.build, pe_av.from_folder, model_types=tuple(pe_av.PE_AV_FAMILIES)),
}
"""Family name to its row; where a file fits two, the first counts. A new family is one row and one file."""


def build_encoder(family: str, **settings: Any) -> JointEncoder:
    """An encoder of `family` with fresh weights.

    Raises:
        ConfigError: unknown family or setting.
    """
    try:
        return _row(family).build(**settings)
    except TypeError as error:
        raise ConfigError(f"Encoder family {family!r} does not take these settings: {error}.") from None


def load_encoder(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    modalities: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> JointEncoder:
    """An encoder with published weights.

    Args:
        path: a weight file with official keys, or a folder with a `config.json`.
        family: a row of `ENCODER_FAMILIES`; None tells it by the keys of the file, or by `model_type`.
        modalities: senses to load; None loads all that are there.
        dtype: of the weights; None keeps the file's.

    Raises:
        CheckpointError: the weights are missing, damaged, of no known family, or do not fit it.
        ConfigError: unknown family or sense.

    Example:
        >>> load_encoder("imagebind_huge.pth", modalities=["audio"]).dim
        1024
    """
    path = Path(path)
    row = _row(family) if family is not None else _row_of(path)
    if row.load is None:
        raise ConfigError(f"The weights of {family!r} come with a bound model; use bindlm.load_embedder.")
    return row.load(path, modalities=modalities, dtype=dtype)


def _row(family: str) -> EncoderFamily:
    if family not in ENCODER_FAMILIES:
        raise ConfigError(f"Unknown encoder family {family!r}; known: {', '.join(sorted(ENCODER_FAMILIES))}.")
    return ENCODER_FAMILIES[family]


def _row_of(path: Path) -> EncoderFamily:
    """The row that a file or folder belongs to."""
    if path.is_dir():
        model_type = model_type_of(path)
        for row in ENCODER_FAMILIES.values():
            if model_type in row.model_types:
                return row
        known = sorted(kind for row in ENCODER_FAMILIES.values() for kind in row.model_types)
        raise CheckpointError(
            f"{path} holds a model of type {model_type!r}; the encoders known are {', '.join(known)}."
        )
    names = open_mapped(path).shapes
    for row in ENCODER_FAMILIES.values():
        if any(name.startswith(row.key_prefixes) for name in names if row.key_prefixes):
            return row
    raise CheckpointError(
        f"{path} belongs to no known encoder family ({', '.join(sorted(ENCODER_FAMILIES))}): its first tensor is "
        f"{next(iter(names), None)!r}. Give the file as published."
    )


def model_type_of(folder: Path) -> str | None:
    """`model_type` in a folder's config.json.

    Raises:
        CheckpointError: there is no readable config.json.
    """
    kind = read_json(folder / "config.json").get("model_type")
    return kind if isinstance(kind, str) else None
