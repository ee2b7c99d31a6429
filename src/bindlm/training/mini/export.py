"""The mini as it ships: bf16 weights, names of the cache's entries, and the processor's settings."""

from pathlib import Path

from torch import Tensor

from bindlm.loading import load
from bindlm.processing import BindLMImageProcessor, BindLMProcessor
from bindlm.space.entry_names import NamedEntry, write_entry_names
from bindlm.training.mini.recipes import ModelConfig

_KEPT_WHOLE = 10_000
"""Tensors with fewer values keep fp32: they weigh nothing, and gates and norms are worth their digits."""


def export(trained: Path, folder: Path, settings: ModelConfig, entries: list[NamedEntry]) -> None:
    """Write the finished model.

    Args:
        trained: folder of the last stage's model.
        folder: of the result.
        settings: how the cache answers.
        entries: of the cache, in its order.
    """
    model = load(trained)
    assert model.config.cache is not None
    model.config.cache |= {"alpha": settings.answer_alpha, "temperature": settings.answer_temperature}
    state = model.state_dict()
    stored: dict[str, Tensor] = {name: as_shipped(state[name].detach()) for name in model.saved_names()}
    model.processor = None  # the tokenizer comes with the language model
    model.save_pretrained(folder, state_dict=stored)
    BindLMProcessor(image_processor=BindLMImageProcessor()).save_pretrained(folder)
    write_entry_names(folder, entries)


def as_shipped(tensor: Tensor) -> Tensor:
    """A weight as the mini's file holds it: bf16 unless it is small."""
    return tensor if tensor.numel() < _KEPT_WHOLE else tensor.bfloat16()
