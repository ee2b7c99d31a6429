"""Encoder families: each maps its senses into one joint space."""

from typing import Any

from bindlm.encoders.base import JointEncoder
from bindlm.encoders.mini import MiniEncoder, MiniEncoderConfig
from bindlm.errors import ConfigError

ENCODER_FAMILIES: dict[str, tuple[type, type[JointEncoder]]] = {
    "mini": (MiniEncoderConfig, MiniEncoder),
}
"""Family name to its config and its module. A new family is one row here and one file beside this one."""


def build_encoder(family: str, **config: Any) -> JointEncoder:
    """An encoder of `family` with fresh weights.

    Raises:
        ConfigError: unknown family or setting.
    """
    if family not in ENCODER_FAMILIES:
        raise ConfigError(f"Unknown encoder family {family!r}; known: {', '.join(sorted(ENCODER_FAMILIES))}.")
    config_class, encoder_class = ENCODER_FAMILIES[family]
    try:
        return encoder_class(config_class(**config))
    except TypeError as error:
        raise ConfigError(f"Encoder family {family!r} does not take these settings: {error}.") from None


__all__ = ["ENCODER_FAMILIES", "JointEncoder", "MiniEncoder", "MiniEncoderConfig", "build_encoder"]
