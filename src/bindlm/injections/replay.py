"""Gradient checkpointing of a layer that is given a prompt by keyword.

transformers checkpoints `layer.forward` with all keywords bound to it. The reentrant mode sees positional arguments
only: a keyword tensor that needs gradients gets wrong ones, or none, and nothing says so.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bindlm.injections.attention_interface import AdapterPrompt

__all__ = ["carry_gradients", "release_gradients"]

_FUNCTION = "_gradient_checkpointing_func"


class _Carrier:
    """A checkpointing function that hands the prompt's tensors over as positional arguments."""

    def __init__(self, checkpointing: Callable[..., Any]) -> None:
        self.checkpointing = checkpointing

    def __call__(self, function: Any, *args: Any) -> Any:
        prompt: AdapterPrompt | None = function.keywords.get("adapter_prompt")
        if prompt is None:
            return self.checkpointing(function, *args)

        def replayed(key: Tensor | None, value: Tensor, *args: Any) -> Any:
            given = AdapterPrompt(key, value)
            output = function(*args, adapter_prompt=given)
            prompt.was_read = given.was_read
            return output

        return self.checkpointing(replayed, prompt.key, prompt.value, *args)


def carry_gradients(layer: Any) -> None:
    """Make the checkpointing of a layer, where it is on, safe for a prompt. Does nothing the second time."""
    if not (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return
    checkpointing = getattr(layer, _FUNCTION)
    if not isinstance(checkpointing, _Carrier):
        setattr(layer, _FUNCTION, _Carrier(checkpointing))


def release_gradients(layer: nn.Module) -> None:
    """Undo `carry_gradients`."""
    checkpointing = getattr(layer, _FUNCTION, None)
    if isinstance(checkpointing, _Carrier):
        setattr(layer, _FUNCTION, checkpointing.checkpointing)
