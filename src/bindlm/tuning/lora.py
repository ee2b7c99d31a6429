"""LoRA adapters inside the language model that are on only where there is a condition.

The adapters are PEFT's (LoRA, arXiv 2106.09685), injected in place. A row of a batch without a condition runs the
language model as it was before bindlm touched it, so text-only chat loses nothing by instruction tuning.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bindlm.errors import ConfigError

ADAPTER_NAME = "default"
_BASE = "__base__"
"""PEFT's own name, in `adapter_names`, for "no adapter on this row"."""


def inject_lora(language_model: nn.Module, settings: dict[str, Any], *, scope: str = "conditioned") -> "LoraSwitch":
    """Put LoRA layers into `language_model` in place, switched off unless `scope` is "always".

    Args:
        settings: fields of `peft.LoraConfig`, such as `r`, `lora_alpha` and `target_modules`.
        scope: "conditioned" or "always", see `LoraSwitch`.

    Raises:
        ConfigError: PEFT does not take these settings, or the language model has no such modules.
    """
    try:
        config = LoraConfig(task_type="CAUSAL_LM", **settings)
        inject_adapter_in_model(config, language_model, adapter_name=ADAPTER_NAME)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"LoRA settings {settings} do not fit {type(language_model).__name__}: use fields of peft.LoraConfig, "
            "with target_modules that name linear layers of this model."
        ) from error
    for module in language_model.modules():
        if isinstance(module, LoraLayer):
            module.train(language_model.training)  # PEFT makes its dropout in training mode
    return LoraSwitch(language_model, scope)


class LoraSwitch:
    """Turns the adapters of a model on for some rows of a batch, for as long as a call lasts; else they are off.

    That is the scope "conditioned". With "always", the paper's way, they are on whatever the rows.

    One call at a time: threads that share a model must take turns.
    """

    def __init__(self, language_model: nn.Module, scope: str = "conditioned") -> None:
        self._layers = [module for module in language_model.modules() if isinstance(module, LoraLayer)]
        self._handles: list[RemovableHandle] = []
        self._rows: list[bool] | None = None
        self.set_scope(scope)

    def set_scope(self, scope: str) -> None:
        """Change to "conditioned" or "always", between calls."""
        self._is_always = scope == "always"
        self._set([True] if self._is_always else None)

    def close(self) -> None:
        """Take the switch's own hooks off; the adapters stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def parameters(self) -> list[nn.Parameter]:
        """The adapters' weights."""
        return [
            parameter
            for layer in self._layers
            for name in layer.adapter_layer_names
            for parameter in getattr(layer, name).parameters()
        ]

    @contextmanager
    def rows(self, is_conditioned: Tensor | None) -> Iterator[None]:
        """Run with adapters on for conditioned rows only, and off again afterwards.

        Args:
            is_conditioned: `(B,)` bool, or None where no row has a condition.
        """
        if self._is_always:
            yield
            return
        flags = None if is_conditioned is None else is_conditioned.tolist()
        with self._setting(flags if flags is not None and any(flags) else None):
            yield

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whenever it is called, with the rows of now: gradient checkpointing replays it in backward."""
        rows = self._rows

        def run(*args: Any) -> Any:
            with self._setting(rows):
                return function(*args)

        return run

    @contextmanager
    def _setting(self, rows: list[bool] | None) -> Iterator[None]:
        before = self._rows
        if rows == before:
            yield
            return
        self._set(rows)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, rows: list[bool] | None) -> None:
        self.close()
        for layer in self._layers:
            # PEFT's enable_adapters() sets requires_grad as well, which is the stage's business, and costs 100 times
            # as much, twice a token
            layer._disable_adapters = rows is None
        if rows is not None and not all(rows):
            hook = partial(_add_adapter_names, names=[ADAPTER_NAME if flag else _BASE for flag in rows])
            self._handles += [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in self._layers]
        self._rows = rows


def take_lora_out(language_model: nn.Module, *, merge: bool) -> None:
    """Put plain linear layers in the place of those with LoRA.

    Args:
        merge: whether the weights take up what the adapters add; otherwise they are as before there were any.
    """
    for name, module in list(language_model.named_modules()):
        if not isinstance(module, LoraLayer):
            continue
        if merge:
            module.merge()
        parent, _, own = name.rpartition(".")
        setattr(language_model.get_submodule(parent), own, module.get_base_layer())
    if hasattr(language_model, "peft_config"):
        del language_model.peft_config  # or PEFT would take the next adapter for a second one


def _add_adapter_names(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}
