"""Small towers that bring a new sense into a joint space that is there already."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bindlm.encoders.towers.aisfx import AisfxAdapter, AisfxAdapterConfig
from bindlm.encoders.towers.base import AdapterTower, Tower
from bindlm.encoders.towers.imu import ImuConfig, ImuTower
from bindlm.encoders.towers.lora import LoraTower, LoraTowerConfig
from bindlm.encoders.towers.mel import MelCnn, MelCnnConfig, MelTransformer, MelTransformerConfig
from bindlm.encoders.towers.point import PointTransformer, PointTransformerConfig
from bindlm.encoders.towers.text import TextAdapter, TextAdapterConfig
from bindlm.encoders.towers.views import ViewsAdapter, ViewsAdapterConfig
from bindlm.encoders.towers.vit import Vit, VitConfig
from bindlm.errors import ConfigError

__all__ = ["TOWER_KINDS", "AdapterTower", "Tower", "TowerKind", "build_tower", "tower_settings"]


@dataclass(frozen=True)
class TowerKind:
    """One row of the table."""

    config: type[Any]
    """Its dataclass."""
    build: Callable[[Any], Tower]
    """From that to a tower with fresh weights."""


TOWER_KINDS: dict[str, TowerKind] = {
    "mel_transformer": TowerKind(MelTransformerConfig, MelTransformer),
    "mel_cnn": TowerKind(MelCnnConfig, MelCnn),
    "point_transformer": TowerKind(PointTransformerConfig, PointTransformer),
    "vit": TowerKind(VitConfig, Vit),
    "imu": TowerKind(ImuConfig, ImuTower),
    "text_adapter": TowerKind(TextAdapterConfig, TextAdapter),
    "aisfx_adapter": TowerKind(AisfxAdapterConfig, AisfxAdapter),
    "views_adapter": TowerKind(ViewsAdapterConfig, ViewsAdapter),
    "lora": TowerKind(LoraTowerConfig, LoraTower),
}
"""Kind of tower to its row. A new kind is one row and one file."""


def build_tower(kind: str, **settings: Any) -> Tower:
    """A tower with fresh weights.

    Args:
        kind: a row of `TOWER_KINDS`.
        **settings: fields of its config; those not given take their defaults.

    Raises:
        ConfigError: unknown kind or setting, or an impossible value.

    Example:
        >>> build_tower("point_transformer", width=64, num_heads=2).modality
        'point'
    """
    if kind not in TOWER_KINDS:
        raise ConfigError(f"Unknown kind of tower {kind!r}; known: {', '.join(sorted(TOWER_KINDS))}.")
    row = TOWER_KINDS[kind]
    try:
        config = row.config(**settings)
    except TypeError as error:
        raise ConfigError(f"A tower of kind {kind!r} does not take these settings: {error}.") from None
    tower = row.build(config)
    tower.kind = kind
    return tower


def tower_settings(tower: Tower) -> dict[str, Any]:
    """`{"kind": ..., **fields}`: what `build_tower` makes a tower of the same sizes from."""
    return {"kind": tower.kind, **asdict(tower.config)}
