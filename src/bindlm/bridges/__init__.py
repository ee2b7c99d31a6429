"""Bridges: `(B, D_joint)` joint embeddings, or `(B, P, D)` patches, to `(B, N, D_lm)` conditions."""

from bindlm.bridges.absent import AbsentBridge, AbsentBridgeConfig
from bindlm.bridges.base import Bridge
from bindlm.bridges.bind_network import BindBlock, BindNetwork, BindNetworkConfig, BindNorm
from bindlm.bridges.linear import LinearBridge, LinearConfig
from bindlm.bridges.mlp import MLPBridge, MLPConfig
from bindlm.bridges.registry import BRIDGES, build_bridge
from bindlm.bridges.visual_query import VisualQueryBridge, VisualQueryConfig

__all__ = [
    "BRIDGES",
    "AbsentBridge",
    "AbsentBridgeConfig",
    "BindBlock",
    "BindNetwork",
    "BindNetworkConfig",
    "BindNorm",
    "Bridge",
    "LinearBridge",
    "LinearConfig",
    "MLPBridge",
    "MLPConfig",
    "VisualQueryBridge",
    "VisualQueryConfig",
    "build_bridge",
]
