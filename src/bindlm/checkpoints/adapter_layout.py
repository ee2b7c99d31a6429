"""The released adapters' own tensors under bindlm's names: bridges, prompts and gates; the rest is `llama_layout`'s.

Each function takes a whole adapter and returns the state of one part. Where a tensor is missing, the error names it.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bindlm.errors import CheckpointError

__all__ = ["bind_network_state", "linear_state", "visual_query_state", "zero_init_state"]

_BRANCHES = {"w1": "f1", "w2": "f3", "w3": "f2"}
"""The paper's w1, w2, w3 of Eq. (1) are the release's f1, f3, f2."""


def bind_network_state(adapter: Mapping[str, Tensor], num_blocks: int = 3) -> dict[str, Tensor]:
    """State of a `BindNetwork` from an ImageBind-LLM adapter, of either form: with block biases if it has them."""
    names = {"input.weight": "image_bind_proj.weight", "input.bias": "image_bind_proj.bias"}
    kinds = ("weight", "bias") if "image_bind_norm_1.bias" in adapter else ("weight",)
    for block in range(num_blocks):
        for kind in kinds:
            names[f"blocks.{block}.norm.{kind}"] = f"image_bind_norm_{block + 1}.{kind}"
            for ours, theirs in _BRANCHES.items():
                names[f"blocks.{block}.{ours}.{kind}"] = f"image_bind_{theirs}_{block + 1}.{kind}"
    return _renamed(adapter, names)


def linear_state(adapter: Mapping[str, Tensor], name: str = "llama_proj") -> dict[str, Tensor]:
    """State of a `LinearBridge` from a PandaGPT delta, or under another name from any file."""
    return _renamed(adapter, {"linear.weight": f"{name}.weight", "linear.bias": f"{name}.bias"})


def visual_query_state(adapter: Mapping[str, Tensor], num_blocks: int = 8) -> dict[str, Tensor]:
    """State of a `VisualQueryBridge` from a LLaMA-Adapter V2 multimodal adapter."""
    names = {"query": "visual_query.weight"}
    parts = {
        "input": "clip_proj",
        "input_norm": "clip_proj_norm",
        "output": "visual_proj",
        "output_norm": "visual_proj_norm",
    }
    for block in range(num_blocks):
        for ours, theirs in {
            "norm1": "norm1",
            "qkv": "attn.qkv",
            "projection": "attn.proj",
            "norm2": "norm2",
            "wide": "mlp.fc1",
            "narrow": "mlp.fc2",
        }.items():
            parts[f"blocks.{block}.{ours}"] = f"visual_blocks.{block}.{theirs}"
    for ours, theirs in parts.items():
        names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return _renamed(adapter, names)


def zero_init_state(adapter: Mapping[str, Tensor], num_layers: int, num_adapted: int) -> dict[str, Tensor]:
    """State of a `ZeroInitAttention` from an adapter of ImageBind-LLM, LLaMA-Adapter V1 or V2.

    Files hold a gate for every layer; those below the adapted ones were never read, and are left out.

    Args:
        num_layers: of the language model.
        num_adapted: its last layers that have a prompt.

    Raises:
        CheckpointError: a tensor is missing, or the prompts cannot be dealt out to so many layers.
    """
    rows = next((adapter[name] for name in ("prefix_query.weight", "adapter_query.weight") if name in adapter), None)
    if rows is None or len(rows) % num_adapted:
        given = "no prompts" if rows is None else f"{len(rows)} prompt rows"
        raise CheckpointError(f"The adapter has {given}, expected a multiple of {num_adapted}, one block a layer.")
    prefix = next((kind for kind in ("llama.", "llma.") if any(name.startswith(kind) for name in adapter)), "")
    layers = range(num_layers - num_adapted, num_layers)

    def stacked(name: str) -> Tensor:
        return torch.stack([_found(adapter, f"{prefix}layers.{layer}.attention.{name}").flatten() for layer in layers])

    state = {"adapter_prompt": rows.unflatten(0, (num_adapted, -1)), "gate": stacked("gate")}
    if any(re.search(r"attention\.new_gate$", name) for name in adapter):
        state["new_gate"] = stacked("new_gate").flatten()
    return state


def _renamed(adapter: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {ours: _found(adapter, theirs) for ours, theirs in names.items()}


def _found(adapter: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in adapter:
        raise CheckpointError(f"The adapter has no tensor {name}; it has {_some(adapter)}. Is it of another model?")
    return adapter[name]


def _some(names: Iterable[str], count: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
