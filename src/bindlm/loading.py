"""`bindlm.load`: one line from a name to a model that answers."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints import load_tokenizer, resolve
from bindlm.checkpoints.llava import chat_template_in, is_llava, load_llava_parts, picture_settings
from bindlm.checkpoints.state import dtype_of
from bindlm.checkpoints.unfilled import without_random_weights
from bindlm.configuration import BindLMConfig
from bindlm.encoders.patches import PatchEncoder, PatchEncoderConfig
from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMImageProcessor, BindLMProcessor

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
        path: a folder, a hub id, or None for the bundled mini, whose frozen parts are fetched once. A LLaVA in
            transformers' format is one too.
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
    folder = resolve(source, local_files_only=local_files_only, progress=progress)
    if is_llava(folder):
        given = {"quantization": quantization, "trained_dtype": trained_dtype, "encoder": encoder, "cache": cache}
        return _load_llava(folder, str(source), dtype, device, [name for name, value in given.items() if value])
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


def _load_llava(
    folder: Path, name: str, dtype: "torch.dtype | str | None", device: "torch.device | str | None", others: list[str]
) -> BindLMForConditionalGeneration:
    """A LLaVA as transformers saves it: its own parts, put together as a prefix of patches behind a two-layer bridge.

    Raises:
        ConfigError: settings that take a folder of bindlm's own.
    """
    if others:
        raise ConfigError(
            f"{', '.join(others)}: not for a LLaVA in transformers' format. Load it, write it with save_pretrained, "
            "and load that."
        )
    parts = load_llava_parts(folder, dtype=None if dtype == "auto" else dtype_of(dtype))
    llava = parts.config
    kept = {"layer": llava.vision_feature_layer, "keeps_class": llava.vision_feature_select_strategy == "full"}
    encoder = PatchEncoder(PatchEncoderConfig(llava.vision_config.to_dict(), **kept), parts.vision_tower)
    num_tokens = (llava.vision_config.image_size // llava.vision_config.patch_size) ** 2 + kept["keeps_class"]
    placeholder = {"id": llava.image_token_id, "num_tokens": num_tokens}
    config = BindLMConfig(
        text_config=llava.text_config,
        encoder={"family": "patches", "vision": llava.vision_config.to_dict(), **kept},
        bridge={"kind": "mlp", "bias": llava.multimodal_projector_bias},
        injection={"kind": "prefix", "placeholder_id": placeholder["id"], "num_tokens": num_tokens},
        mixing="sum",  # patches are no directions: nothing brings them to unit length
    )
    with without_random_weights():
        model = BindLMForConditionalGeneration(config, parts.language_model, encoder)
    model.bridge.load_state_dict(parts.projector, assign=True)
    tokenizer: Any = load_tokenizer(folder)
    template = chat_template_in(folder) or tokenizer.chat_template or "llava"
    model.processor = BindLMProcessor(
        image_processor=BindLMImageProcessor(**picture_settings(folder)),
        tokenizer=tokenizer,
        conditioned_chat_template=template,
        text_chat_template=template,
        placeholder={**placeholder, "token": tokenizer.convert_ids_to_tokens(placeholder["id"])},
    )
    model.name = name
    return (model if device is None else model.to(device)).eval()
