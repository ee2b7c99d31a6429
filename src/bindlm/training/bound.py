"""The model that a recipe trains, and the encoder that makes its features."""

from pathlib import Path
from typing import Any

import torch

from bindlm.bound_encoder import load_published_encoder
from bindlm.checkpoints import load_language_model
from bindlm.configuration import BindLMConfig
from bindlm.embedding import Embedder, load_embedder
from bindlm.errors import ConfigError
from bindlm.loading import load
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import ALPACA_CHAT_TEMPLATE, BindLMProcessor
from bindlm.training.render import Places
from bindlm.training.stage_recipe import ModelRecipe, PromptConfig

MINI_NAME = "mini"
"""`start_from` of the bundled model."""
PREFIX_CHAT_TEMPLATE = (
    "{% set told = namespace(first=true) %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if told.first and message['role'] == 'user' %}{{ '<|medium|>\n' }}{% set told.first = false %}{% endif %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The processor's template of a turn with a medium, and the medium's place in front of the first question."""


def recipe_model(recipe: ModelRecipe, *, seed: int = 0, progress: bool = True) -> BindLMForConditionalGeneration:
    """The model as it stands before the stage: what an earlier stage left, or two parts that meet for the first time.

    Args:
        recipe: which parts.
        seed: of the new bridge's weights.
        progress: whether to say on stderr what is fetched.

    Returns:
        A model in fp32, but for a language model that is to be quantised, with its processor; all of it frozen.

    Raises:
        CheckpointError: a part is missing, damaged, or does not fit.
        ConfigError: the parts do not fit each other.
    """
    if recipe.start_from is not None:
        model = load(
            None if recipe.start_from == MINI_NAME else recipe.start_from,
            quantization=recipe.quantization,
            progress=progress,
        )
    else:
        model = _new_model(recipe, seed, progress)
    return model.requires_grad_(False)


def _new_model(recipe: ModelRecipe, seed: int, progress: bool) -> BindLMForConditionalGeneration:
    assert recipe.language_model is not None
    if recipe.encoder_weights is None or isinstance(recipe.encoder_weights, dict):
        raise ConfigError(
            "model.encoder_weights must name the encoder's published file or folder, such as imagebind_huge.pth; an "
            "encoder that is part of a bound model comes with model.start_from."
        )
    language_model, tokenizer = load_language_model(
        recipe.language_model, dtype=torch.float32, quantization=recipe.quantization, progress=progress
    )
    weights = _anywhere(recipe.encoder_weights)
    settings = dict(recipe.encoder or {})
    encoder = load_published_encoder(settings, weights, progress=progress)
    config = BindLMConfig(
        text_config=language_model.config,
        language_model=_anywhere(recipe.language_model),
        encoder=settings,
        encoder_weights=weights,
        bridge=recipe.bridge,
        injection=recipe.injection,
        quantization=recipe.quantization,
    )
    form: dict[str, Any] = {}
    if config.injection.get("kind") == "prefix":
        form = {
            "conditioned_chat_template": PREFIX_CHAT_TEMPLATE,
            "placeholder": _with_prefix(config, tokenizer),
        }
    torch.manual_seed(seed)
    model = BindLMForConditionalGeneration(config, language_model, encoder)
    model.processor = BindLMProcessor(tokenizer=tokenizer, pictures="encoder", **form)
    return model.eval()


def _with_prefix(config: BindLMConfig, tokenizer: Any) -> dict[str, int]:
    """Complete what a recipe leaves open of a prefix, and give the processor's part of it.

    Raises:
        ConfigError: the bridge makes another number of tokens, or no token is free to stand for them.
    """
    injection, bridge = dict(config.injection), dict(config.bridge)
    num_tokens = injection.setdefault("num_tokens", 1)
    if injection.get("placeholder_id") is None:
        injection["placeholder_id"] = _unused_token(tokenizer, config.get_text_config().vocab_size)
    if bridge.get("kind", "bind_network") == "bind_network":
        bridge.setdefault("num_tokens", num_tokens)
    if bridge.get("num_tokens", 1) != num_tokens:
        raise ConfigError(
            f"The prefix has {num_tokens} soft tokens, but the bridge {bridge.get('kind', 'bind_network')!r} makes "
            f"{bridge.get('num_tokens', 1)} of an embedding: only a bind_network makes several, with num_tokens."
        )
    config.injection, config.bridge = injection, bridge
    return {"id": injection["placeholder_id"], "num_tokens": num_tokens}


def _unused_token(tokenizer: Any, vocab_size: int) -> int:
    """An id that text never has: one behind the tokenizer's words, else that of what it cannot read."""
    if vocab_size > len(tokenizer):
        return vocab_size - 1
    unknown: int | None = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        raise ConfigError(
            "This tokenizer has no id that is surely free to stand for a medium: set model.injection.placeholder_id "
            "to a reserved token that no text has."
        )
    return unknown


def media_places(model: BindLMForConditionalGeneration) -> Places | None:
    """Where media stand in the text of this model; None where they have no place there.

    Raises:
        ConfigError: they do, and the model's processor does not say where, or in another way than by `<|medium|>`.
    """
    if model.injection.placeholder_id is None:
        return None
    placeholder = model.processor.placeholder
    if placeholder is None or placeholder.get("token") is not None:
        raise ConfigError(
            "Media have a place in the text of this model, and its processor has "
            + ("no placeholder" if placeholder is None else f"{placeholder['token']!r} for them, as LLaVA's")
            + ": to train it, the processor needs placeholder={'id': …, 'num_tokens': …} and a chat template with "
            "<|medium|>."
        )
    return Places(placeholder["id"], placeholder["num_tokens"])


def _anywhere(reference: str) -> str:
    """A reference that still holds when the model's folder is opened from another working folder."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def encoder_name(recipe: ModelRecipe) -> str:
    """What a feature store calls the encoder of a recipe's model."""
    return recipe.start_from or str(recipe.encoder_weights)


def recipe_embedder(recipe: ModelRecipe, *, progress: bool = True) -> Embedder:
    """The frozen encoder of a recipe's model alone, with its preprocessing; no language model is read.

    Raises:
        CheckpointError: the weights are missing, damaged, or of no known family.
        ConfigError: unknown family.
    """
    if recipe.start_from is not None:
        return load_embedder(recipe.start_from, progress=progress)
    if not isinstance(recipe.encoder_weights, str):
        raise ConfigError("model.encoder_weights must name the encoder's published file or folder.")
    settings: dict[str, Any] = dict(recipe.encoder or {})
    embedder = Embedder(load_published_encoder(settings, _anywhere(recipe.encoder_weights), progress=progress))
    embedder.name = encoder_name(recipe)
    return embedder


def adopt_prompt(model: BindLMForConditionalGeneration, prompt: PromptConfig) -> None:
    """Have the model asked, from now on and once saved, in the form it is trained in."""
    if prompt.template == "alpaca":
        model.processor.conditioned_chat_template = ALPACA_CHAT_TEMPLATE
        model.processor.tokenizer.chat_template = ALPACA_CHAT_TEMPLATE
