"""PandaGPT, as released: one linear layer from ImageBind to one token in the prompt, and LoRA on the attention."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bindlm.checkpoints.adapter_layout import linear_state
from bindlm.checkpoints.convert.adapter import Fit, Shapes, made_entries, open_release, tuned_entries
from bindlm.checkpoints.convert.folder import Parts, write_folder
from bindlm.checkpoints.convert.llama import LlamaSizes
from bindlm.checkpoints.convert.settings import LLAMA_TERMS, encoder_settings, special_ids
from bindlm.checkpoints.convert.streamed import plain_entry

__all__ = ["convert_pandagpt", "pandagpt_shapes"]

_PEFT = "llama_model.base_model.model."
"""In front of the names of a delta's LoRA."""
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
_PLACEHOLDER_ID = 0
"""LLaMA's token for what it does not know, which its tokenizer never gives: it falls back to bytes."""
_STOP_ID = 2277
"""LLaMA's token of `##`, which begins the mark after an answer, `###`."""
_TERMS = (
    "PandaGPT: the delta is for research and not for commercial use (CC BY-NC-SA 4.0), as ImageBind's weights are. "
    f"{LLAMA_TERMS}"
)
_PathLike = str | os.PathLike[str]


def convert_pandagpt(
    adapter: _PathLike | Sequence[_PathLike],
    llama: _PathLike,
    out: _PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    encoder: str | None = None,
    progress: bool = True,
) -> Path:
    """A released PandaGPT to a folder that `bindlm.load` opens.

    The model takes embeddings at the length ImageBind is published with (sound 20 times a picture's), and the place of
    a medium in the text is one placeholder, `model.injection.placeholder_id`.

    Args:
        adapter: the delta, `.pt` or `.safetensors` with the published names.
        llama: its Vicuna: a folder in transformers' or Meta's layout, or one file.
        out: folder to write.
        config: sizes that differ from the published ones: `llama`, `lora` (`r`, `alpha`, `targets`), `image_dim`,
            `special_ids`.
        encoder: reference of the ImageBind weights, kept in the folder by name; None makes a model that is given
            joint embeddings.
        progress: whether to say on stderr what happens.

    Returns:
        `out`.

    Raises:
        CheckpointError: a file is missing, damaged or of another model, or the disk is full.
    """
    settings = config or {}
    paths, state, base = open_release(adapter, llama, settings)
    fit = Fit("PandaGPT", base)
    fit.check_width(state, "llama_proj.weight", axis=0)
    lora = {"r": 32, "alpha": 32, "targets": list(_TARGETS), **settings.get("lora", {})}
    image_dim = settings.get("image_dim", 1024)
    expected = pandagpt_shapes(base.sizes, image_dim, lora_rank=lora["r"], targets=lora["targets"])
    fit.check(paths[-1], state, expected)
    entries = tuned_entries(base, {}, lora["targets"])
    entries |= _lora_entries(state)
    entries |= made_entries("bridge", linear_state(state))
    ids = special_ids({"special_ids": {"pad": 2, **settings.get("special_ids", {})}})
    stops = [ids["eos_token_id"], _STOP_ID] if base.sizes.vocab_size > _STOP_ID else ids["eos_token_id"]
    parts = Parts(
        entries=entries,
        settings={
            **encoder_settings(encoder, image_dim),
            "bridge": {"kind": "linear", "input_dim": image_dim, "output_dim": base.sizes.hidden_size},
            "injection": {"kind": "prefix", "placeholder_id": _PLACEHOLDER_ID, "num_tokens": 1},
            "mixing": "sum",
            "lora": {
                "r": lora["r"],
                "lora_alpha": lora["alpha"],
                "lora_dropout": 0.1,
                "target_modules": list(lora["targets"]),
            },
            "lora_scope": "always",
            "notice": _TERMS,
        },
        origin={"release": "PandaGPT", "adapter": [path.name for path in paths]},
        special_ids=ids,
        generation={
            "do_sample": True,
            "temperature": 1.0,
            "top_p": 0.01,
            "top_k": 0,
            "max_new_tokens": 256,
            "eos_token_id": stops,
        },
        template="pandagpt",
        placeholder={"id": _PLACEHOLDER_ID, "num_tokens": 1},
    )
    return write_folder(Path(out), base, parts, progress=progress)


def _lora_entries(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        f"language_model.{name.removeprefix(_PEFT)}": plain_entry(tensor)
        for name, tensor in state.items()
        if name.startswith(_PEFT)
    }


def pandagpt_shapes(
    sizes: LlamaSizes, image_dim: int = 1024, *, lora_rank: int = 32, targets: Sequence[str] = _TARGETS
) -> Shapes:
    """Names and shapes of a delta."""
    width = sizes.hidden_size
    keys = width // sizes.num_attention_heads * sizes.num_key_value_heads
    rows = {"q_proj": width, "k_proj": keys, "v_proj": keys, "o_proj": width}
    shapes: Shapes = {"llama_proj.weight": (width, image_dim), "llama_proj.bias": (width,)}
    for layer in range(sizes.num_hidden_layers):
        for target in targets:
            start = f"{_PEFT}model.layers.{layer}.self_attn.{target}."
            shapes[f"{start}lora_A.default.weight"] = (lora_rank, width)
            shapes[f"{start}lora_B.default.weight"] = (rows[target], lora_rank)
    return shapes
