"""Which pairs stand in which batch: a pure function of the seed and the step, so that a run can go on anywhere."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bindlm.binding.anchor import AnchorBank
from bindlm.binding.pairs import ABSENT, PairTable
from bindlm.binding.recipe import Masking, ObjectiveRecipe
from bindlm.binding.values import MediaValues

__all__ = ["BatchPlan", "Batches", "nearest_others"]

Numbers = NDArray[np.int64]
_ORDER, _BATCH, _ROW = 1, 2, 3
"""Uses of the seed, so that no two draw the same numbers."""
_ROWS_AT_ONCE = 2048


class BatchPlan:
    """Rows of every batch of a run.

    An epoch is a new permutation cut into whole batches; the few rows left over are others every time. With hard
    negatives a batch is drawn rows and, for each, some of the rows with the nearest other anchors.

    Args:
        num_rows: N, pairs to train on.
        batch_size: rows of a batch; at most N.
        seed: of the permutations.
        neighbours: `(N, M)`, for each row others that are hard to tell from it; None for none.
        num_hard: how many of them come with each drawn row.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, neighbours: Numbers | None = None, num_hard: int = 0
    ) -> None:
        self.num_rows, self.batch_size, self.seed = num_rows, min(batch_size, num_rows), seed
        self._neighbours, self._num_hard = neighbours, num_hard if neighbours is not None else 0
        self.num_drawn = max(1, self.batch_size // (1 + self._num_hard))
        self.steps_per_epoch = max(1, num_rows // self.num_drawn)

    def rows(self, step: int) -> Numbers:
        """`(B,)`, all different."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.num_rows)
        drawn = order[place * self.num_drawn : (place + 1) * self.num_drawn]
        if self._neighbours is None or self.num_drawn == self.batch_size:
            return drawn
        random = np.random.default_rng([self.seed, _BATCH, step])
        near = random.permuted(self._neighbours[drawn], axis=1)[:, : self._num_hard].flatten()
        # then whatever comes, where neighbours of two rows are the same
        candidates = np.concatenate([drawn, near, random.permutation(self.num_rows)])
        _, first = np.unique(candidates, return_index=True)
        return candidates[np.sort(first)[: self.batch_size]]


def nearest_others(centres: Tensor, keys: Tensor, count: int) -> Numbers:
    """For each row the rows with the nearest other anchors.

    Anchors do not move, so neither do neighbours, and a run that resumes needs nothing to be mined again.

    Args:
        centres: `(N, D)`, unit length: each row's anchor.
        keys: `(N, K)`; rows with an equal key of 0 or more are no others.
        count: how many, at most.

    Returns:
        `(N, count)`, the nearest first.
    """
    count = min(count, len(centres) - 1)
    rows = []
    for start in range(0, len(centres), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        scores = centres[part] @ centres.T  # (n, N)
        for own, others in zip(keys[part].T, keys.T, strict=True):
            scores.masked_fill_((own[:, None] == others[None]) & (own[:, None] >= 0), -2.0)
        scores[torch.arange(len(scores)), torch.arange(start, start + len(scores))] = -3.0
        rows.append(scores.topk(count, dim=1).indices)
    return torch.cat(rows).numpy()


class Batches(Dataset[dict[str, Tensor]]):
    """Finished batches by number; of W processes, number i is process i % W's share of step i // W.

    An item holds `values (b, ...)`, `anchors (b, T, D)` of T anchor columns, `is_present (b, T)`, `keys (b, T, 3)`,
    and where wanted `negatives (N, T, D)` with `negative_keys (N, T, 3)`.

    Args:
        pairs: all of them.
        rows: `(N,)` of the pairs to train on.
        banks: embeddings of each anchor column.
        values: the media.
        objective: masking and negatives.
        batch_size: over all processes.
        seed: of everything.
        num_steps: how long the run is.
        num_processes: W.
    """

    def __init__(
        self,
        pairs: PairTable,
        rows: Numbers,
        banks: list[AnchorBank],
        values: MediaValues,
        objective: ObjectiveRecipe,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        num_processes: int = 1,
    ) -> None:
        self.pairs, self.rows_in_table, self.banks, self.values = pairs, rows, banks, values
        self.objective, self.seed, self.num_steps, self.num_processes = objective, seed, num_steps, num_processes
        self.keys = row_keys(pairs, objective.mask_duplicates)[rows]  # (N, T, 3)
        hard, neighbours = objective.hard_negatives, None
        if hard and len(rows) > 2:
            neighbours = nearest_others(self._centres(), torch.from_numpy(self.keys[:, 0]), 4 * hard)
        self.plan = BatchPlan(len(rows), batch_size, seed, neighbours, hard)

    def __len__(self) -> int:
        return self.num_steps * self.num_processes

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        step, process = divmod(number, self.num_processes)
        drawn = self.plan.rows(step)
        share = len(drawn) // self.num_processes
        mine = drawn[process * share : (process + 1) * share]
        randoms = [np.random.default_rng([self.seed, _ROW, step, int(row)]) for row in mine]
        views = np.array([int(random.integers(1 << 30)) for random in randoms])
        rows = self.rows_in_table[mine]
        sides = [side.rows[rows] for side in self.pairs.sides]
        item = {
            "values": self.values.changed(self.pairs.medium[rows].tolist(), randoms),
            "anchors": _joined([bank.get(side, views) for bank, side in zip(self.banks, sides, strict=True)]),
            "is_present": torch.from_numpy(np.stack([side != ABSENT for side in sides], axis=1)),
            "keys": torch.from_numpy(self.keys[mine]),
        }
        return item | self._negatives(step, drawn)

    def _negatives(self, step: int, in_batch: Numbers) -> dict[str, Tensor]:
        """Anchors of rows outside the batch; the same for all processes."""
        if not self.objective.extra_negatives:
            return {}
        random = np.random.default_rng([self.seed, _BATCH, step, 1])
        outside = np.setdiff1d(np.arange(len(self.keys)), in_batch)
        count = min(self.objective.extra_negatives, len(outside))
        if not count:
            return {}
        drawn = random.choice(outside, count, replace=False)
        rows, views = self.rows_in_table[drawn], random.integers(1 << 30, size=count)
        sides = [side.rows[rows] for side in self.pairs.sides]
        return {
            "negatives": _joined([bank.get(side, views) for bank, side in zip(self.banks, sides, strict=True)]),
            "negative_keys": torch.from_numpy(self.keys[drawn]),
        }

    def _centres(self) -> Tensor:
        """`(N, D)`: the first anchor of each row; where it has none, its first that is there."""
        centres = torch.zeros(len(self.rows_in_table), self.banks[0].dim)
        for bank, side in zip(reversed(self.banks), reversed(self.pairs.sides), strict=True):
            numbers = side.rows[self.rows_in_table]
            has = numbers != ABSENT
            centres[torch.from_numpy(has)] = bank.centres(numbers[has])
        return F.normalize(centres, dim=-1)


def row_keys(pairs: PairTable, masking: Masking) -> Numbers:
    """`(N, T, 3)`: of each row and anchor column the medium, the anchor and the label; -1 where it does not count."""
    keys = np.full((len(pairs), len(pairs.sides), 3), ABSENT, dtype=np.int64)
    if masking != Masking.NONE:
        keys[:, :, 0] = pairs.medium[:, None]
        keys[:, :, 1] = np.stack([side.rows for side in pairs.sides], axis=1)
    if masking == Masking.LABEL:
        keys[:, :, 2] = pairs.label[:, None]
    return keys


def _joined(columns: list[Any]) -> Tensor:
    return torch.from_numpy(np.stack(columns, axis=1))  # (B, T, D)
