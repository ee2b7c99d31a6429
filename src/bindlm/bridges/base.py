"""What the bridges share: their type, and the widths they take and give."""

from typing import Any

import torch
from torch import Tensor, nn

from bindlm.errors import ConfigError

__all__ = ["Bridge", "as_tokens", "check_sizes"]


class Bridge(nn.Module):
    """From joint embeddings `(B, D_joint)`, or patches `(B, P, D)`, to a condition `(B, N, D_lm)`.

    Attributes:
        config: its sizes, with at least `input_dim` and `output_dim`.
    """

    config: Any

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; fp32 for one without weights."""
        first = next(self.parameters(), None)
        return torch.float32 if first is None else first.dtype


def check_sizes(config: Any, *fields: str) -> None:
    """Refuse sizes below 1.

    Raises:
        ConfigError: with the name of the field.
    """
    for field in fields:
        value = getattr(config, field)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{type(config).__name__}.{field} must be a number from 1 up, got {value!r}.")


def as_tokens(features: Tensor, width: int, bridge: str) -> Tensor:
    """`(B, D)` -> `(B, 1, D)`; `(B, N, D)` as it is.

    Raises:
        ConfigError: another shape, or another width than the bridge was built for.
    """
    if features.ndim not in (2, 3) or features.shape[-1] != width:
        raise ConfigError(
            f"{bridge} takes features (B, {width}) or (B, N, {width}), got {tuple(features.shape)}. Were they made by "
            "the encoder this model was trained with?"
        )
    return features.unsqueeze(1) if features.ndim == 2 else features
