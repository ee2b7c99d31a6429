"""Plain transformers decoders whose `generate` knows the keyword `condition`, as a bound model's does."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from .tiny import DECODERS, HIDDEN, NUM_LAYERS, VOCAB_SIZE, randomize_, tiny_language_model

FAMILIES = (*DECODERS, "gpt_neox")
NUM_HEADS = 4


def conditioned(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, with `condition` among the arguments of `forward`: `generate` refuses what is not.

    `position_ids` must be named too, or `generate` does not make them from the padding. Text alone would not show it,
    because rope tells distances only; but a prompt's keys carry no rope, and then the place of a query counts.
    """
    kind = type(model)

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        condition: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if condition is not None:
            kwargs["condition"] = condition
        return kind.forward(
            self, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return model


def tiny_decoder(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A decoder of one of `FAMILIES` with random weights, in evaluation mode."""
    if family != "gpt_neox":
        return conditioned(tiny_language_model(family, seed, **changes))
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = GPTNeoXConfig(**{**settings, **changes})
    return conditioned(AutoModelForCausalLM.from_config(config).eval())


def randomize(module: nn.Module, scale: float = 0.5, seed: int = 7) -> None:
    """Give every parameter of a module random values, gates among them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        randomize_(parameter, scale, generator)


def step_by_step(model: Any, ids: Tensor, mask: Tensor, condition: Tensor, ends: Sequence[int]) -> Tensor:
    """Logits of a batch padded on the left, read piece by piece with a KV cache: `(B, T, V)`.

    Args:
        model: one that takes `condition`.
        ids, mask: `(B, T)`.
        condition: as `forward` takes it.
        ends: where each piece ends; the last is T.
    """
    positions = positions_of(mask)
    steps, past, begin = [], None, 0
    for end in ends:
        output = model(
            input_ids=ids[:, begin:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, begin:end],
            past_key_values=past,
            use_cache=True,
            condition=condition,
        )
        steps.append(output.logits)
        past, begin = output.past_key_values, end
    return torch.cat(steps, dim=1)


def positions_of(mask: Tensor) -> Tensor:
    """Places of tokens in rows that are padded on the left, `(B, T)`."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
