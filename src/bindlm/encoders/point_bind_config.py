"""Sizes of Point-Bind: which encoder reads the cloud, and how its features come into ImageBind's space."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bindlm.encoders.i2p_mae import I2PMAEConfig
from bindlm.encoders.point_bert import PointBertConfig, check_positive, check_positive_ints
from bindlm.errors import ConfigError

_DESCRIPTIONS = {
    "about", "act", "attention", "cls_dim", "drop_path_rate", "fps", "grouping", "logit_scale", "outputs", "pooling",
    "tolerance",
}  # fmt: skip
"""Keys of published and recorded configs that say in words what the modules do anyway, or matter only in training."""

_TRUNK_WORDS = {"encoder_depths": I2PMAEConfig, "num_groups": I2PMAEConfig, "num_group": PointBertConfig}
"""Keys that tell the encoders apart."""


@dataclass(frozen=True)
class PointBindConfig:
    """A Point-Bind encoder."""

    trunk: PointBertConfig | I2PMAEConfig = field(default_factory=PointBertConfig)
    """The encoder of the cloud."""
    proj_dim: int = 512
    """Width between the encoder's features and the head."""
    out_dim: int = 1024
    """Width of the joint embedding, D_joint: ImageBind's."""
    head_norm_eps: float = 1e-6
    """Epsilon of the head's layer norm."""
    max_logit_scale: float = 100.0
    """Most that the official output's length can be."""
    num_points: int = 8192
    """Points that `preprocess` brings each cloud to; the encoder itself takes any number from the group size on."""

    def __post_init__(self) -> None:
        if not isinstance(self.trunk, (PointBertConfig, I2PMAEConfig)):
            raise ConfigError(
                f"PointBindConfig.trunk must be a PointBertConfig or an I2PMAEConfig, got {self.trunk!r}."
            )
        check_positive_ints(self, ("proj_dim", "out_dim", "num_points"))
        check_positive(self, ("head_norm_eps", "max_logit_scale"))
        if self.num_points < self.trunk.min_points:
            raise ConfigError(
                f"PointBindConfig.num_points must be at least the group size {self.trunk.min_points}, "
                f"got {self.num_points}."
            )

    @classmethod
    def point_bert(cls) -> "PointBindConfig":
        """The released size with Point-BERT, which ImageBind-LLM uses: 22.8 million parameters."""
        return cls()

    @classmethod
    def i2p_mae(cls) -> "PointBindConfig":
        """The released size with I2P-MAE, the better one at zero-shot ModelNet40: 13.4 million parameters."""
        return cls(trunk=I2PMAEConfig())

    @classmethod
    def from_dict(cls, settings: "Mapping[str, Any] | PointBindConfig") -> "PointBindConfig":
        """The config of a dictionary of settings.

        Args:
            settings: fields of this config; those of the encoder stand beside them or under `encoder` or `trunk`, and
                its keys tell which one it is. `n_points` is read as `num_points`.

        Raises:
            ConfigError: a key that no field has, or an impossible value.
        """
        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping):
            raise ConfigError(f"A Point-Bind config is a dictionary, got {type(settings).__name__}.")
        flat: dict[str, Any] = {}
        for key, value in settings.items():
            if key in ("encoder", "trunk"):
                flat |= _trunk_settings(key, value)
            elif key not in _DESCRIPTIONS:
                flat["num_points" if key == "n_points" else key] = value
        trunk_class = next((kind for word, kind in _TRUNK_WORDS.items() if word in flat), PointBertConfig)
        outer = {each.name for each in fields(cls)} - {"trunk"}
        inner = {each.name for each in fields(trunk_class)}
        convolutions: dict[str, Any] = {name: flat.pop(name) for name in ("first_conv", "second_conv") if name in flat}
        if flat.pop("qkv_bias", False):
            raise ConfigError("Point-Bind's attention has no qkv_bias, got true.")
        unknown = sorted(map(str, set(flat) - outer - inner))
        if unknown:
            raise ConfigError(
                f"A Point-Bind config has no {', '.join(unknown)}; it has {', '.join(sorted(outer | inner))}."
            )
        trunk = trunk_class(**{key: value for key, value in flat.items() if key in inner})
        _check_convolutions(trunk, convolutions)
        return cls(trunk=trunk, **{key: value for key, value in flat.items() if key in outer})


def _trunk_settings(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, (PointBertConfig, I2PMAEConfig)):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} of a Point-Bind config must be a dictionary, got {value!r}.")
    return {name: each for name, each in value.items() if name not in _DESCRIPTIONS}


def _check_convolutions(trunk: PointBertConfig | I2PMAEConfig, convolutions: dict[str, Any]) -> None:
    """The widths of the mini PointNet are fixed; a config that names others describes another model."""
    if not convolutions:
        return
    width_in, first, feature, second, width_out = (
        trunk.group_widths if isinstance(trunk, PointBertConfig) else trunk.group_widths(0)
    )
    built = {"first_conv": [width_in, first, feature], "second_conv": [2 * feature, second, width_out]}
    for name, widths in convolutions.items():
        if list(widths) != built[name]:
            raise ConfigError(f"{name} of a Point-Bind config must be {built[name]}, got {widths!r}.")
