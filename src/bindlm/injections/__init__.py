"""Injections: how a condition changes the hidden states of a transformers decoder."""

from bindlm.injections.additive import AdditiveInjection, find_decoder_layers

__all__ = ["AdditiveInjection", "find_decoder_layers"]
