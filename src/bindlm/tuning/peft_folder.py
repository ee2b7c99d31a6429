"""LoRA adapters in PEFT's own files: `adapter_config.json` beside `adapter_model.safetensors`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from bindlm.checkpoints.mapped import open_mapped
from bindlm.checkpoints.state import check_shapes, save_state_atomic, write_text_atomic
from bindlm.errors import CheckpointError, ConfigError

__all__ = ["check_lora_state", "read_lora_settings", "read_lora_state", "stored_name", "write_lora"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_TAKEN = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
)
"""What makes plain LoRA on linear layers; all of it can be merged, and switched row by row."""
_SAYS_NOTHING = (
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "megatron_core",
)
"""Where an adapter comes from and what made it."""
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Starts that leave the layer's own weight alone; the others took a part out of it, which no file gives back."""


def read_lora_settings(folder: Path) -> dict[str, Any]:
    """Fields of `peft.LoraConfig` that differ from its defaults, as `BindLMConfig.lora` keeps them.

    Raises:
        CheckpointError: there is no adapter in the folder, or one that is more than plain LoRA.
    """
    try:
        given = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        kind = given["peft_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder} has no readable {CONFIG_FILE}: it is no adapter that PEFT saved.") from error
    if kind != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of type {kind}; bindlm takes LORA.")
    usual = LoraConfig().to_dict()
    changed = {
        name: value
        for name, value in given.items()
        if value != usual.get(name) and value not in (None, {}, []) and name not in _SAYS_NOTHING
    }
    start = changed.pop("init_lora_weights", True)
    foreign = [f"{name}={changed[name]!r}" for name in changed if name not in _TAKEN]
    foreign += [f"init_lora_weights={start!r}"] if start not in _HARMLESS_STARTS else []
    if foreign:
        raise CheckpointError(
            f"{folder} is more than plain LoRA ({', '.join(foreign)}): merge it into its language model with PEFT "
            "(merge_and_unload) and bind that."
        )
    return {"r": usual["r"], "lora_alpha": usual["lora_alpha"], **changed}


def read_lora_state(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The adapter's file and its tensors by their names in it.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), folder / WEIGHTS_FILES[0])
    return path, open_mapped(path).tensors()


def check_lora_state(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """See that a file holds what a model's adapters are, no more and no less.

    Args:
        path: the file.
        state: its tensors by their names in it.
        expected: the adapters by their names in the language model.

    Raises:
        CheckpointError: it does not.
    """
    shapes = {stored_name(name): tuple(tensor.shape) for name, tensor in expected.items()}
    check_shapes(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, shapes)


def stored_name(name: str) -> str:
    """`model.….lora_A.default.weight` -> `base_model.model.model.….lora_A.weight`."""
    return _PREFIX + re.sub(r"\.default(?=\.weight$|$)", "", name)


def write_lora(
    folder: Path, settings: Mapping[str, Any], adapters: Mapping[str, Tensor], base_model: str | None
) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(language_model, folder)` opens.

    Args:
        folder: made where absent.
        settings: fields of `peft.LoraConfig`.
        adapters: by their names in the language model.
        base_model: where that comes from, if the adapter is to say so.

    Raises:
        CheckpointError: the disk is full or not writable.
        ConfigError: PEFT does not take these settings.
    """
    try:
        config = LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"LoRA settings {dict(settings)} are none of peft.LoraConfig's.") from error
    content = {**config.to_dict(), "base_model_name_or_path": base_model}
    content = {name: sorted(value) if isinstance(value, set) else value for name, value in content.items()}
    save_state_atomic(
        folder / WEIGHTS_FILES[0],
        {stored_name(name): tensor for name, tensor in adapters.items()},
        metadata={"format": "pt"},
    )
    write_text_atomic(folder / CONFIG_FILE, json.dumps(content, indent=2, sort_keys=True) + "\n")
