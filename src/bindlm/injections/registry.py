"""Every injection by the word that a configuration names it with."""

from typing import Any

from transformers import PreTrainedConfig

from bindlm.errors import ConfigError
from bindlm.injections.additive import AdditiveInjection
from bindlm.injections.base import Injection
from bindlm.injections.prefix import PrefixConfig
from bindlm.injections.zero_init_attention import ZeroInitAttentionConfig

__all__ = ["INJECTIONS", "build_injection"]


def _additive(text_config: Any, **settings: Any) -> Injection:
    return AdditiveInjection(text_config.num_hidden_layers, **settings)


def _zero_init_attention(text_config: Any, **settings: Any) -> Injection:
    sizes = {
        "num_heads": text_config.num_attention_heads,
        "hidden_dim": text_config.hidden_size,
        "num_layers": text_config.num_hidden_layers,
    }
    return ZeroInitAttentionConfig(**{**sizes, **settings}).build()


def _prefix(text_config: Any, **settings: Any) -> Injection:
    return PrefixConfig(**{"hidden_dim": text_config.hidden_size, **settings}).build()


INJECTIONS = {"additive": _additive, "zero_init_attention": _zero_init_attention, "prefix": _prefix}


def build_injection(text_config: PreTrainedConfig, kind: str = "additive", **settings: Any) -> Injection:
    """An injection with fresh weights for a language model.

    Args:
        text_config: of the language model; sizes that `settings` leave out are taken from it.
        kind: one of `INJECTIONS`.
        **settings: `gate_bound` of the additive one, fields of `ZeroInitAttentionConfig` or `PrefixConfig`.

    Raises:
        ConfigError: there is no such kind, or it has no such setting or value.
    """
    if kind not in INJECTIONS:
        raise ConfigError(f"There is no injection {kind!r}; known are {', '.join(INJECTIONS)}.")
    try:
        return INJECTIONS[kind](text_config.get_text_config(), **settings)
    except TypeError as error:
        raise ConfigError(f"Settings {settings} do not fit the injection {kind!r}: {error}.") from error
