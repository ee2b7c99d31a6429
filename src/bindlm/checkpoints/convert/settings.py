"""What the converters write into configurations alike."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bindlm.errors import CheckpointError

__all__ = [
    "LLAMA_TERMS",
    "as_paths",
    "check_phase",
    "encoder_settings",
    "lora_settings",
    "nucleus",
    "special_ids",
    "tuned_settings",
]

LLAMA_TERMS = "The language model stands under the licence it came with."

_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
_BIASED = ["q_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]


def as_paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """One path or several, as a list."""
    listed = [given] if isinstance(given, str | os.PathLike) else list(given)
    return [Path(path) for path in listed]


def check_phase(path: Path, found: str, wanted: str | None) -> None:
    """See that an adapter is of the phase that was asked for.

    Raises:
        CheckpointError: it is not.
    """
    if wanted is not None and wanted != found:
        raise CheckpointError(
            f"{path} is of the phase {found}, not {wanted}: give the other file, or leave phase out."
        )


def encoder_settings(reference: str | None, dim: int, family: str | None = None) -> dict[str, Any]:
    """Fields of `BindLMConfig`: an encoder by reference, its family told by its weights if not by name; or none."""
    if reference is None:
        stands_for = {} if family is None else {"stands_for": family}
        return {"encoder": {"family": "none", "dim": dim, **stands_for}, "encoder_weights": {}}
    return {"encoder": {"family": family}, "encoder_weights": reference}


def lora_settings(rank: int) -> dict[str, Any]:
    """LoRA on all seven linear layers, which the releases do not scale: alpha is the rank."""
    return {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "target_modules": list(_LINEARS)}


def tuned_settings() -> dict[str, Any]:
    """`BindLMConfig.tuned` of the finetune phase."""
    return {"norms": True, "biases": list(_BIASED)}


def special_ids(config: Mapping[str, Any]) -> dict[str, int]:
    """LLaMA's special tokens, or those of a configuration that names others."""
    given = config.get("special_ids", {})
    pad = given.get("pad", given.get("pad_in_batch", 0))
    return {"bos_token_id": given.get("bos", 1), "eos_token_id": given.get("eos", 2), "pad_token_id": pad}


def nucleus(*, temperature: float, top_p: float, max_new_tokens: int) -> dict[str, Any]:
    """Sampling as the releases do it; transformers would cut at 50 tokens beside the nucleus, they do not."""
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "max_new_tokens": max_new_tokens,
    }
