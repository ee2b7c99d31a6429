"""What every injection is: something put on a loaded language model, and taken off again without a trace."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from bindlm.errors import ConfigError

__all__ = ["Injection", "InjectionHook", "check_is_free", "find_decoder_layers"]


class Injection(nn.Module, ABC):
    """Changes what a transformers decoder computes, given the keyword `condition` of its `forward`.

    Its own weights are parameters of this module; the language model's keys, classes and code stay as they are. What
    belongs to one call (the condition) travels in that call's keywords and is never kept here.
    """

    condition_tokens: tuple[int, ...] | None = (1,)
    """How many tokens the condition of a row may have; None for any number."""
    reads_positions: bool = False
    """Whether it matters where a word stands, and not only how far from others: padding must then be counted out."""
    placeholder_id: int | None = None
    """Token id whose places in the text the condition takes; None where it has no place there."""

    @property
    @abstractmethod
    def is_attached(self) -> bool:
        """Whether hooks are on a language model now."""

    @abstractmethod
    def attach_to(self, language_model: nn.Module) -> None:
        """Put the hooks on a transformers causal language model; its `forward` then takes the keyword `condition`.

        Raises:
            ConfigError: the language model has no place for this injection, or has one already. It is untouched then.
        """

    @abstractmethod
    def detach(self) -> None:
        """Take the hooks off; the language model is then exactly what it was."""

    def precompute(self, condition: Tensor | None, num_rows: int = 1) -> Tensor | None:
        """What `generate` should give as `condition` at every step, so that no step does the same work again.

        Args:
            condition: `(B, N, D_lm)`, or None.
            num_rows: B, where the condition is None or has one row for all.

        Returns:
            A tensor whose first axis is B, as beams are repeated along it; or what was given.
        """
        return condition

    def gate_parameters(self) -> list[nn.Parameter]:
        """What opens this injection: parameters that may have a learning rate and a decay of their own."""
        return [parameter for name, parameter in self.named_parameters() if name in ("gate", "new_gate")]

    def is_precomputed(self, condition: Tensor) -> bool:
        """Whether this is what `precompute` made of a condition."""
        return False


class InjectionHook(ABC):
    """A forward pre-hook of one layer; a layer with one such has an injection."""

    @abstractmethod
    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None: ...


def find_decoder_layers(language_model: nn.Module) -> nn.ModuleList:
    """The one `ModuleList` of decoder layers of a transformers causal language model.

    Raises:
        ConfigError: there is none, or its length is not `num_hidden_layers`.
    """
    decoder = getattr(language_model, "get_decoder", lambda: language_model)() or language_model
    layers = getattr(decoder, "layers", None)
    config: Any = language_model.config
    count = config.get_text_config().num_hidden_layers
    if not isinstance(layers, nn.ModuleList) or len(layers) != count:
        raise ConfigError(
            f"{type(language_model).__name__} has no ModuleList `layers` of {count} decoder layers, so the condition "
            "cannot be injected. Supported: transformers decoders of the Llama shape (Llama, Qwen3, Gemma3, Mixtral)."
        )
    return layers


def check_is_free(module: nn.Module) -> None:
    """See that no injection is on a layer or decoder.

    Raises:
        ConfigError: there is one, which would take the condition away from another.
    """
    if any(isinstance(hook, InjectionHook) for hook in module._forward_pre_hooks.values()):
        raise ConfigError("This language model has an injection already; detach() that one, or load another copy.")
