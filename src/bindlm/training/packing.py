"""Samples of many lengths in few rows, so that almost no token is padding and no sample sees another.

Packed samples are kept apart by `position_ids` alone: where these do not go up by one, transformers begins a new block
of its attention mask. That holds without an attention mask and without a cache, so calls need `use_cache=False`.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bindlm.training.render import IGNORED

__all__ = ["Packable", "collate_packed", "collate_padded", "pack_rows", "spread"]

_SHARES = (1.0, 0.75, 0.5)
"""Row lengths that are tried, as shares of the longest allowed: where samples of two groups may not share a row, the
emptier group's padding shrinks with the rows."""
_GOOD_FILL = 0.97
"""Share of tokens that are not padding at which no shorter rows are tried."""


@dataclass(frozen=True)
class Packable:
    """One sample, ready for a row."""

    input_ids: NDArray[np.int32]
    """`(T,)`."""
    is_target: NDArray[np.bool_]
    """`(T,)`; the first is False."""
    media_row: int = -1
    """Which of the batch's joint embeddings it has; -1 for none."""


def spread(lengths: NDArray[np.integer], num_bins: int) -> list[list[int]]:
    """Longest first, each into the emptiest bin: bins of near-equal sums, within a third of the best possible.

    Args:
        lengths: `(N,)`.
        num_bins: bins; some stay empty where there are fewer samples.

    Returns:
        Indices into `lengths` for each bin. Ties go to the earlier sample and the earlier bin.
    """
    return _spread(lengths.tolist(), np.argsort(-lengths, kind="stable").tolist(), num_bins)[0]


def _spread(lengths: list[int], order: list[int], num_bins: int) -> tuple[list[list[int]], int]:
    """Bins, and the sum of the fullest."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, number) for number in range(num_bins)]
    for index in order:
        load, number = heap[0]
        bins[number].append(index)
        heapq.heapreplace(heap, (load + lengths[index], number))
    return bins, max(heap)[0]


def pack_rows(
    lengths: NDArray[np.integer], groups: NDArray[np.integer] | NDArray[np.bool_], row_tokens: int
) -> list[list[int]]:
    """Deal samples into rows of at most max(row_tokens, longest sample) tokens, with as little padding as can be.

    Rows of a group are levelled rather than filled to the brim: all rows of a batch are as long as the longest, and
    level rows leave less padding than full ones and a rest.

    Args:
        lengths: `(N,)` tokens of each sample, at least 1.
        groups: `(N,)`; samples of different groups never share a row.
        row_tokens: wanted length of a row.

    Returns:
        Indices of the samples of each row; rows of one group stand together.
    """
    if not len(lengths):
        return []
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    longest, total = int(lengths.max()), int(lengths.sum())
    limit = max(row_tokens, longest)
    best: list[list[int]] = []
    smallest = 0
    for share in _SHARES:
        levelled = [_level(lengths, member, max(int(limit * share), longest)) for member in members]
        rows = [row for own, _ in levelled for row in own]
        area = len(rows) * max(width for _, width in levelled)
        if not best or area < smallest:
            best, smallest = rows, area
        if total >= _GOOD_FILL * smallest:
            break
    return best


def _level(lengths: NDArray[np.integer], member: NDArray[np.integer], limit: int) -> tuple[list[list[int]], int]:
    """Rows of one group, as few as `spread` can keep within `limit`, and the length of the longest."""
    own = lengths[member]
    values, order = own.tolist(), np.argsort(-own, kind="stable").tolist()
    num_rows = -(-sum(values) // limit)
    while True:
        rows, width = _spread(values, order, num_rows)
        if width <= limit:
            return [member[row].tolist() for row in rows if row], width
        num_rows += 1


def collate_packed(samples: Sequence[Packable], rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows of several samples each.

    Args:
        samples: N samples.
        rows: numbers of the samples of each of R rows, as `pack_rows` gives them.
        pad_token_id: fills what is left; nothing is learned there and no sample sees it.

    Returns:
        `input_ids`, `position_ids`, `labels` `(R, T)`, and `media_rows` `(R, T)` where any sample has a medium.
        Positions start at 0 with each sample and with the padding; `labels[t]` is token t or -100, and is -100 at the
        first token of each sample, so that a shift by one inside the loss crosses no seam.
    """
    width = max(sum(len(samples[index].input_ids) for index in row) for row in rows)
    ids, positions, labels, media = _blank(len(rows), width, pad_token_id)
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            start = _place(samples[index], (ids[number], positions[number], labels[number], media[number]), start)
        positions[number, start:] = np.arange(width - start)
    return _tensors(ids, positions, labels, media)


def collate_padded(samples: Sequence[Packable], pad_token_id: int) -> dict[str, Tensor]:
    """One sample a row, padded on the right.

    Args:
        samples: R samples.
        pad_token_id: fills the rest.

    Returns:
        As `collate_packed`, and `attention_mask` `(R, T)`, 1 where there is a token.
    """
    width = max(len(sample.input_ids) for sample in samples)
    ids, positions, labels, media = _blank(len(samples), width, pad_token_id)
    for number, sample in enumerate(samples):
        _place(sample, (ids[number], positions[number], labels[number], media[number]), 0)
    lengths = np.array([[len(sample.input_ids)] for sample in samples])
    mask = torch.from_numpy((np.arange(width) < lengths).astype(np.int64))
    return {**_tensors(ids, positions, labels, media), "attention_mask": mask}


_Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _blank(num_rows: int, width: int, pad_token_id: int) -> _Row:
    shape = (num_rows, width)
    return (
        np.full(shape, pad_token_id, np.int64),
        np.zeros(shape, np.int64),
        np.full(shape, IGNORED, np.int64),
        np.full(shape, -1, np.int64),
    )


def _place(sample: Packable, row: _Row, start: int) -> int:
    """Write one sample into a row from `start`; returns where the next begins."""
    ids, positions, labels, media = row
    assert not sample.is_target[0], "the first token of a sample would be learned from the sample before"
    end = start + len(sample.input_ids)
    ids[start:end] = sample.input_ids
    positions[start:end] = np.arange(end - start)
    labels[start:end] = np.where(sample.is_target, sample.input_ids, IGNORED)
    media[start:end] = sample.media_row
    return end


def _tensors(
    ids: NDArray[np.int64], positions: NDArray[np.int64], labels: NDArray[np.int64], media: NDArray[np.int64]
) -> dict[str, Tensor]:
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
    if (media >= 0).any():
        batch["media_rows"] = media
    return {name: torch.from_numpy(values) for name, values in batch.items()}
