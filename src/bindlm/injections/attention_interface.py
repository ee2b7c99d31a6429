"""A second attention, over an adapter's prompt, beside that over the text; through transformers' own interface.

Every decoder of transformers v5 hands its rotated queries and all keywords it does not know to an attention function
that it looks up by the name in its configuration. `route_attention` shows one attention module a view of its
configuration with our name in it. Ours runs whatever function the model's configuration names at that moment, and adds
what the queries read from the prompt that came with the call.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bindlm.errors import ConfigError

__all__ = ["AdapterPrompt", "release_attention", "route_attention"]

_NAME = "bindlm_prompted"
_READS_NO_CONFIG = ("eager", "sdpa", "flex_attention")
"""Functions that never look at the module's configuration; flash attention reads its own name from there."""


@dataclass(eq=False)
class AdapterPrompt:
    """What the queries of one layer may read in one call, next to the text."""

    key: Tensor | None
    """`(B, H, N, D_head)`, or `(1, …)` for all rows; None where there is one token, and so nothing to choose."""
    value: Tensor
    """As the key, the gate already in it. Without a key `(B, H, 1, D_head)`, or `(B, H, T, D_head)`: one a token."""
    was_read: bool = False
    """Set by the attention; where it stays false, a layer swallowed the prompt."""

    def on(self, device: torch.device) -> "AdapterPrompt":
        """Itself, or a copy on another device."""
        if self.value.device == device:
            return self
        return AdapterPrompt(None if self.key is None else self.key.to(device), self.value.to(device))

    def read(self, query: Tensor, scaling: float | None) -> Tensor:
        """Queries `(B, H, T, D_head)` -> what is added to the heads' outputs, `(B, T, H, D_head)` or `(B, 1, …)`."""
        self.was_read = True
        if self.key is None:
            return self.value.transpose(1, 2)
        rows = len(query)
        key = self.key.to(query.dtype).expand(rows, -1, -1, -1)
        value = self.value.to(query.dtype).expand(rows, -1, -1, -1)
        return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)  # (B, T, H, D_head)


class _View:
    """An object as it is, but for some attributes."""

    def __init__(self, original: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, original=original)

    def __getattr__(self, name: str) -> Any:
        if name == "original" or name.startswith("__"):  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.original, name)


def route_attention(attention: Any) -> None:
    """Let an attention module take the keyword `adapter_prompt`; without it, it computes what it always did.

    Raises:
        ConfigError: the module is not of the kind that looks its attention function up.
    """
    eager = _eager_of(attention)
    if eager is None:
        raise ConfigError(
            f"{type(attention).__name__} does not go through transformers' attention interface, so prompts cannot be "
            "given to it. Use the additive injection for this language model."
        )
    attention.config = _View(attention.config, _attn_implementation=_NAME, eager=eager)


def release_attention(attention: Any) -> None:
    """Undo `route_attention`."""
    if isinstance(attention.config, _View):
        attention.config = attention.config.original


def _eager_of(attention: nn.Module) -> Callable[..., Any] | None:
    """The plain attention function of a modelling file, which the interface does not know by name."""
    for kind in type(attention).__mro__:
        module = sys.modules.get(kind.__module__)
        if hasattr(module, "eager_attention_forward"):
            return getattr(module, "eager_attention_forward")  # noqa: B009 - a name of that file, not of its type
    return None


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    adapter_prompt: AdapterPrompt | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the text as the model's configuration names it, then over the prompt."""
    view = module.config
    name = view.original._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, view.eager)
    plain = module if name in _READS_NO_CONFIG else _View(module, config=view.original)
    output, weights = function(plain, query, key, value, attention_mask, **kwargs)  # (B, T, H, D_head)
    if adapter_prompt is not None:
        added = adapter_prompt.read(query, kwargs.get("scaling"))
        output = output + (added if added.dtype == output.dtype else added.to(output.dtype))
    return output, weights


AttentionInterface.register(_NAME, _attend)
