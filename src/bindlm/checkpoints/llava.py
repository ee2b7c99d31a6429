"""LLaVA in transformers' format, taken apart: language model, vision tower, projector, and how it prepares pictures.

transformers reads the files, older names and all; what is kept here is which of its parts goes where.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["LlavaParts", "chat_template_in", "is_llava", "load_llava_parts", "picture_settings"]

_BICUBIC = 3
"""Pillow's number of the filter, as transformers writes it."""


@dataclass(frozen=True)
class LlavaParts:
    """What a LLaVA is made of."""

    config: Any
    """Its `LlavaConfig`."""
    language_model: Any
    """The decoder with its head, a causal language model of its own kind."""
    vision_tower: Any
    """In fp32."""
    projector: "dict[str, Tensor]"
    """State of an `MLPBridge`."""


def is_llava(folder: Path) -> bool:
    """Whether a folder's config.json says so."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") == "llava"
    except (OSError, ValueError, AttributeError):
        return False


def load_llava_parts(
    folder: Path, *, dtype: "torch.dtype | None" = None, attn_implementation: str | None = None
) -> LlavaParts:
    """Load a folder as transformers saves it.

    Args:
        folder: config.json and safetensors.
        dtype: of language model and projector; None is what is stored.
        attn_implementation: as of transformers.

    Raises:
        CheckpointError: the weights are missing, damaged or incomplete, or the projector is none of LLaVA's.
    """
    from transformers import LlavaForConditionalGeneration

    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with quiet_transformers():
            model, report = LlavaForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype or "auto",
                local_files_only=True,
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
                **attention,
            )
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be loaded as a LLaVA: its safetensors are missing or damaged; get it again"
        ) from error
    if missing := sorted(report["missing_keys"]):  # transformers fills these with random numbers
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of its model, such as {missing[0]}; get it all")
    if model.config.projector_hidden_act != "gelu":
        raise CheckpointError(
            f"{folder} has a projector with {model.config.projector_hidden_act!r}, LLaVA's is 'gelu'; only that is "
            "known here."
        )
    return LlavaParts(model.config, _language_model(model), model.model.vision_tower.float(), _projector(model))


def _language_model(llava: Any) -> Any:
    """The decoder and its head as a causal language model, without a copy of either."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # a shell: all of its weights are replaced
        shell = AutoModelForCausalLM.from_config(llava.config.text_config)
    setattr(shell, shell.base_model_prefix, llava.model.language_model)
    shell.set_output_embeddings(llava.lm_head)
    shell.generation_config = llava.generation_config
    return shell.eval()


def _projector(llava: Any) -> "dict[str, Tensor]":
    ours = {"linear_1": "wide", "linear_2": "narrow"}
    state = llava.model.multi_modal_projector.state_dict()
    return {f"{ours[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in state.items()}


def picture_settings(folder: Path) -> dict[str, Any]:
    """Fields of `BindLMImageProcessor` that make a folder's pictures: shorter side resized, middle cut out.

    Raises:
        CheckpointError: its preprocessor_config.json is missing, or wants something else.
    """
    try:
        given = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size, crop = given["size"], given["crop_size"]
        side = crop["height"] if isinstance(crop, dict) else crop
        shorter = size["shortest_edge"] if isinstance(size, dict) else size
        settings = {"size": side, "mean": given["image_mean"], "std": given["image_std"], "views": ["center"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder} has no readable preprocessor_config.json; get it again.") from error
    plain = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True}
    wanted = {**plain, "resample": _BICUBIC, "rescale_factor": 1 / 255}
    other = {name: given[name] for name, value in wanted.items() if name in given and given[name] != value}
    if shorter != side or other:
        raise CheckpointError(f"{folder} prepares its pictures in a way of its own: {other or size}.")
    return settings


def chat_template_in(folder: Path) -> str | None:
    """The template that a processor of transformers brings, in any of its files; None where it brings none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(found, str):
            return found
    return None
