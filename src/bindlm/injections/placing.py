"""Which row, or which token, of a batch of text gets which of its conditions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.injections.base import Injection


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


def spread_over_places(condition: Tensor, media_rows: Tensor, is_soft: Tensor) -> Tensor:
    """Soft tokens `(M, N, D_lm)` of M media -> those of each row of text in reading order, `(B, S, D_lm)`.

    Args:
        media_rows: `(B, T)` whole numbers, which of the M media the sample of each token has; -1 for none.
        is_soft: `(B, T)` bool, the placeholders: N in a sample with a medium, none in others.

    Returns:
        In fp32, as `spread_over_tokens`; zeros behind the soft tokens of rows that have fewer.

    Raises:
        ConfigError: there is no such medium, or a sample has another number of placeholders.
    """
    count = condition.shape[1]
    media, is_soft = media_rows.to(condition.device), is_soft.to(condition.device)
    ordinals = is_soft.cumsum(dim=1)  # (B, T), 1 for the first of a row
    own = media[is_soft]  # of all rows, in reading order
    counts = ordinals[:, -1]
    fits = not bool((counts % count).any()) and bool((own.view(-1, count) == own[::count, None]).all())
    if not fits or bool(((own < 0) | (own >= len(condition))).any()):
        raise ConfigError(
            f"Of {len(condition)} media with {count} soft tokens each, media_rows and input_ids must name one, and "
            f"hold {count} placeholders, for every sample that has a medium; the rows hold {counts.tolist()}."
        )
    table = torch.cat(
        [condition.new_zeros(1, condition.shape[-1]), condition.flatten(0, 1)]
    ).float()  # (1 + M N, D_lm)
    rows = is_soft.nonzero()[:, 0]
    order = ordinals[is_soft] - 1
    index = media.new_zeros(len(media), max(1, int(counts.max())))  # (B, S)
    index[rows, order] = 1 + own * count + order % count
    return F.embedding(index, table, padding_idx=0)


def spread_in_reading_order(condition: Tensor, is_soft: Tensor) -> Tensor:
    """Soft tokens `(M, N, D_lm)` of the M media of a batch, row after row, -> `(B, S, D_lm)`: those of each row.

    Where each row has one medium, or the placeholders are not M times N, they stay as they are.

    Args:
        is_soft: `(B, T)` bool, the placeholders.

    Raises:
        ConfigError: a medium would begin in one row and end in the next.
    """
    num_media, count = condition.shape[:2]
    counts = is_soft.sum(dim=1)
    if int(counts.sum()) != num_media * count or bool((counts == count).all()):
        return condition
    numbers = is_soft.new_full(is_soft.shape, -1, dtype=torch.long)
    numbers[is_soft] = torch.arange(num_media * count, device=is_soft.device) // count
    return spread_over_places(condition, numbers, is_soft).to(condition.dtype)


def check_condition(
    injection: Injection, condition: Tensor, *, num_rows: int, width: int, media_rows: Tensor | None = None
) -> None:
    """Refuse a condition that an injection cannot give to a text.

    Args:
        condition: `(B, N, D_lm)`; of M media with `media_rows`.
        num_rows: B.
        width: D_lm.

    Raises:
        ConfigError: another shape, or the injection is on no language model.
    """
    counts = injection.condition_tokens
    has_places = injection.placeholder_id is not None
    if media_rows is not None and not has_places and (counts is None or max(counts) > 1):
        raise ConfigError("media_rows are for injections of one vector a medium; pack no samples for this one.")
    has_count = condition.ndim == 3 and (counts is None or condition.shape[1] in counts)
    fits = has_count and condition.shape[-1] == width
    if not fits or (media_rows is None and len(condition) not in (1, num_rows)):
        count = "S" if counts is None else " or ".join(map(str, counts))
        wanted = (
            f"The conditions of M media must be (M, {count}, {width})"
            if media_rows is not None
            else f"The condition of {num_rows} rows of text must be ({num_rows}, {count}, {width}), or "
            f"(1, {count}, {width}) for all of them"
        )
        raise ConfigError(
            f"{wanted}, got {tuple(condition.shape)}. Where some rows have media, say which with has_media."
        )
    if not injection.is_attached:
        raise ConfigError("The injection is not attached: a condition would do nothing. Call attach() first.")


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
