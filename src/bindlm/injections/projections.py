"""A decoder layer's own keys and values of tokens that are no part of the text: without position, without LoRA."""

from typing import Any

from torch import Tensor, nn

from bindlm.errors import ConfigError

__all__ = ["find_attention", "in_full", "project_key", "project_value"]

_ATTENTION_NAMES = ("self_attn", "attention")
_FUSED_NAMES = ("query_key_value", "qkv_proj")
"""`query_key_value` holds query, key and value of one head after another (GPT-NeoX); `qkv_proj` all queries, then all
keys, then all values (Phi-3)."""


def find_attention(layer: nn.Module) -> Any:
    """The attention module of a transformers decoder layer.

    Raises:
        ConfigError: there is none whose keys and values can be found.
    """
    for name in _ATTENTION_NAMES:
        attention = getattr(layer, name, None)
        if not isinstance(attention, nn.Module) or not hasattr(attention, "config"):
            continue
        has_pair = hasattr(attention, "k_proj") and hasattr(attention, "v_proj")
        if has_pair or any(hasattr(attention, fused) for fused in _FUSED_NAMES):
            return attention
    raise ConfigError(
        f"{type(layer).__name__} has no attention that takes prompts: it needs {' or '.join(_ATTENTION_NAMES)} with "
        f"k_proj and v_proj, or {' or '.join(_FUSED_NAMES)}. Use the additive injection for this language model."
    )


def in_full(layer: nn.Module) -> Tensor:
    """A weight of a decoder layer in the dtype it computes in: quantised ones are kept in another."""
    weights = list(layer.parameters())
    return next((each for each in weights if each.is_floating_point() and each.element_size() > 1), weights[0])


def project_key(attention: Any, tokens: Tensor) -> Tensor:
    """Keys of `tokens` `(B, N, D_lm)` for each query head: `(B, H, N, D_head)`.

    Where the layer normalises its keys (Qwen3, Gemma3) these are normalised too: its queries are, and would meet keys
    of another length. No released adapter is of such a model.
    """
    return _split(attention, tokens, "k_proj", "k_norm", part=1)


def project_value(attention: Any, tokens: Tensor) -> Tensor:
    """Values of `tokens` `(B, N, D_lm)` for each query head: `(B, H, N, D_head)`."""
    return _split(attention, tokens, "v_proj", "v_norm", part=2)


def _split(attention: Any, tokens: Tensor, projection: str, norm_name: str, part: int) -> Tensor:
    width = getattr(attention, "head_dim", None) or attention.head_size
    if hasattr(attention, projection):
        flat = _bare(getattr(attention, projection))(tokens)  # (B, N, H_kv * D_head)
    else:
        flat = _fused_part(attention, tokens, width, part)
    norm = getattr(attention, norm_name, None)
    if norm is not None and norm.weight.numel() != width:  # OLMo 2 normalises all heads as one vector
        flat, norm = norm(flat), None
    heads = flat.unflatten(-1, (-1, width))  # (B, N, H_kv, D_head)
    if norm is not None:
        heads = norm(heads)
    return heads.transpose(1, 2).repeat_interleave(num_heads(attention) // heads.shape[2], dim=1)


def _fused_part(attention: Any, tokens: Tensor, width: int, part: int) -> Tensor:
    if hasattr(attention, "query_key_value"):
        heads = _bare(attention.query_key_value)(tokens).unflatten(-1, (-1, 3 * width))
        return heads[..., part * width : (part + 1) * width].flatten(-2)
    flat = _bare(attention.qkv_proj)(tokens)
    of_queries = num_heads(attention) * width
    of_keys = (flat.shape[-1] - of_queries) // 2
    begin = of_queries + (part - 1) * of_keys
    return flat[..., begin : begin + of_keys]


def num_heads(attention: Any) -> int:
    """Query heads of an attention module."""
    return int(attention.config.num_attention_heads)


def _bare(linear: Any) -> Any:
    """The linear layer itself: adapters of PEFT wrap it, and none of them is for prompts in the released models."""
    while hasattr(linear, "base_layer"):
        linear = linear.base_layer
    return linear
