"""LLaMA-Adapter, as released: V1's learned prompts, its chat form without any, and V2 with visual queries."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.checkpoints.adapter_layout import visual_query_state, zero_init_state
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
from bindlm.checkpoints.convert.llama import BaseLlama, LlamaSizes, linear_shapes
from bindlm.checkpoints.convert.settings import (
    LLAMA_TERMS,
    check_phase,
    encoder_settings,
    lora_settings,
    nucleus,
    special_ids,
    tuned_settings,
)

__all__ = [
    "convert_llama_adapter_v1",
    "convert_llama_adapter_v2",
    "llama_adapter_v1_shapes",
    "llama_adapter_v2_shapes",
]

_TERMS = f"LLaMA-Adapter: read the licence of the file you converted. {LLAMA_TERMS}"
_VISUAL = {"clip_dim": 768, "v_embed_dim": 768, "v_depth": 8, "v_num_heads": 16, "v_mlp_ratio": 4.0}
_PathLike = str | os.PathLike[str]


def convert_llama_adapter_v1(
    adapter: _PathLike | Sequence[_PathLike],
    llama: _PathLike,
    out: _PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    gate_activation: str = "tanh",
    progress: bool = True,
) -> Path:
    """A released LLaMA-Adapter V1, or the chat form of V2 (bias, scale and norm), to a folder for `bindlm.load`.

    Both read text only. The chat form's scales are multiplied into the weights: it is then a plain LLaMA with biases.

    Args:
        adapter: `.pth` or `.safetensors` with the published names; several files are joined, later ones winning.
        llama: the LLaMA it was trained on: a folder in Meta's or transformers' layout, or one file.
        out: folder to write.
        config: sizes that differ from the published ones: `llama` (Meta's params), `adapter` (`adapter_len`),
            `special_ids`.
        gate_activation: "tanh", as the release trains; "none" is its generation code, which leaves the tanh out.
        progress: whether to say on stderr what happens.

    Returns:
        `out`.

    Raises:
        CheckpointError: a file is missing, damaged or of another model, or the disk is full.
    """
    settings = config or {}
    paths, state, base = open_release(adapter, llama, settings)
    is_chat = any(name.endswith("_scale") for name in state)
    convert = _chat_parts if is_chat else _v1_parts
    settings = {**settings, "gate_activation": gate_activation}
    return write_folder(Path(out), base, convert(paths, state, base, settings), progress=progress)


def _v1_parts(paths: list[Path], state: dict[str, Tensor], base: BaseLlama, settings: Mapping[str, Any]) -> Parts:
    fit = Fit("LLaMA-Adapter V1", base)
    fit.check_width(state, "adapter_query.weight", axis=1)
    take_phase(state, prefix="")
    length = settings.get("adapter", {}).get("adapter_len", 10)
    num_rows = len(state["adapter_query.weight"])
    num_adapted = settings.get("adapter", {}).get("adapter_layer", num_rows // length)
    fit.check(paths[-1], state, llama_adapter_v1_shapes(base.sizes, length, num_adapted))
    entries = tuned_entries(base, {})
    entries |= made_entries("injection", zero_init_state(state, base.sizes.num_hidden_layers, num_adapted))
    injection = {
        "kind": "zero_init_attention",
        "num_layers": num_adapted,
        "num_tokens": length,
        "gate_activation": settings["gate_activation"],
        "needs_condition": False,
    }
    return _text_parts(paths, entries, injection, "LLaMA-Adapter V1", settings)


def _chat_parts(paths: list[Path], state: dict[str, Tensor], base: BaseLlama, settings: Mapping[str, Any]) -> Parts:
    fit = Fit("LLaMA-Adapter V2 chat", base)
    fit.check_width(state, "norm.weight", axis=0)
    fit.check(paths[-1], state, chat_shapes(base.sizes))
    entries = tuned_entries(base, state)
    entries |= made_entries("injection", {"gate": torch.zeros(base.sizes.num_hidden_layers)})
    parts = _text_parts(paths, entries, {"kind": "additive"}, "LLaMA-Adapter V2 chat", settings)
    parts.text_changes.update(attention_bias=True, mlp_bias=True)
    parts.generation.update(temperature=0.7, top_p=0.95)
    return parts


def _text_parts(
    paths: list[Path],
    entries: dict[str, Any],
    injection: dict[str, Any],
    release: str,
    settings: Mapping[str, Any],
) -> Parts:
    """What models without media have in common."""
    return Parts(
        entries=entries,
        settings={
            **encoder_settings(None, 0),
            "bridge": {"kind": "none"},
            "injection": injection,
            "notice": _TERMS,
        },
        origin={"release": release, "adapter": [path.name for path in paths]},
        special_ids=special_ids(settings),
        generation=nucleus(temperature=0.1, top_p=0.75, max_new_tokens=512),
        template="alpaca",
    )


def convert_llama_adapter_v2(
    adapter: _PathLike | Sequence[_PathLike],
    llama: _PathLike,
    out: _PathLike,
    config: Mapping[str, Any] | None = None,
    *,
    encoder: str | None = None,
    phase: str | None = None,
    progress: bool = True,
) -> Path:
    """A released multimodal LLaMA-Adapter V2 to a folder that `bindlm.load` opens.

    Of which type a file is (pretrain, BIAS or LORA-BIAS) is read from its tensors. Without `encoder` the model takes
    CLIP ViT-L/14's tokens, each after the last norm and the projection, as `joint_embedding` `(B, 257, 768)`; the
    published weights were trained on pictures whose red and blue were swapped, as the encoder then does it too.

    Args:
        adapter: `.pth` or `.safetensors` with the published names; several files are joined, later ones winning.
        llama: the LLaMA it was trained on: a folder in Meta's or transformers' layout, or one file.
        out: folder to write.
        config: sizes that differ from the published ones: `llama` (Meta's params), `visual` (`clip_dim`,
            `v_embed_dim`, `v_depth`, `v_num_heads`, `v_mlp_ratio`), `adapter` (`query_len`, `query_layer`,
            `lora_rank`), `special_ids`.
        encoder: CLIP ViT-L/14 in transformers' layout, kept by name: a folder or a hub id. None can be made up for by
            `bindlm.load(out, encoder=…)`.
        phase: "pretrain" or "finetune", if the adapter must be of that one.
        progress: whether to say on stderr what happens.

    Returns:
        `out`.

    Raises:
        CheckpointError: a file is missing, damaged or of another model or phase, or the disk is full.
    """
    settings = config or {}
    paths, state, base = open_release(adapter, llama, settings)
    fit = Fit("LLaMA-Adapter V2 multimodal", base)
    fit.check_width(state, "visual_proj.weight", axis=0)
    visual = {**_VISUAL, **settings.get("visual", {})}
    layers = base.sizes.num_hidden_layers
    prompts = {"query_len": 10, "query_layer": layers - 1, "lora_rank": 16, **settings.get("adapter", {})}
    found, has_lora = take_phase(state), any(".lora_" in name for name in state)
    check_phase(paths[-1], found, phase)
    is_finetuned = found == "finetune"
    fit.check(
        paths[-1],
        state,
        llama_adapter_v2_shapes(base.sizes, visual, prompts, is_finetuned=is_finetuned, has_lora=has_lora),
    )
    lora = lora_settings(prompts["lora_rank"]) if has_lora else None
    entries = tuned_entries(base, state, lora["target_modules"] if lora else ())
    entries |= made_entries("bridge", visual_query_state(state, visual["v_depth"]))
    entries |= made_entries("injection", zero_init_state(state, layers, prompts["query_layer"]))
    parts = Parts(
        entries=entries,
        settings={
            **encoder_settings(encoder, visual["clip_dim"], family="clip_tokens_bgr"),
            "bridge": {
                "kind": "visual_query",
                "input_dim": visual["clip_dim"],
                "output_dim": base.sizes.hidden_size,
                "embed_dim": visual["v_embed_dim"],
                "num_blocks": visual["v_depth"],
                "num_heads": visual["v_num_heads"],
                "num_queries": prompts["query_len"],
                "mlp_ratio": visual["v_mlp_ratio"],
            },
            "injection": {
                "kind": "zero_init_attention",
                "num_layers": prompts["query_layer"],
                "num_tokens": prompts["query_len"],
                "has_new_gate": has_lora,
            },
            "mixing": "sum",  # patches are no directions: nothing brings them to unit length
            "lora": lora,
            "lora_scope": "always",
            "tuned": tuned_settings() if is_finetuned else None,
            "notice": _TERMS,
        },
        origin={
            "release": "LLaMA-Adapter V2 multimodal",
            "phase": found,
            "adapter": [path.name for path in paths],
            "pictures": "CLIP ViT-L/14 at 224 pixels, blue first",
        },
        special_ids=special_ids(settings),
        generation=nucleus(temperature=0.1, top_p=0.75, max_new_tokens=256),
        template="alpaca",
    )
    return write_folder(Path(out), base, parts, progress=progress)


def llama_adapter_v1_shapes(sizes: LlamaSizes, num_tokens: int = 10, num_adapted: int = 30) -> Shapes:
    """Names and shapes of a V1 file: gates of all layers, prompts of the last ones."""
    shapes = gate_shapes(sizes, prefix="")
    return {**shapes, "adapter_query.weight": (num_tokens * num_adapted, sizes.hidden_size)}


def chat_shapes(sizes: LlamaSizes) -> Shapes:
    """Names and shapes of a file of the chat form: scale and bias of every linear layer, and all norms."""
    width = sizes.hidden_size
    keys = width // sizes.num_attention_heads * sizes.num_key_value_heads
    shapes: Shapes = {"norm.weight": (width,)}
    for layer in range(sizes.num_hidden_layers):
        start = f"layers.{layer}."
        shapes |= {f"{start}{norm}.weight": (width,) for norm in ("attention_norm", "ffn_norm")}
        for name, (rows, columns) in linear_shapes(width, sizes.intermediate_size, keys).items():
            shapes |= {f"{start}{name}_bias": (rows,), f"{start}{name}_scale": (columns,)}
    return shapes


def llama_adapter_v2_shapes(
    sizes: LlamaSizes,
    visual: Mapping[str, Any],
    prompts: Mapping[str, int],
    *,
    is_finetuned: bool = True,
    has_lora: bool = False,
) -> Shapes:
    """Names and shapes of a multimodal V2 file.

    Args:
        sizes: of its LLaMA.
        visual: `clip_dim`, `v_embed_dim`, `v_depth` and `v_mlp_ratio`.
        prompts: `query_len`, `query_layer` and `lora_rank`.
        is_finetuned: whether it has biases and norms.
        has_lora: whether it has LoRA, and with it the further gates.
    """
    width, inside = sizes.hidden_size, visual["v_embed_dim"]
    hidden = int(inside * visual["v_mlp_ratio"])
    layers: dict[str, tuple[int, ...]] = {
        "clip_proj": (inside, visual["clip_dim"]),
        "clip_proj_norm": (inside,),
        "visual_proj": (width, inside),
        "visual_proj_norm": (width,),
    }
    for block in range(visual["v_depth"]):
        start = f"visual_blocks.{block}."
        layers |= {f"{start}norm1": (inside,), f"{start}norm2": (inside,)}
        layers |= {f"{start}attn.qkv": (3 * inside, inside), f"{start}attn.proj": (inside, inside)}
        layers |= {f"{start}mlp.fc1": (hidden, inside), f"{start}mlp.fc2": (inside, hidden)}
    shapes: Shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes["visual_query.weight"] = (prompts["query_len"], inside)
    shapes["adapter_query.weight"] = (prompts["query_len"] * prompts["query_layer"], width)
    shapes |= gate_shapes(sizes, has_new_gate=has_lora)
    if is_finetuned:
        shapes |= shapes_of_tuning(sizes, lora_rank=prompts["lora_rank"] if has_lora else None)
    return shapes
