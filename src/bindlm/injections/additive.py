"""Additive injection: the condition added to every word token, at every decoder layer.

ImageBind-LLM (arXiv 2309.03905), Eq. (2): `T_j = T_I * g + T_j`, with `g` zero at the start of training. No attention,
no extra token, no position: the language model's own code and keys stay as they are.

The released code does something else (it adds `tanh(g) * wv(T_I + prefix_query[l])` inside attention); that is another
injection, and only it can load the released weights.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bindlm.errors import ConfigError
from bindlm.injections.base import Injection, InjectionHook, check_is_free, find_decoder_layers

__all__ = ["AdditiveInjection"]

_GATED_AXES = 4
"""Of what `gated` gives: `(B, L, 1, D_lm)`."""


class AdditiveInjection(Injection):
    """Gates of Eq. (2) and the hooks that apply them.

    Args:
        num_layers: decoder layers of the language model; one scalar gate each.
        gate_bound: where a gate saturates. None is the paper: any value. With a bound b the factor is
            `b * tanh(g / b)`, which has the paper's slope at zero; unbounded gates of the last layers grow until the
            condition is a constant vote on the next word, and answers stutter.
    """

    def __init__(self, num_layers: int, gate_bound: float | None = None) -> None:
        super().__init__()
        if gate_bound is not None and not gate_bound > 0:
            raise ConfigError(f"gate_bound must be above 0 or None, got {gate_bound}.")
        self.gate = nn.Parameter(torch.zeros(num_layers))
        self.gate_bound = gate_bound
        self._handles: list[RemovableHandle] = []
        self._layers: list[nn.Module] = []  # those with a hook; a list, as they are not parts of this module

    def factor(self, layer: int) -> Tensor:
        """The scalar that multiplies the condition at `layer`."""
        gate = self.gate[layer]
        return gate if self.gate_bound is None else self.gate_bound * torch.tanh(gate / self.gate_bound)

    @property
    def is_attached(self) -> bool:
        """Whether hooks are on a language model now."""
        return bool(self._handles)

    def attach_to(self, language_model: nn.Module) -> None:
        """Put the hooks on the decoder and all its layers of a transformers causal language model; see `attach`."""
        decoder = getattr(language_model, "get_decoder", lambda: language_model)() or language_model
        if not self._handles:  # else `attach` says so
            check_is_free(decoder)
        self.attach(find_decoder_layers(language_model))
        self._handles.append(decoder.register_forward_pre_hook(_DecoderHook(self), with_kwargs=True))

    def gated(self, condition: Tensor) -> Tensor:
        """The condition `(B, 1, D_lm)` times the factor of every layer, `(B, L, 1, D_lm)`.

        In a step of one word the gates' own arithmetic, layer by layer, would cost more than the addition.
        """
        gates = self.gate if self.gate_bound is None else self.gate_bound * torch.tanh(self.gate / self.gate_bound)
        return condition.unsqueeze(1) * gates.to(condition)[:, None, None]

    @torch.no_grad()
    def precompute(self, condition: Tensor | None, num_rows: int = 1) -> Tensor | None:
        """What `gated` makes of a condition `(B, 1, D_lm)`, to be given at every step; of any other, itself."""
        if condition is None or condition.ndim != _GATED_AXES - 1 or condition.shape[1] != 1:
            return condition  # a condition for each token would be held once for each layer
        return self.gated(condition)

    def is_precomputed(self, condition: Tensor) -> bool:
        """Whether this is what `precompute` made of a condition."""
        return condition.ndim == _GATED_AXES and condition.shape[1:3] == (len(self.gate), 1)

    @property
    def has_compiled_layers(self) -> bool:
        """Whether the layers go through `torch.compile` one by one."""
        return any(layer._compiled_call_impl is not None for layer in self._layers[:1])

    def attach(self, layers: nn.ModuleList) -> None:
        """Hook every decoder layer; its forward then takes the keyword `condition`, `(B, 1, D_lm)`.

        transformers hands unknown keywords of `model.forward` through to each layer, so nothing of the language model
        is rewritten. A layer called without `condition` runs as it always did.

        Raises:
            ConfigError: the number of layers differs from that of the gates, the hooks are attached already, or
                the layers have another injection, which would take the condition away from this one.
        """
        if self._handles:
            raise ConfigError("This injection is attached already; call detach() first.")
        if len(layers) != len(self.gate):
            raise ConfigError(f"{len(self.gate)} gates cannot serve {len(layers)} decoder layers.")
        for layer in layers:
            check_is_free(layer)
        for index, layer in enumerate(layers):
            self._handles.append(layer.register_forward_pre_hook(_LayerHook(self, index), with_kwargs=True))
        self._layers = list(layers)

    def detach(self) -> None:
        """Remove the hooks; the language model is then exactly what it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._layers = []


class _DecoderHook(InjectionHook):
    """Does once a call what would be done in every layer: multiplies with the gates, rounds, and cuts into layers."""

    def __init__(self, injection: AdditiveInjection) -> None:
        self.injection = injection

    def __call__(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        condition = kwargs.get("condition")
        if condition is None or torch.is_grad_enabled():
            return None  # backward through a slice fills the whole with zeros
        gated = self.injection.precompute(condition)
        assert gated is not None
        if gated.ndim != _GATED_AXES:
            return None
        # A compiled layer takes the tensor: of a tuple it would be compiled for each place anew.
        if not (torch.compiler.is_compiling() or self.injection.has_compiled_layers):
            words = decoder.get_input_embeddings().weight  # type: ignore[operator]
            if words.is_floating_point() and words.element_size() > 1:  # else a layer sees to it
                gated = gated.to(words.dtype)
            kwargs["condition"] = gated.unbind(1)
        else:
            kwargs["condition"] = gated
        return args, kwargs


class _LayerHook(InjectionHook):
    """Adds the gated condition to one layer's input."""

    def __init__(self, injection: AdditiveInjection, index: int) -> None:
        self.injection = injection
        self.index = index

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        condition = kwargs.pop("condition", None)
        if condition is None:
            return None
        if isinstance(condition, tuple):
            gated = condition[self.index]  # (B, 1, D_lm)
        elif condition.ndim == _GATED_AXES:
            gated = condition[:, self.index]
        else:
            gated = condition * self.injection.factor(self.index).to(condition.dtype)
        if args:
            return (_added(args[0], gated), *args[1:]), kwargs
        kwargs["hidden_states"] = _added(kwargs["hidden_states"], gated)
        return args, kwargs


def _added(hidden_states: Tensor, gated: Tensor) -> Tensor:
    if gated.dtype != hidden_states.dtype or gated.device != hidden_states.device:
        gated = gated.to(hidden_states)
    return hidden_states + gated
