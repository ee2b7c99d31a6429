"""Decoder layers through torch.compile, with the injection and the adapters inside."""

from typing import Any

from torch import nn

from bindlm.injections import find_decoder_layers

__all__ = ["compile_layers"]


def compile_layers(language_model: nn.Module, **options: Any) -> int:
    """Have each decoder layer of a language model compiled when it is first run.

    Layer by layer, not as a whole: the layers share their code, so that one compilation serves all of them, however
    many there are, and what surrounds them (masks, adapters that are switched) stays plain Python. In place; names of
    parameters and saved files stay as they are.

    Compiled again, up to torch's limit of 8 times, is what differs in kind: with gradients or without, the first
    length and all others, with a condition or without. Adapters on for some rows of a batch and off for others are
    such a difference for each pattern of rows, so give batches that are all one or the other.

    Args:
        language_model: of a bound model; the injection is attached to it.
        **options: of `torch.compile`, such as `mode` and `dynamic`.

    Returns:
        How many layers.

    Raises:
        ConfigError: the language model has no decoder layers that can be found.
    """
    layers = find_decoder_layers(language_model)
    for layer in layers:
        layer.compile(**options)
    return len(layers)
