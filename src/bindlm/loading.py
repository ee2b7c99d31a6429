"""`bindlm.load`: one line from a name to a model that answers."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMProcessor

if TYPE_CHECKING:
    import torch

MINI = Path(__file__).parent / "mini"
"""The folder of the bundled model."""


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    dtype: "torch.dtype | str | None" = None,
    device: "torch.device | str | None" = None,
    quantization: Any = None,
    trained_dtype: "torch.dtype | str | None" = None,
    encoder: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> BindLMForConditionalGeneration:
    """Load a model with its processor.

    Args:
        path: a folder, a hub id, or None for the bundled mini, whose frozen parts are fetched once.
        dtype: None is fp32.
        device: None is the CPU.
        quantization: how the language model is held: "int8" or "int4" (by bitsandbytes), a quantisation config of
            transformers or its dictionary; None is what the folder says, False is in full. All else keeps its dtype.
        trained_dtype: of bridge, gates, prompts and LoRA; None is `dtype`.
        encoder: published weights of the encoder, for a model saved without or in place of its own: a file, a folder
            or a hub id; ImageBind's for ImageBind-LLM and PandaGPT, CLIP ViT-L/14's for LLaMA-Adapter V2.
        cache: folder of a visual cache to consult, see `attach_cache`; None is the model's own, False is none.
        local_files_only: never touch the network.
        progress: say on stderr what is fetched.

    Returns:
        A model in evaluation mode with `ask`, `answer`, `embed` and all that transformers models have.

    Raises:
        CheckpointError: weights cannot be had or do not fit.
        ConfigError: a setting that is impossible here; the message says what to do.

    Example:
        >>> import bindlm
        >>> bindlm.load().ask("What is this?", image="cat.jpg")
        'This is a cat, a kind of animal.'
    """
    source = MINI if path is None else path
    model = BindLMForConditionalGeneration.from_pretrained(
        source,
        dtype=dtype,
        device=device,
        quantization=quantization,
        trained_dtype=trained_dtype,
        encoder=encoder,
        cache=cache,
        local_files_only=local_files_only,
        progress=progress,
    )
    model.processor = BindLMProcessor.from_pretrained(source, local_files_only=local_files_only)
    if path is None:
        model.name = "mini"
    return model
