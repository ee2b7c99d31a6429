"""Injections: how a condition changes what a transformers decoder computes."""

from bindlm.injections.additive import AdditiveInjection
from bindlm.injections.base import Injection, find_decoder_layers
from bindlm.injections.prefix import PrefixConfig, PrefixInjection, expand_placeholders, stack_media
from bindlm.injections.registry import INJECTIONS, build_injection
from bindlm.injections.zero_init_attention import GateActivation, ZeroInitAttention, ZeroInitAttentionConfig

__all__ = [
    "INJECTIONS",
    "AdditiveInjection",
    "GateActivation",
    "Injection",
    "PrefixConfig",
    "PrefixInjection",
    "ZeroInitAttention",
    "ZeroInitAttentionConfig",
    "build_injection",
    "expand_placeholders",
    "find_decoder_layers",
    "stack_media",
]
