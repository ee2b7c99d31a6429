"""LoRA adapters inside the language model that are on only where there is a condition.

The adapters are PEFT's (LoRA, arXiv 2106.09685), injected in place. A row of a batch without a condition runs the
language model as it was before bindlm touched it, so text-only chat loses nothing by instruction tuning.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

ADAPTER_NAME = "default"
_BASE = "__base__"
"""PEFT's own name, in `adapter_names`, for "no adapter on this row"."""


def inject_lora(language_model: nn.Module, settings: dict[str, Any]) -> "LoraSwitch":
    """Put LoRA layers into `language_model` in place.

    Args:
        settings: fields of `peft.LoraConfig`, such as `r`, `lora_alpha` and `target_modules`.
    """
    inject_adapter_in_model(LoraConfig(task_type="CAUSAL_LM", **settings), language_model, adapter_name=ADAPTER_NAME)
    return LoraSwitch(language_model)


class LoraSwitch:
    """Turns the adapters of a model on and off, for all rows of a batch or row by row."""

    def __init__(self, language_model: nn.Module) -> None:
        self._layers = [module for module in language_model.modules() if isinstance(module, LoraLayer)]
        self._trainable: list[bool] = []
        self._is_on = True

    def parameters(self) -> list[nn.Parameter]:
        """The adapters' weights."""
        return [
            parameter
            for layer in self._layers
            for name in layer.adapter_layer_names
            for parameter in getattr(layer, name).parameters()
        ]

    def _set(self, is_on: bool) -> None:
        if is_on == self._is_on:
            return
        parameters = self.parameters()
        if not is_on:
            self._trainable = [parameter.requires_grad for parameter in parameters]
        for layer in self._layers:
            layer.enable_adapters(is_on)
        # PEFT ties "enabled" to "trains"; what trains is the stage's business, not the switch's
        for parameter, trainable in zip(parameters, self._trainable, strict=True):
            parameter.requires_grad_(trainable)
        self._is_on = is_on

    @contextmanager
    def rows(self, is_conditioned: Tensor | None) -> Iterator[None]:
        """Run with adapters on for conditioned rows only.

        Args:
            is_conditioned: `(B,)` bool, or None where no row has a condition.
        """
        if is_conditioned is None or not bool(is_conditioned.any()):
            self._set(False)
            yield
            return
        self._set(True)
        if bool(is_conditioned.all()):
            yield
            return
        names = [ADAPTER_NAME if flag else _BASE for flag in is_conditioned.tolist()]
        hook = partial(_add_adapter_names, names=names)
        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add_adapter_names(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}
