"""A LLaMA as it was published, in Meta's files or in those of transformers, read one tensor at a time."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.checkpoints.convert.streamed import Entry, plain_entry
from bindlm.checkpoints.llama_layout import convert_llama_tensors, to_transformers_name
from bindlm.checkpoints.mapped import open_mapped
from bindlm.checkpoints.state import check_shapes
from bindlm.errors import CheckpointError

__all__ = ["BaseLlama", "LlamaSizes", "open_llama", "text_config"]

_IGNORED = re.compile(r"(^|\.)(rope\.freqs|rotary_emb\.inv_freq)$")
"""Buffers that files carry along, and that every loader computes for itself."""
_HEAD_DIM = 128
"""Of every published LLaMA; used where no file says how many heads there are."""
_SPLIT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_SPLIT_COLUMNS = ("wo", "w2")
"""How Meta cuts a large model into files; embeddings along their columns, norms not at all."""
_NOT_OF_THE_MODEL = ("architectures", "_name_or_path", "torch_dtype", "dtype", "transformers_version", "auto_map")


@dataclass(frozen=True)
class LlamaSizes:
    """What an adapter has to fit."""

    hidden_size: int
    """Width, D_lm."""
    intermediate_size: int
    """Width of the feed-forward layers."""
    num_hidden_layers: int
    """Decoder layers."""
    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int
    """Key heads."""
    vocab_size: int
    """Rows of the embedding."""

    def meta_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the model under Meta's names."""
        width, inner = self.hidden_size, self.intermediate_size
        keys = width // self.num_attention_heads * self.num_key_value_heads
        shapes: dict[str, tuple[int, ...]] = {
            "tok_embeddings.weight": (self.vocab_size, width),
            "norm.weight": (width,),
            "output.weight": (self.vocab_size, width),
        }
        for layer in range(self.num_hidden_layers):
            prefix = f"layers.{layer}."
            shapes |= {f"{prefix}{name}.weight": shape for name, shape in linear_shapes(width, inner, keys).items()}
            shapes |= {f"{prefix}{name}.weight": (width,) for name in ("attention_norm", "ffn_norm")}
        return shapes


def linear_shapes(width: int, inner: int, keys: int) -> dict[str, tuple[int, int]]:
    """The seven linear layers of a LLaMA layer under Meta's names, `(out, in)`."""
    return {
        "attention.wq": (width, width),
        "attention.wk": (keys, width),
        "attention.wv": (keys, width),
        "attention.wo": (width, width),
        "feed_forward.w1": (inner, width),
        "feed_forward.w2": (width, inner),
        "feed_forward.w3": (inner, width),
    }


@dataclass(frozen=True)
class BaseLlama:
    """A language model, not read yet."""

    path: Path
    """Folder or file it is in."""
    sizes: LlamaSizes
    """Read from its tensors."""
    settings: dict[str, Any]
    """What the model's own configuration says, under transformers' names; empty where it has none."""
    entries: dict[str, Entry]
    """Tensors under transformers' names, in transformers' order of rotary rows."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its largest part."""
        return self.entries["model.embed_tokens.weight"].dtype


def open_llama(path: Path, sizes: Mapping[str, Any] | None = None) -> BaseLlama:
    """Open a LLaMA and see that all of it is there.

    Args:
        path: a folder in Meta's layout (`consolidated.*.pth`) or that of transformers (`*.safetensors`,
            `pytorch_model*.bin`), or one file in either naming.
        sizes: in place of what its own configuration says: `dim`, `n_heads`, `norm_eps`, … or transformers' names.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are not those of one LLaMA.
    """
    files = _weight_files(path)
    shards = [open_mapped(file).tensors() for file in files]
    names = {name for shard in shards for name in shard}
    is_meta = "tok_embeddings.weight" in names
    if not is_meta and "model.embed_tokens.weight" not in names:
        raise CheckpointError(
            f"{path} holds no LLaMA: expected tok_embeddings.weight (Meta's files) or model.embed_tokens.weight "
            f"(transformers'), got {_first(names)}. Give the language model's folder or file as llama."
        )
    settings = {**_own_settings(path if path.is_dir() else path.parent, is_folder=path.is_dir()), **_renamed(sizes)}
    parts = _meta_parts(shards) if is_meta else _joined(shards, path)
    parts = {name: tensors for name, tensors in parts.items() if not _IGNORED.search(name)}
    found = _sizes_of(path, {name: _whole_shape(name, tensors) for name, tensors in parts.items()}, settings, is_meta)
    entries = {}
    for name, tensors in parts.items():
        ours = to_transformers_name(name) if is_meta else name
        entries[str(ours)] = _meta_entry(name, tensors, found) if is_meta else plain_entry(tensors[0])
    return BaseLlama(path, found, settings, entries)


def text_config(base: BaseLlama, *, special_ids: Mapping[str, int | list[int]], **changes: Any) -> dict[str, Any]:
    """`BindLMConfig.text_config` of a base model."""
    sizes = base.sizes
    known: dict[str, Any] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    settings = {**known, **base.settings, **special_ids, **changes}
    for name in LlamaSizes.__dataclass_fields__:
        settings[name] = getattr(sizes, name)
    if settings.get("rope_parameters"):
        del settings["rope_theta"]
    elif not settings.get("rope_scaling"):  # else transformers makes one of both, as older files have them
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    return {**settings, "dtype": str(base.dtype).removeprefix("torch.")}


def _weight_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / index).is_file():
            try:
                named = json.loads((path / index).read_text(encoding="utf-8"))["weight_map"].values()
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{path / index} is damaged; get the language model again.") from error
            return [path / name for name in sorted(set(named))]
    for pattern in ("consolidated.*.pth", "model*.safetensors", "*.safetensors", "pytorch_model*.bin"):
        if files := sorted(path.glob(pattern)):
            return files
    raise CheckpointError(
        f"{path} holds no language model: expected consolidated.*.pth, *.safetensors or pytorch_model*.bin."
    )


def _own_settings(folder: Path, *, is_folder: bool) -> dict[str, Any]:
    """What params.json (Meta) or config.json (transformers) says; nothing for a lone file."""
    for name in ("config.json", "params.json"):
        if is_folder and (folder / name).is_file():
            try:
                settings = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise CheckpointError(f"{folder / name} is damaged; get the language model again.") from error
            if name == "config.json" and settings.get("model_type") != "llama":
                raise CheckpointError(
                    f"{folder} holds a model of type {settings.get('model_type')!r}; these adapters are for LLaMA."
                )
            return _renamed(settings)
    return {}


_OUR_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "ffn_hidden": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
}
_OF_META = ("multiple_of", "ffn_dim_multiplier", "max_batch_size", "rope_convention", "key_naming")


def _renamed(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings under transformers' names; a vocabulary of -1 is Meta's word for "ask the tokenizer"."""
    given = {_OUR_NAMES.get(name, name): value for name, value in (settings or {}).items()}
    return {
        name: value
        for name, value in given.items()
        if name not in (*_OF_META, *_NOT_OF_THE_MODEL) and not (name == "vocab_size" and value < 0)
    }


def _joined(shards: Sequence[Mapping[str, Tensor]], path: Path) -> dict[str, list[Tensor]]:
    """Files of transformers: each tensor is whole, in one of them."""
    parts: dict[str, list[Tensor]] = {}
    for shard in shards:
        for name, tensor in shard.items():
            if name in parts:
                raise CheckpointError(f"{path} holds {name} twice; keep one kind of weight file in the folder.")
            parts[name] = [tensor]
    return parts


def _meta_parts(shards: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Files of Meta: each holds a slice of every tensor."""
    names = list(shards[0])
    for shard in shards[1:]:
        if set(shard) != set(names):
            raise CheckpointError(
                f"The consolidated.*.pth files are not slices of one model: {_first(set(shard) ^ set(names))} is not "
                "in all of them. Get the language model again."
            )
    return {name: [shard[name] for shard in shards] for name in names}


def _axis(name: str, tensors: Sequence[Tensor]) -> int | None:
    """Along which axis slices are joined; None where all files hold the same."""
    if len(tensors) == 1 or tensors[0].ndim < 2:
        return None
    linear = name.removesuffix(".weight").rpartition(".")[2]
    return 0 if linear in _SPLIT_ROWS else 1  # wo, w2 and the embedding


def _whole_shape(name: str, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    axis = _axis(name, tensors)
    shape = list(tensors[0].shape)
    if axis is not None:
        shape[axis] = sum(tensor.shape[axis] for tensor in tensors)
    return tuple(shape)


def _meta_entry(name: str, tensors: Sequence[Tensor], sizes: LlamaSizes) -> Entry:
    def make() -> Tensor:
        axis = _axis(name, tensors)
        whole = tensors[0] if axis is None else torch.cat(list(tensors), dim=axis)
        heads = {"num_heads": sizes.num_attention_heads, "num_key_value_heads": sizes.num_key_value_heads}
        return next(converted for _, converted in convert_llama_tensors([(name, whole)], **heads))

    return Entry(_whole_shape(name, tensors), tensors[0].dtype, make, tuple(tensors))


def _sizes_of(
    path: Path, shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any], is_meta: bool
) -> LlamaSizes:
    """Sizes read from the tensors, once these are seen to be those of one whole LLaMA of the settings' sizes."""
    first = "layers.0.attention.wk.weight" if is_meta else "model.layers.0.self_attn.k_proj.weight"
    inner = "layers.0.feed_forward.w1.weight" if is_meta else "model.layers.0.mlp.gate_proj.weight"
    embedding = "tok_embeddings.weight" if is_meta else "model.embed_tokens.weight"
    if missing := [name for name in (first, inner) if name not in shapes]:
        raise CheckpointError(f"{path} is no whole LLaMA: {missing[0]} is missing. Get the language model again.")
    vocab, width = shapes[embedding]
    heads = settings.get("num_attention_heads") or max(1, width // _HEAD_DIM)
    if width % heads:
        raise CheckpointError(f"{path} is {width} wide, which {heads} heads cannot share. Are these its own settings?")
    layers = 1 + max(int(found[1]) for name in shapes if (found := re.search(r"layers\.(\d+)\.", name)))
    sizes = LlamaSizes(
        hidden_size=settings.get("hidden_size", width),
        intermediate_size=settings.get("intermediate_size", shapes[inner][0]),
        num_hidden_layers=settings.get("num_hidden_layers", layers),
        num_attention_heads=heads,
        num_key_value_heads=settings.get("num_key_value_heads") or max(1, shapes[first][0] // (width // heads)),
        vocab_size=settings.get("vocab_size", vocab),
    )
    expected = sizes.meta_shapes()
    if not is_meta:
        expected = {str(to_transformers_name(name)): shape for name, shape in expected.items()}
    if settings.get("tie_word_embeddings"):
        expected.pop("output.weight" if is_meta else "lm_head.weight", None)
    check_shapes(path, shapes, expected)
    return sizes


def _first(names: Any) -> str:
    return next(iter(sorted(names)), "nothing")
