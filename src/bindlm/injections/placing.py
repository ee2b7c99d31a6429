"""Which row, or which token, of a batch of text gets which of its conditions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError


def spread_over_rows(condition: Tensor, has_media: Tensor) -> Tensor:
    """Conditions `(M, 1, D_lm)` of the M rows that have media -> `(B, 1, D_lm)`, zero elsewhere.

    Args:
        has_media: `(B,)` bool, true M times.

    Raises:
        ConfigError: it is true another number of times.
    """
    has_media = has_media.to(device=condition.device, dtype=torch.bool)
    if int(has_media.sum()) != len(condition):
        raise ConfigError(f"has_media marks {int(has_media.sum())} rows, but there are media for {len(condition)}.")
    spread = condition.new_zeros(len(has_media), *condition.shape[1:])  # (B, 1, D_lm)
    spread[has_media] = condition
    return spread


def spread_over_tokens(condition: Tensor, media_rows: Tensor) -> Tensor:
    """Conditions `(M, 1, D_lm)` of M media -> `(B, T, D_lm)` in fp32, each token its sample's, zero where it has none.

    Args:
        media_rows: `(B, T)` whole numbers, which of the M media the sample of each token has; -1 for none.

    Raises:
        ConfigError: a number is below -1, or there is no such medium.
    """
    media_rows = media_rows.to(condition.device)
    least, most = torch.stack(torch.aminmax(media_rows)).tolist() if media_rows.numel() else (-1, -1)
    if least < -1 or most >= len(condition):
        raise ConfigError(
            f"media_rows holds numbers from {least} to {most}, but there are {len(condition)} media: expected -1, for "
            f"none, to {len(condition) - 1}."
        )
    # In fp32 whatever the bridge gave: backward sums over all tokens of a medium, one at a time on a CPU, and in
    # bfloat16 a sum stands still once it is 256 times its next term.
    table = torch.cat([condition.new_zeros(1, condition.shape[-1]), condition.flatten(1)]).float()  # (1 + M, D_lm)
    return F.embedding(media_rows + 1, table, padding_idx=0)


def check_media_rows(media_rows: Tensor, tokens: Tensor) -> None:
    """Refuse `media_rows` that are not one whole number for each of the tokens `(B, T, …)`.

    Raises:
        ConfigError: another shape, or no whole numbers.
    """
    if media_rows.shape != tokens.shape[:2]:
        raise ConfigError(
            f"media_rows must have one number for each token, {tuple(tokens.shape[:2])}, got "
            f"{tuple(media_rows.shape)}."
        )
    if media_rows.dtype == torch.bool or media_rows.is_floating_point() or media_rows.is_complex():
        raise ConfigError(
            f"media_rows must be whole numbers, got {media_rows.dtype}; to say only which rows have media, use "
            "has_media."
        )


def counted_positions(attention_mask: Tensor | None, tokens: Tensor | None) -> Tensor | None:
    """Places in the text `(B, T)`, padding not counted; None where nothing says what is padding."""
    if attention_mask is None or attention_mask.ndim != 2 or tokens is None:
        return None
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]


def leave_out_the_cache(kwargs: dict[str, Any], *, is_packed: bool) -> None:
    """transformers tells packed samples apart only without a key-value cache, and makes one unless told not to."""
    if kwargs.get("past_key_values") is None and not kwargs.get("use_cache"):
        kwargs["use_cache"] = False
    elif is_packed:
        raise ConfigError("media_rows are for training: with a key-value cache, packed samples see each other.")
