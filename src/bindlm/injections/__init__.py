"""Injections: how a condition changes what a transformers decoder computes."""

from bindlm.injections.additive import AdditiveInjection
from bindlm.injections.base import Injection, find_decoder_layers
from bindlm.injections.zero_init_attention import GateActivation, ZeroInitAttention, ZeroInitAttentionConfig

__all__ = [
    "AdditiveInjection",
    "GateActivation",
    "Injection",
    "ZeroInitAttention",
    "ZeroInitAttentionConfig",
    "find_decoder_layers",
]
