"""Bridges: `(B, D_joint)` joint embeddings to `(B, N, D_lm)` conditions."""

from bindlm.bridges.bind_network import BindBlock, BindNetwork, BindNetworkConfig

__all__ = ["BindBlock", "BindNetwork", "BindNetworkConfig"]
