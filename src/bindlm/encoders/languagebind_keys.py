"""Names in LanguageBind's published weight files, and the merge of their LoRA.

A published file holds one sense and the text tower, named as CLIP of transformers 4.30 names them. Files of the LoRA
releases were saved from inside PEFT of mid-2023: layers lie under `vision_model.encoder.base_model.model.layers`, the
frozen matrix is `q_proj.weight` (`q_proj.base_layer.weight` since PEFT 0.6) and its adapters are
`q_proj.lora_A.default.weight` and `q_proj.lora_B.default.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bindlm.checkpoints.state import check_shapes
from bindlm.errors import CheckpointError

if TYPE_CHECKING:
    from bindlm.checkpoints.mapped import MappedState

_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.[^.]+\.weight")
_EXACT = ".logit_scale"
"""Kept as stored: in bf16 the temperature is off by up to 0.8 %."""
_BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Counted up anew by every model; older files store them."""


@dataclass(frozen=True)
class LoraPair:
    """The two halves of one adapter, by their names in the file."""

    down: str
    """A, `(r, in)`."""
    up: str
    """B, `(out, r)`."""


@dataclass(frozen=True)
class OfficialNames:
    """What a published file holds, by the names of our module."""

    plain: Mapping[str, str]
    """Our name to the name in the file."""
    lora: Mapping[str, LoraPair]
    """Our name of a weight to its adapter."""


def our_name(name: str, sense: str) -> str:
    """Our name of a tensor that a published file of `sense` calls `name`."""
    name = name.replace(".base_model.model.", ".", 1).replace(".base_layer.", ".", 1)
    is_text = name.startswith(("text_model.", "text_projection."))
    return name if is_text else f"towers.{sense}.{name}"


def sort_names(path: object, names: Iterable[str], sense: str) -> OfficialNames:
    """Tell weights from adapters.

    Raises:
        CheckpointError: half an adapter, or two names for one weight.
    """
    plain: dict[str, str] = {}
    halves: dict[str, dict[str, str]] = {}
    for name in names:
        if name in _BUFFERS:
            continue
        if match := _LORA.fullmatch(name):
            sides = halves.setdefault(our_name(match["module"], sense) + ".weight", {})
            known = sides.setdefault(match["side"], name)
        else:
            known = plain.setdefault(our_name(name, sense), name)
        if known != name:
            raise CheckpointError(f"{path} holds {known} and {name}, which are the same weight; get the file again")
    for target, sides in halves.items():
        if len(sides) != 2 or target not in plain:
            raise CheckpointError(f"{path} holds {next(iter(sides.values()))} without its other half or its weight")
    return OfficialNames(plain, {target: LoraPair(sides["A"], sides["B"]) for target, sides in halves.items()})


def lora_scale(path: object, vision_config: Mapping[str, Any], rank: int) -> float:
    """`alpha / r` of adapters whose A has `rank` rows.

    Raises:
        CheckpointError: the config states another rank, or an impossible alpha.
    """
    stated, alpha = vision_config.get("lora_r", rank), vision_config.get("lora_alpha", 16)
    if stated != rank or rank < 1:
        raise CheckpointError(f"{path} holds adapters of rank {rank}, but its config.json states lora_r {stated!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not alpha > 0:
        raise CheckpointError(f"{path} has lora_alpha {alpha!r} in its config.json; expected a number above 0")
    return alpha / rank


def take_official(
    mapped: MappedState,
    names: OfficialNames,
    expected: Mapping[str, Sequence[int]],
    wanted: Iterable[str],
    vision_config: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Tensors by our names, adapters merged: `W + (alpha / r) B A`, computed in fp32.

    Args:
        mapped: the published file.
        names: its names, as `sort_names` gives them.
        expected: our names and shapes of all that the file must hold, no more and no less.
        wanted: which of them to read.
        vision_config: of the file's config.json, for alpha and r.
        dtype: of the result, but for the temperature; None for the file's own.

    Raises:
        CheckpointError: the file does not hold what was expected.
    """
    check_shapes(mapped.path, {ours: mapped.shapes[theirs] for ours, theirs in names.plain.items()}, expected)
    scales = {
        target: _checked_scale(mapped, pair, expected[target], vision_config) for target, pair in names.lora.items()
    }
    wanted = list(wanted)
    exact = [name for name in wanted if name.endswith(_EXACT)]
    plain = [name for name in wanted if name not in scales and name not in exact]
    taken = mapped.take([names.plain[name] for name in plain], dtype)
    taken |= mapped.take([names.plain[name] for name in exact])
    state = {name: taken[names.plain[name]] for name in [*plain, *exact]}
    for name in (name for name in wanted if name in scales):
        pair, stored = names.lora[name], names.plain[name]
        parts = mapped.take([stored, pair.down, pair.up])
        delta = parts[pair.up].float() @ parts[pair.down].float()
        merged = parts[stored].float() + scales[name] * delta
        state[name] = merged.to(dtype or parts[stored].dtype)
    return state


def _checked_scale(
    mapped: MappedState, pair: LoraPair, shape: Sequence[int], vision_config: Mapping[str, Any]
) -> float:
    down, up = mapped.shapes[pair.down], mapped.shapes[pair.up]
    rank = down[0] if down else 0
    if len(shape) != 2 or down != (rank, shape[1]) or up != (shape[0], rank):
        raise CheckpointError(
            f"{mapped.path} has {pair.down} {down} and {pair.up} {up}, which do not fit a weight {tuple(shape)}"
        )
    return lora_scale(mapped.path, vision_config, rank)
