"""The folder that `bindlm.load` opens: one file of weights, and what says how its parts go together."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindlm.checkpoints.convert.llama import BaseLlama, text_config
from bindlm.checkpoints.convert.streamed import Entry, write_streamed
from bindlm.checkpoints.convert.tokenizer import copy_tokenizer, find_tokenizer
from bindlm.checkpoints.notice import human_size, say
from bindlm.checkpoints.state import atomic_folder
from bindlm.errors import CheckpointError

__all__ = ["Parts", "write_folder"]

_HEADROOM = 1 << 20
"""Bytes that must be left on the disk beside the weights."""


@dataclass(frozen=True)
class Parts:
    """All that is known of a converted model before it is written."""

    entries: dict[str, Entry]
    """Tensors by their name in a bound model."""
    settings: dict[str, Any]
    """Fields of `BindLMConfig` other than `text_config`."""
    origin: dict[str, Any]
    """What was converted, for people."""
    special_ids: dict[str, int]
    """`bos_token_id`, `eos_token_id` and `pad_token_id`."""
    generation: dict[str, Any]
    """The release's own way to generate."""
    template: str
    """Name of the chat template, see `bindlm.processing.CHAT_TEMPLATES`."""
    placeholder: dict[str, int] | None = None
    """Where a medium stands in the text: `id` and `num_tokens`; None where it has no place there."""
    text_changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the language model's configuration that conversion changes."""


def write_folder(out: Path, base: BaseLlama, parts: Parts, *, progress: bool = True) -> Path:
    """Write a bound model's folder, whole or not at all, and return it.

    Raises:
        CheckpointError: the folder holds something else, or the disk is full or not writable; nothing is left then.
    """
    _check_out(out, base)
    tokenizer = find_tokenizer(base.path)
    total = sum(entry.num_bytes for entry in parts.entries.values())
    _check_room(out, total)
    say(f"writing {human_size(total)} to {out}", progress=progress)
    with atomic_folder(out) as folder:
        has_tokenizer = copy_tokenizer(tokenizer, folder, vocab_size=base.sizes.vocab_size, progress=progress)
        _write_json(folder / "config.json", _config(base, parts))
        _write_json(folder / "generation_config.json", {**parts.special_ids, **parts.generation})
        _write_json(folder / "processor_config.json", _processor(parts, has_tokenizer=has_tokenizer))
        write_streamed(folder / "model.safetensors", parts.entries, progress=progress)
    return out


def _config(base: BaseLlama, parts: Parts) -> dict[str, Any]:
    return {
        "architectures": ["BindLMForConditionalGeneration"],
        "model_type": "bindlm",
        "text_config": text_config(base, special_ids=parts.special_ids, **parts.text_changes),
        "language_model": None,
        **parts.settings,
        "origin": parts.origin,
    }


def _processor(parts: Parts, *, has_tokenizer: bool) -> dict[str, Any]:
    return {
        "processor_class": "BindLMProcessor",
        "conditioned_chat_template": parts.template,
        "text_chat_template": parts.template,
        "is_piecewise": True,
        "placeholder": parts.placeholder,
        "image_processor": None,
        "may_lack_tokenizer": not has_tokenizer,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_out(out: Path, base: BaseLlama) -> None:
    """Refuse to write over what this did not write."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        kind = json.loads((out / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "bindlm" or out.resolve() in (base.path.resolve(), base.path.resolve().parent):
        raise CheckpointError(f"{out} exists and is no model of bindlm; give a new folder for the converted model.")


def _check_room(out: Path, total: int) -> None:
    """Say that the disk is too small before hours are spent, not after."""
    parent = Path(os.path.abspath(out)).parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < total + _HEADROOM:
        raise CheckpointError(
            f"{parent} has {human_size(free)} left, and the converted model takes {human_size(total)}: free some "
            "space, or choose a folder on another disk."
        )
