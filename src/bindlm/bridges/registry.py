"""Every bridge by the word that a configuration names it with."""

from typing import Any

from bindlm.bridges.absent import AbsentBridgeConfig
from bindlm.bridges.base import Bridge
from bindlm.bridges.bind_network import BindNetworkConfig
from bindlm.bridges.linear import LinearConfig
from bindlm.bridges.mlp import MLPConfig
from bindlm.bridges.visual_query import VisualQueryConfig
from bindlm.errors import ConfigError

__all__ = ["BRIDGES", "build_bridge"]

BRIDGES: dict[str, Any] = {
    "bind_network": BindNetworkConfig,
    "linear": LinearConfig,
    "mlp": MLPConfig,
    "visual_query": VisualQueryConfig,
    "none": AbsentBridgeConfig,
}


def build_bridge(kind: str = "bind_network", **settings: Any) -> Bridge:
    """A bridge with fresh weights.

    Args:
        kind: one of `BRIDGES`.
        **settings: fields of its configuration.

    Raises:
        ConfigError: there is no such kind, or its configuration has no such field or value.
    """
    if kind not in BRIDGES:
        raise ConfigError(f"There is no bridge {kind!r}; known are {', '.join(BRIDGES)}.")
    try:
        bridge: Bridge = BRIDGES[kind](**settings).build()
    except TypeError as error:
        raise ConfigError(f"Settings {settings} do not fit the bridge {kind!r}: {error}.") from error
    return bridge
