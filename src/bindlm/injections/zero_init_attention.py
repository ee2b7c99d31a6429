"""Zero-init attention: the queries of the top layers read an adapter's prompt, behind a gate that starts at zero.

LLaMA-Adapter (arXiv 2303.16199), Eqs. (4)-(8), as released: in each of the last L layers every head's output becomes

    softmax(q K_text^T + causal) V_text  +  tanh(g) * softmax(q K_p^T) V_p,

two softmaxes apart, with `K_p = wk P` and `V_p = wv P` of the layer's own bare projections, without its norm and
without rope, though the queries carry it. The prompt `P` of a layer is a learned row block, to which the condition is
added where there is one:

- LLaMA-Adapter: rows alone, 10 a layer, in the last 30 of 32 layers.
- LLaMA-Adapter V2 (arXiv 2304.15010), released multimodal form: rows plus 10 visual queries, in the last 31.
- ImageBind-LLM (arXiv 2309.03905), released form: one row plus the bind network's vector, in every layer. A softmax
  over one score is 1, so no key is needed: `tanh(g) * wv P` is added for every token alike. The paper prints another
  injection, its Eq. (2), which is `AdditiveInjection`; only this one can load the released weights.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bindlm.errors import ConfigError
from bindlm.injections.attention_interface import AdapterPrompt, release_attention, route_attention
from bindlm.injections.base import Injection, InjectionHook, check_is_free, find_decoder_layers
from bindlm.injections.projections import find_attention, in_full, num_heads, project_key, project_value
from bindlm.injections.replay import carry_gradients, release_gradients

__all__ = ["GateActivation", "ZeroInitAttention", "ZeroInitAttentionConfig"]

_PRECOMPUTED_AXES = 6


class GateActivation(StrEnum):
    """How the gate enters the sum."""

    TANH = "tanh"
    """As all releases train it."""
    NONE = "none"
    """The gate itself, as the paper's Eq. (7) and the generation code of LLaMA-Adapter V1 have it."""


@dataclass
class ZeroInitAttentionConfig:
    """Sizes and form of a zero-init attention."""

    num_heads: int
    """Query heads of a layer; a gate each."""
    hidden_dim: int
    """Width of the language model, D_lm."""
    num_layers: int
    """Layers that have prompts: the last so many of the decoder."""
    num_tokens: int = 1
    """Tokens of a layer's prompt; with one there is no score and no softmax, only the value."""
    gate_activation: GateActivation = GateActivation.TANH
    """What becomes of a gate before it multiplies."""
    needs_condition: bool = True
    """Whether rows without a condition are left alone; False for prompts that are on for every text."""
    has_new_gate: bool = False
    """Whether a layer has one more factor, 1 at first, as LLaMA-Adapter V2 files with LoRA do."""

    def __post_init__(self) -> None:
        for field in ("num_heads", "hidden_dim", "num_layers", "num_tokens"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"ZeroInitAttentionConfig.{field} must be a number from 1 up, got {value!r}.")
        try:
            self.gate_activation = GateActivation(self.gate_activation)
        except ValueError:
            known = ", ".join(GateActivation)
            raise ConfigError(
                f"ZeroInitAttentionConfig.gate_activation must be one of {known}, got {self.gate_activation!r}."
            ) from None

    @classmethod
    def imagebind_llm_7b(cls) -> "ZeroInitAttentionConfig":
        """The released ImageBind-LLM: one token in each of 32 layers."""
        return cls(num_heads=32, hidden_dim=4096, num_layers=32)

    @classmethod
    def llama_adapter_v1_7b(cls) -> "ZeroInitAttentionConfig":
        """The released LLaMA-Adapter: 10 tokens in the last 30 layers, no condition."""
        return cls(num_heads=32, hidden_dim=4096, num_layers=30, num_tokens=10, needs_condition=False)

    @classmethod
    def llama_adapter_v2_7b(cls, *, has_lora: bool = False) -> "ZeroInitAttentionConfig":
        """The released multimodal LLaMA-Adapter V2: 10 tokens and a condition in the last 31 layers."""
        return cls(num_heads=32, hidden_dim=4096, num_layers=31, num_tokens=10, has_new_gate=has_lora)

    def build(self) -> "ZeroInitAttention":
        """An injection with gates at zero and prompts drawn from a standard normal, as released."""
        return ZeroInitAttention(self)

    @property
    def num_parameters(self) -> int:
        """Parameters, counted without building it."""
        gates = self.num_heads + (1 if self.has_new_gate else 0)
        return self.num_layers * (self.num_tokens * self.hidden_dim + gates)


class ZeroInitAttention(Injection):
    """Prompts and gates of the top layers, and the hooks that let the queries read them.

    Works on any transformers decoder that goes through the attention interface, with any attention implementation,
    grouped queries included. The key-value cache holds text only.

    Example:
        >>> injection = ZeroInitAttentionConfig(num_heads=9, hidden_dim=576, num_layers=30).build()
        >>> injection.attach_to(language_model)
        >>> language_model(input_ids, condition=bridge(joint_embedding)).logits
    """

    reads_positions = True  # the queries carry rope and the prompt's keys do not

    def __init__(self, config: ZeroInitAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter_prompt = nn.Parameter(torch.randn(config.num_layers, config.num_tokens, config.hidden_dim))
        self.gate = nn.Parameter(torch.zeros(config.num_layers, config.num_heads))
        self.new_gate = nn.Parameter(torch.ones(config.num_layers)) if config.has_new_gate else None
        self.condition_tokens = (1,) if config.num_tokens == 1 else (1, config.num_tokens)
        self._handles: list[RemovableHandle] = []
        self._layers: list[nn.Module] = []  # those with a prompt; a list, as they are not parts of this module

    def factor(self, index: int) -> Tensor:
        """What multiplies the heads' readings in the layer `index` of those with a prompt: `(H, 1, 1)`."""
        gate = self.gate[index]
        if self.config.gate_activation is GateActivation.TANH:
            gate = torch.tanh(gate)
        if self.new_gate is not None:
            gate = gate * self.new_gate[index]
        return gate[:, None, None]

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

    def attach(self, layers: nn.ModuleList) -> None:
        """Hook every decoder layer; its forward then takes the keyword `condition`.

        A condition is `(B, 1, D_lm)`, added to each token of the prompt, or `(B, num_tokens, D_lm)`, added one to
        one; `(B, T, D_lm)` where a prompt has one token and each token of the text a condition of its own. An
        all-zero row has none, and with `needs_condition` runs as the plain language model does.

        Raises:
            ConfigError: the sizes differ from those of the layers, they are of an unknown kind, the hooks are on
                already, or the layers have another injection. Nothing is changed then.
        """
        if self._handles:
            raise ConfigError("This injection is attached already; call detach() first.")
        for layer in layers:
            check_is_free(layer)
        first = len(layers) - self.config.num_layers
        if first < 0:
            raise ConfigError(f"Prompts for {self.config.num_layers} layers do not fit {len(layers)} decoder layers.")
        attentions = [find_attention(layer) for layer in list(layers)[first:]]
        for attention in attentions:
            self._check_sizes(attention)
        try:
            for attention in attentions:
                route_attention(attention)
        except ConfigError:
            for attention in attentions:
                release_attention(attention)
            raise
        self._layers = list(layers)[first:]
        for number, layer in enumerate(layers):
            hook = _LayerHook(self, number - first if number >= first else None)
            self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        self._handles += [layer.register_forward_hook(_check_was_read, with_kwargs=True) for layer in self._layers]

    def detach(self) -> None:
        """Take the hooks off; the language model is then exactly what it was."""
        for handle in self._handles:
            handle.remove()
        for layer in self._layers:
            release_attention(find_attention(layer))
            release_gradients(layer)
        self._handles.clear()
        self._layers = []

    @torch.no_grad()
    def precompute(self, condition: Tensor | None, num_rows: int = 1) -> Tensor | None:
        """Keys and gated values of all layers, to be given as `condition` at every step of a generation.

        Without it each step runs `wk` and `wv` of every layer again for the same tokens, which at one token a step is
        up to a sixth of all weights.

        Args:
            condition: `(B, N, D_lm)`, or None.
            num_rows: B, where the condition is None.

        Returns:
            `(B, num_layers, 1 or 2, H, num_tokens, D_head)`: keys, where there are several tokens, then values. None
            where there is nothing to inject.

        Raises:
            ConfigError: the injection is not attached, or the condition has another shape.
        """
        if not self._layers:
            raise ConfigError("The injection is not attached to a language model: call attach_to() first.")
        if condition is None and self.config.needs_condition:
            return None
        tensors = []
        for index, layer in enumerate(self._layers):
            prompt = self.prompt(index, find_attention(layer), condition, in_full(layer))
            assert prompt is not None
            tensors.append(torch.stack([prompt.value] if prompt.key is None else [prompt.key, prompt.value], dim=1))
        made = torch.stack(tensors, dim=1)  # (B, L, 1 or 2, H, N, D_head)
        return made.expand(num_rows if len(made) == 1 else len(made), -1, -1, -1, -1, -1)

    @property
    def has_compiled_layers(self) -> bool:
        """Whether the layers with a prompt go through `torch.compile` one by one."""
        return any(layer._compiled_call_impl is not None for layer in self._layers[:1])

    def is_precomputed(self, condition: Tensor) -> bool:
        """Whether this is what `precompute` made of a condition."""
        return condition.ndim == _PRECOMPUTED_AXES

    def prompt(self, index: int, attention: Any, condition: Tensor | None, like: Tensor) -> AdapterPrompt | None:
        """What the queries of the layer `index` of those with a prompt may read; None for nothing.

        Args:
            attention: that layer's.
            condition: as `attach` takes it, or what `precompute` gave.
            like: a tensor of the device and dtype to compute in.

        Raises:
            ConfigError: the condition has another shape.
        """
        if condition is not None and condition.ndim == _PRECOMPUTED_AXES:
            return _made_prompt(condition, index, like)
        if condition is None and self.config.needs_condition:
            return None
        tokens = self.adapter_prompt[index].unsqueeze(0)  # (1, N, D_lm)
        if condition is not None:
            self._check_condition(condition)
            tokens = tokens + condition  # (B, N, D_lm), or (B, T, D_lm) with one token
        tokens = tokens.to(like) if like.is_floating_point() else tokens.to(like.device)
        value = project_value(attention, tokens)  # (B, H, N, D_head)
        value = (value * self.factor(index).to(value.device)).to(value.dtype)
        if condition is not None and self.config.needs_condition:
            value = value.masked_fill(self._is_absent(condition).to(value.device), 0)
        return AdapterPrompt(project_key(attention, tokens) if self.config.num_tokens > 1 else None, value)

    def _is_absent(self, condition: Tensor) -> Tensor:
        """Which rows, or tokens where each has its own, have no condition: `(B, 1, 1 or T, 1)`."""
        is_given = condition.detach().ne(0).any(dim=-1)  # (B, N)
        if self.config.num_tokens > 1:
            is_given = is_given.any(dim=-1, keepdim=True)
        return ~is_given[:, None, :, None]

    def _check_condition(self, condition: Tensor) -> None:
        num_tokens, width = self.config.num_tokens, self.config.hidden_dim
        fits = condition.ndim == 3 and condition.shape[-1] == width
        if not fits or (num_tokens > 1 and condition.shape[1] not in (1, num_tokens)):
            counts = "1" if num_tokens == 1 else f"1 or {num_tokens}"
            raise ConfigError(f"A condition must be (B, {counts}, {width}), got {tuple(condition.shape)}.")

    def _check_sizes(self, attention: Any) -> None:
        heads, width = num_heads(attention), attention.config.hidden_size
        if (heads, width) != (self.config.num_heads, self.config.hidden_dim):
            raise ConfigError(
                f"Prompts of width {self.config.hidden_dim} with {self.config.num_heads} gates a layer do not fit "
                f"layers of width {width} with {heads} heads."
            )


class _DecoderHook(InjectionHook):
    """Cuts what `precompute` gave into layers, once a call: a slice costs a step of one word more than its sum."""

    def __init__(self, injection: ZeroInitAttention) -> None:
        self.injection = injection

    def __call__(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        condition = kwargs.get("condition")
        if condition is None or not self.injection.is_precomputed(condition):
            return None
        # A compiled layer takes the tensor: of a list it would be compiled for each place anew.
        if torch.compiler.is_compiling() or self.injection.has_compiled_layers:
            return None
        parts = condition.unbind(2)  # keys, where there are several tokens, and values: (B, L, H, N, D_head)
        values = parts[-1].unbind(1)
        keys = parts[0].unbind(1) if len(parts) == 2 else (None,) * len(values)
        kwargs["condition"] = [AdapterPrompt(key, value) for key, value in zip(keys, values, strict=True)]
        return args, kwargs


def _made_prompt(made: Tensor, index: int, like: Tensor) -> AdapterPrompt:
    """A layer's part of what `precompute` gave, on the device of `like`; its dtype is seen to where it is read."""
    own = made[:, index]  # (B, 1 or 2, H, N, D_head)
    return AdapterPrompt(own[:, 0] if own.shape[1] == 2 else None, own[:, -1]).on(like.device)


class _LayerHook(InjectionHook):
    """Turns the condition of a call into the prompt of one layer."""

    def __init__(self, injection: ZeroInitAttention, index: int | None) -> None:
        self.injection = injection
        self.index = index

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        condition = kwargs.pop("condition", None)
        if self.index is None or (condition is None and self.injection.config.needs_condition):
            return args, kwargs
        like = args[0] if args else kwargs["hidden_states"]
        if isinstance(condition, list):
            kwargs["adapter_prompt"] = condition[self.index].on(like.device)
        elif condition is not None and condition.ndim == _PRECOMPUTED_AXES:
            kwargs["adapter_prompt"] = _made_prompt(condition, self.index, like)
        else:
            # the attention by way of the layer: what differs from layer to layer is then the index alone, and one
            # compilation serves them all
            prompt = self.injection.prompt(self.index, find_attention(layer), condition, like)
            if prompt is not None:
                kwargs["adapter_prompt"] = prompt
                carry_gradients(layer)
        return args, kwargs


def _check_was_read(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """A layer that keeps keywords from its attention would ignore every picture, and say nothing."""
    prompt = kwargs.get("adapter_prompt")
    if prompt is not None and not prompt.was_read:
        raise ConfigError(
            f"{type(layer).__name__} does not hand keywords on to its attention, so prompts have no effect. Use the "
            "additive injection for this language model."
        )
