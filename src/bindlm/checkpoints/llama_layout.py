"""LLaMA's tensors under Meta's names and under those of transformers, and the two orders of rotary rows.

Meta rotates pairs of neighbouring rows of a head, `(2i, 2i + 1)`; transformers rotates row `i` with row `i + D / 2`.
The same model in the other layout has the rows of `wq` and `wk` permuted within each head: of the weights, of a bias,
and of the second LoRA matrix, whose rows are the layer's outputs. Keys of an adapter's prompt need nothing of their
own, as they come out of the permuted `wk`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from bindlm.errors import CheckpointError

__all__ = ["convert_llama_tensors", "to_half_split", "to_interleaved", "to_meta_name", "to_transformers_name"]

_WHOLE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LINEARS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_SUFFIXES = {".weight": ".weight", ".bias": ".bias", "_bias": ".bias", "_scale": ".scale"}
"""`_bias` and `_scale` are how the bias-scale-norm files of LLaMA-Adapter V2 name theirs."""
_LORA = {"l1": "lora_A.default.weight", "l2": "lora_B.default.weight"}
"""PEFT's names, inside a model that it was injected into."""

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_LORA_NAME = re.compile(r"(attention|feed_forward)\.lora_(w[qkvo123])_(l[12])\.weight")


def to_transformers_name(name: str) -> str | None:
    """What a tensor of Meta's LLaMA, or of an adapter's biases, norms and LoRA on it, is called in transformers.

    Args:
        name: such as "layers.0.attention.wq.weight" or "layers.3.feed_forward.lora_w2_l1.weight".

    Returns:
        Such as "model.layers.0.self_attn.q_proj.weight"; None for what is no part of the language model (gates, the
        buffer `rope.freqs`).
    """
    if name in _WHOLE:
        return _WHOLE[name]
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    layer, rest = match.groups()
    inner = _inner_name(rest)
    return None if inner is None else f"model.layers.{layer}.{inner}"


def _inner_name(rest: str) -> str | None:
    lora = _LORA_NAME.fullmatch(rest)
    if lora is not None:
        block, linear, part = lora.groups()
        ours = _LINEARS.get(f"{block}.{linear}")
        return None if ours is None else f"{ours}.{_LORA[part]}"
    for theirs, ours in _LINEARS.items():
        for suffix, our_suffix in _SUFFIXES.items():
            if rest == theirs + suffix:
                return ours + our_suffix
    norms = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in _NORMS.items()}
    return norms.get(rest)


def to_meta_name(name: str) -> str | None:
    """The other way round: Meta's name of a tensor of a transformers LLaMA with or without LoRA; None for others."""
    whole = {ours: theirs for theirs, ours in _WHOLE.items()}
    if name in whole:
        return whole[name]
    match = _LAYER.fullmatch(name.removeprefix("model."))
    if match is None:
        return None
    layer, rest = match.groups()
    for theirs, ours in _LINEARS.items():
        for part, lora in _LORA.items():
            if rest == f"{ours}.{lora}":
                block, linear = theirs.split(".")
                return f"layers.{layer}.{block}.lora_{linear}_{part}.weight"
        if rest.removeprefix(f"{ours}.") in ("weight", "bias"):
            return f"layers.{layer}.{theirs}.{rest.removeprefix(f'{ours}.')}"
    for theirs, ours in _NORMS.items():
        if rest == f"{ours}.weight":
            return f"layers.{layer}.{theirs}.weight"
    return None


def to_half_split(rows: Tensor, num_heads: int) -> Tensor:
    """Rows `(num_heads * D_head, …)` of a query or key projection from Meta's order to that of transformers."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def to_interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Rows `(num_heads * D_head, …)` of a query or key projection from the order of transformers to Meta's."""
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def convert_llama_tensors(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    num_heads: int,
    num_key_value_heads: int | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Tensors under Meta's names -> the same under transformers' names and in its order of rotary rows, one by one.

    What is no part of the language model (gates, `rope.freqs`) is left out. A leading "llama.", or "llma." of older
    files, is read over.

    Args:
        tensors: by name, or pairs, which are taken as they come and never held together.
        num_heads: query heads.
        num_key_value_heads: key heads, if fewer.

    Raises:
        CheckpointError: a query or key tensor cannot be cut into so many heads.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    for name, tensor in pairs:
        meta = re.sub(r"^(llama|llma)\.", "", name)
        ours = to_transformers_name(meta)
        if ours is None:
            continue
        heads = _rotated_heads(ours, num_heads, num_key_value_heads or num_heads)
        if heads is not None:
            if tensor.shape[0] % (2 * heads):
                raise CheckpointError(
                    f"{name} has {tensor.shape[0]} rows, which are not {heads} heads of an even width. Is the number "
                    "of heads that of this LLaMA?"
                )
            tensor = to_half_split(tensor, heads)
        yield ours, tensor


def _rotated_heads(name: str, num_heads: int, num_key_value_heads: int) -> int | None:
    """Heads whose rows a tensor of transformers holds in rotary order; None where there is no such order."""
    is_output_side = name.endswith((".weight", ".bias")) and not name.endswith(_LORA["l1"])
    if not is_output_side:
        return None
    return num_heads if ".q_proj." in name else num_key_value_heads if ".k_proj." in name else None
