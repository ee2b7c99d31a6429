"""ImageBind-LLM, as released: bind network, a prompt row and gates in every layer, and what finetuning adds."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bindlm.checkpoints.adapter_layout import bind_network_state, zero_init_state
from bindlm.checkpoints.convert.adapter import (
    Fit,
    Shapes,
    gate_shapes,
    made_entries,
    open_release,
    shapes_of_tuning,
    take_phase,
    tuned_entries,
)
from bindlm.checkpoints.convert.folder import Parts, write_folder
from bindlm.checkpoints.convert.llama import LlamaSizes
from bindlm.checkpoints.convert.settings import (
    LLAMA_TERMS,
    check_phase,
    encoder_settings,
    lora_settings,
    nucleus,
    special_ids,
    tuned_settings,
)

__all__ = ["convert_imagebind_llm", "imagebind_llm_shapes"]

_NUM_BLOCKS = 3
_TERMS = (
    "ImageBind-LLM: the adapter is for research and not for commercial use, as ImageBind's own weights are "
    f"(CC BY-NC-SA 4.0). {LLAMA_TERMS}"
)
_PathLike = str | os.PathLike[str]


def convert_imagebind_llm(
    adapter: _PathLike | Sequence[_PathLike],
    llama: _PathLike,
    out: _PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    encoder: str | None = None,
    phase: str | None = None,
    progress: bool = True,
) -> Path:
    """A released ImageBind-LLM to a folder that `bindlm.load` opens.

    The phase (pretrain or finetune) and the form of the bind network (released, or the older one with LayerNorm) are
    read from the adapter's tensors. Nothing is written before all names and shapes are seen to fit.

    Args:
        adapter: `.pth` or `.safetensors` with the published names; several files are joined, later ones winning.
        llama: the LLaMA it was trained on: a folder in Meta's or transformers' layout, or one file.
        out: folder to write.
        config: sizes that differ from the published ones: `llama` (Meta's params), `bind` (`image_dim`, `hidden`),
            `prefix` (`query_layer`, `query_len`), `lora_rank`, `special_ids`.
        encoder: reference of the ImageBind weights, kept in the folder by name; None makes a model that is given
            joint embeddings.
        phase: "pretrain" or "finetune", if the adapter must be of that one.
        progress: whether to say on stderr what happens.

    Returns:
        `out`.

    Raises:
        CheckpointError: a file is missing, damaged or of another model or phase, or the disk is full.
    """
    settings = config or {}
    paths, state, base = open_release(adapter, llama, settings)
    fit = Fit("ImageBind-LLM", base)
    fit.check_width(state, "prefix_query.weight", axis=1)
    bind = {"image_dim": 1024, "hidden": 4 * base.sizes.hidden_size, **settings.get("bind", {})}
    prompts = {"query_layer": base.sizes.num_hidden_layers, "query_len": 1, **settings.get("prefix", {})}
    rank, is_legacy = settings.get("lora_rank", 16), "image_bind_norm_1.bias" in state
    found = take_phase(state)
    check_phase(paths[-1], found, phase)
    expected = imagebind_llm_shapes(
        base.sizes, bind, prompts, lora_rank=rank, is_finetuned=found == "finetune", is_legacy=is_legacy
    )
    fit.check(paths[-1], state, expected)
    is_finetuned = found == "finetune"
    lora = lora_settings(rank) if is_finetuned else None
    layers = base.sizes.num_hidden_layers
    entries = tuned_entries(base, state, lora["target_modules"] if lora else ())
    entries |= made_entries("bridge", bind_network_state(state, _NUM_BLOCKS))
    entries |= made_entries("injection", zero_init_state(state, layers, prompts["query_layer"]))
    ids = special_ids(settings)
    form = {"norm": "layer_norm", "norm_eps": 1e-5, "block_bias": True} if is_legacy else {}
    parts = Parts(
        entries=entries,
        settings={
            **encoder_settings(encoder, bind["image_dim"]),
            "bridge": {
                "kind": "bind_network",
                "input_dim": bind["image_dim"],
                "output_dim": base.sizes.hidden_size,
                "hidden_dim": bind["hidden"],
                "num_blocks": _NUM_BLOCKS,
                "input_bias": True,
                **form,
            },
            "injection": {
                "kind": "zero_init_attention",
                "num_layers": prompts["query_layer"],
                "num_tokens": prompts["query_len"],
            },
            "lora": lora,
            "lora_scope": "always",
            "tuned": tuned_settings() if is_finetuned else None,
            "notice": _TERMS,
        },
        origin={"release": "ImageBind-LLM", "phase": found, "adapter": [path.name for path in paths]},
        special_ids=ids,
        generation=nucleus(temperature=0.1, top_p=0.75, max_new_tokens=256),
        template="alpaca",
    )
    return write_folder(Path(out), base, parts, progress=progress)


def imagebind_llm_shapes(
    sizes: LlamaSizes,
    bind: Mapping[str, int],
    prompts: Mapping[str, int],
    *,
    lora_rank: int = 16,
    is_finetuned: bool = True,
    is_legacy: bool = False,
) -> Shapes:
    """Names and shapes of an adapter file.

    Args:
        sizes: of its LLaMA.
        bind: `image_dim` and `hidden`.
        prompts: `query_layer` and `query_len`.
        lora_rank: of the finetune phase.
        is_finetuned: whether it is of that phase.
        is_legacy: whether the bind network is of the older form, with LayerNorm and biases.
    """
    width, hidden = sizes.hidden_size, bind["hidden"]
    shapes: Shapes = {"image_bind_proj.weight": (width, bind["image_dim"]), "image_bind_proj.bias": (width,)}
    for block in range(1, _NUM_BLOCKS + 1):
        parts: Shapes = {"norm": (width,), "f1": (hidden, width), "f2": (width, hidden), "f3": (hidden, width)}
        for part, shape in parts.items():
            shapes[f"image_bind_{part}_{block}.weight"] = shape
            if is_legacy:
                shapes[f"image_bind_{part}_{block}.bias"] = shape[:1]
    shapes["prefix_query.weight"] = (prompts["query_layer"] * prompts["query_len"], width)
    shapes |= gate_shapes(sizes)
    return shapes | shapes_of_tuning(sizes, lora_rank=lora_rank) if is_finetuned else shapes
