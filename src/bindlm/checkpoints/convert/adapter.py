"""A published adapter: opened, its names brought into one form, its tensors compared with what they must be."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bindlm.checkpoints.convert.llama import BaseLlama, LlamaSizes, linear_shapes, open_llama
from bindlm.checkpoints.convert.settings import as_paths
from bindlm.checkpoints.convert.streamed import Entry, plain_entry
from bindlm.checkpoints.llama_layout import convert_llama_tensors, to_transformers_name
from bindlm.checkpoints.mapped import open_mapped
from bindlm.checkpoints.state import check_shapes
from bindlm.errors import CheckpointError

__all__ = [
    "Fit",
    "Shapes",
    "gate_shapes",
    "made_entries",
    "open_release",
    "scaled_entry",
    "shapes_of_tuning",
    "take_phase",
    "tuned_entries",
]

Shapes = dict[str, tuple[int, ...]]
_PathLike = str | os.PathLike[str]

BIASED = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
"""Linear layers that have a bias in the finetuned files of ImageBind-LLM and LLaMA-Adapter V2."""
_OF_TUNING = re.compile(r"bias|gate|lora|norm")
"""What a published file keeps of a LLaMA: names with one of these words in them."""
_OF_LLAMA = re.compile(r"(llama\.)?(layers\.|norm\.|output\.|tok_embeddings\.|rope\.)")
_NOT_OF_THE_ADAPTER = ("image_bind.", "clip.", "prefix_projector_norm", "clip_model.")
"""Frozen encoders, in files of a training run, and tensors that no code reads any more."""


def open_release(
    adapter: _PathLike | Sequence[_PathLike], llama: _PathLike, settings: Mapping[str, Any]
) -> tuple[list[Path], dict[str, Tensor], BaseLlama]:
    """What every conversion begins with: an adapter's paths, its mapped tensors by their published names, its LLaMA.

    A training run's own checkpoint holds more (the whole LLaMA, the encoder): that is left out, as it was when the
    published files were made of such checkpoints.

    Args:
        adapter: a file, or several, of which a later one replaces tensors of an earlier one.
        llama: see `open_llama`.
        settings: the LLaMA's sizes in `llama`, where they differ from what its own configuration says.

    Raises:
        CheckpointError: a file is missing, damaged, or holds more than tensors.
    """
    paths = as_paths(adapter)
    state: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in _tensors_in(path).items():
            name = re.sub(r"^llma\.", "llama.", name)  # as the oldest files have it
            if not _is_left_out(name):
                state[name] = tensor
    return paths, state, open_llama(Path(llama), settings.get("llama"))


def _tensors_in(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return open_mapped(path).tensors()
    try:
        return open_mapped(path).tensors()
    except CheckpointError:
        return open_mapped(path, entry="model").tensors()  # most releases keep it under this name


def _is_left_out(name: str) -> bool:
    if name.startswith(_NOT_OF_THE_ADAPTER):
        return True
    return bool(_OF_LLAMA.match(name)) and not _OF_TUNING.search(name) and not name.endswith(("_scale", "_bias"))


def take_phase(adapter: dict[str, Tensor], prefix: str = "llama.") -> str:
    """ "finetune" where there are biases or LoRA on the LLaMA, else "pretrain".

    A training run's file of the pretrain phase holds the frozen norms of its LLaMA too: these are taken out.
    """
    of_llama = [name for name in adapter if name.startswith(prefix)]
    if any(".lora_" in name or name.endswith(".bias") for name in of_llama):
        return "finetune"
    for name in of_llama:
        if name.endswith("norm.weight"):
            del adapter[name]
    return "pretrain"


def shapes_of_tuning(sizes: LlamaSizes, *, lora_rank: int | None, prefix: str = "llama.") -> Shapes:
    """Norms, biases and, with a rank, LoRA of the finetune phase, as they lie on a LLaMA under Meta's names."""
    width = sizes.hidden_size
    keys = width // sizes.num_attention_heads * sizes.num_key_value_heads
    shapes: Shapes = {f"{prefix}norm.weight": (width,)}
    for layer in range(sizes.num_hidden_layers):
        start = f"{prefix}layers.{layer}."
        shapes |= {f"{start}{norm}.weight": (width,) for norm in ("attention_norm", "ffn_norm")}
        for name, (rows, columns) in linear_shapes(width, sizes.intermediate_size, keys).items():
            if name in BIASED:
                shapes[f"{start}{name}.bias"] = (rows,)
            if lora_rank is not None:
                block, linear = name.split(".")
                shapes[f"{start}{block}.lora_{linear}_l1.weight"] = (lora_rank, columns)
                shapes[f"{start}{block}.lora_{linear}_l2.weight"] = (rows, lora_rank)
    return shapes


def gate_shapes(sizes: LlamaSizes, *, prefix: str = "llama.", has_new_gate: bool = False) -> Shapes:
    """Gates of all layers, those that were never read included."""
    layers = [f"{prefix}layers.{layer}.attention." for layer in range(sizes.num_hidden_layers)]
    shapes: Shapes = {f"{layer}gate": (1, sizes.num_attention_heads, 1, 1) for layer in layers}
    if has_new_gate:
        shapes |= {f"{layer}new_gate": (1, 1, 1, 1) for layer in layers}
    return shapes


@dataclass(frozen=True)
class Fit:
    """What is compared before anything is written."""

    what: str
    """Name of the release, for messages."""
    base: BaseLlama
    """The language model given."""

    def check_width(self, adapter: Mapping[str, Tensor], name: str, axis: int) -> None:
        """See that an adapter is as wide as its language model: the likeliest mistake, so it is named plainly.

        Raises:
            CheckpointError: it has no such tensor, or another width.
        """
        if name not in adapter:
            raise CheckpointError(
                f"This is no adapter of {self.what}: it has no {name}, but {_some(adapter)}. Give the adapter's file "
                "first and the language model's second."
            )
        width = adapter[name].shape[axis]
        if width != self.base.sizes.hidden_size:
            raise CheckpointError(
                f"The adapter was trained on a language model of width {width}, but {self.base.path} is "
                f"{self.base.sizes.hidden_size} wide. Give the LLaMA that the adapter was made for."
            )

    def check(self, path: Path, adapter: Mapping[str, Tensor], expected: Shapes) -> None:
        """See that an adapter has exactly these tensors.

        Raises:
            CheckpointError: one is missing, unknown, or of another shape.
        """
        check_shapes(path, {name: tuple(tensor.shape) for name, tensor in adapter.items()}, expected)


def scaled_entry(weight: Entry, scale: Tensor) -> Entry:
    """`W (x * s)` as a plain layer: each column of the weight times the scale of its input."""

    def make() -> Tensor:
        return (weight.make().float() * scale.float()).to(weight.dtype)

    return Entry(weight.shape, weight.dtype, make, (*weight.sources, scale))


def tuned_entries(base: BaseLlama, adapter: Mapping[str, Tensor], wrapped: Sequence[str] = ()) -> dict[str, Entry]:
    """The language model under an adapter's norms, biases and LoRA, by the names of a bound model.

    Args:
        base: as it was published.
        adapter: under Meta's names; what is no part of a language model is read over.
        wrapped: linear layers that have LoRA, under transformers' names, such as "q_proj".
    """
    entries = dict(base.entries)
    for name, tensor in adapter.items():
        ours = to_transformers_name(re.sub(r"^llama\.", "", name))
        if ours is None:
            continue
        if ours.endswith(".scale"):
            weight = ours.removesuffix("scale") + "weight"
            entries[weight] = scaled_entry(entries[weight], tensor)
        else:
            entries[ours] = _adapter_entry(name, tensor, base.sizes)
    return {f"language_model.{_under_lora(name, wrapped)}": entry for name, entry in entries.items()}


def _adapter_entry(name: str, tensor: Tensor, sizes: LlamaSizes) -> Entry:
    def make() -> Tensor:
        heads = {"num_heads": sizes.num_attention_heads, "num_key_value_heads": sizes.num_key_value_heads}
        return next(converted for _, converted in convert_llama_tensors([(name, tensor)], **heads))

    return Entry(tuple(tensor.shape), tensor.dtype, make, (tensor,))


def _under_lora(name: str, wrapped: Sequence[str]) -> str:
    """`….q_proj.weight` -> `….q_proj.base_layer.weight` where LoRA wraps the layer."""
    owner, _, kind = name.rpartition(".")
    return f"{owner}.base_layer.{kind}" if owner.rpartition(".")[2] in wrapped else name


def made_entries(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Entry]:
    """A part's state, small or mapped, as entries."""
    return {f"{prefix}.{name}": plain_entry(tensor) for name, tensor in state.items()}


def _some(names: Mapping[str, Tensor], count: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
