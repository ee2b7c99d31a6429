"""How well media and anchors find each other: retrieval, and classification by labels. Ties help nobody.

scores = retrieval(sounds, pictures, target)  # target[i]: which picture is sound i's
scores.recall[1], scores.chance[1], scores.median_rank
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from bindlm.errors import ConfigError

__all__ = ["ClassificationScores", "RetrievalScores", "classification", "ranks", "retrieval"]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class RetrievalScores:
    """Of Q queries among G candidates."""

    recall: dict[int, float]
    """k -> share of the queries with a right candidate among the first k, 0 to 1; expected over the order of ties."""
    chance: dict[int, float]
    """k -> the same for a random order."""
    median_rank: float
    """Of the first right candidate, from 1; ties count as the middle of their places."""
    median_rank_by_chance: float
    """(G + 1) / (R + 1) with R right candidates to a query, which is the mean rank of a random order."""
    num_queries: int
    num_candidates: int

    def as_json(self) -> dict[str, Any]:
        """In plain numbers."""
        recall = {f"R@{k}": {"score": round(v, 4), "chance": round(self.chance[k], 4)} for k, v in self.recall.items()}
        rank = {"score": self.median_rank, "chance": round(self.median_rank_by_chance, 2)}
        return {
            **recall,
            "median_rank": rank,
            "num_queries": self.num_queries,
            "num_candidates": self.num_candidates,
        }


@dataclass(frozen=True)
class ClassificationScores:
    """Of Q media among C classes."""

    top: dict[int, float]
    """k -> share of the media with their class among the first k, 0 to 1; expected over the order of ties."""
    chance: dict[int, float]
    """k -> the same for a random order."""
    mean_of_classes: float
    """Top-1 of each class that has media, averaged, so that large classes count no more than small ones."""
    num_media: int
    num_classes: int

    def as_json(self) -> dict[str, Any]:
        """In plain numbers."""
        top = {f"top-{k}": {"score": round(v, 4), "chance": round(self.chance[k], 4)} for k, v in self.top.items()}
        return {
            **top,
            "mean_of_classes": round(self.mean_of_classes, 4),
            "num_media": self.num_media,
            "num_classes": self.num_classes,
        }


def retrieval(query: Tensor, gallery: Tensor, target: Tensor, *, ks: Sequence[int] = (1, 5, 10)) -> RetrievalScores:
    """Rank all candidates for each query by inner product.

    Args:
        query: `(Q, D)`, unit length.
        gallery: `(G, D)`, unit length, the candidates.
        target: `(Q,)`, the number of each query's right candidate; or `(Q, G)` of bool, where there may be several:
            the first of them counts.
        ks: how far down the list recall looks.

    Raises:
        ConfigError: shapes do not fit, there is nothing to rank, or a query has no right candidate.
    """
    better, equal, right = ranks(query, gallery, target)
    rank = 1 + better + equal / 2
    return RetrievalScores(
        recall={k: _hits(better, equal, k).mean().item() for k in ks},
        chance={k: _chance(right, len(gallery), k) for k in ks},
        median_rank=rank.median().item() if len(rank) % 2 else rank.quantile(0.5).item(),
        median_rank_by_chance=((len(gallery) + 1) / (right.double() + 1)).mean().item(),
        num_queries=len(query),
        num_candidates=len(gallery),
    )


def classification(
    embeddings: Tensor, classes: Tensor, target: Tensor, *, ks: Sequence[int] = (1, 5)
) -> ClassificationScores:
    """Give each medium the class whose prototype is nearest.

    Args:
        embeddings: `(Q, D)`, unit length.
        classes: `(C, D)`, unit length: a prototype each.
        target: `(Q,)`, the number of each medium's class.
        ks: how many guesses a medium has.

    Raises:
        ConfigError: shapes do not fit, or there is nothing to choose.
    """
    better, equal, right = ranks(embeddings, classes, target)
    first = _hits(better, equal, 1)
    seen = torch.zeros(len(classes), dtype=first.dtype).scatter_add_(0, target.cpu(), torch.ones_like(first))
    hits = torch.zeros_like(seen).scatter_add_(0, target.cpu(), first)
    return ClassificationScores(
        top={k: _hits(better, equal, k).mean().item() for k in ks},
        chance={k: _chance(right, len(classes), k) for k in ks},
        mean_of_classes=(hits[seen > 0] / seen[seen > 0]).mean().item(),
        num_media=len(embeddings),
        num_classes=len(classes),
    )


def ranks(query: Tensor, gallery: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each query, how many wrong candidates are nearer than the best right one, and how many are just as near.

    Args:
        query: `(Q, D)`.
        gallery: `(G, D)`.
        target: `(Q,)` numbers, or `(Q, G)` of bool.

    Returns:
        `(Q,)` wrong ones before it, `(Q,)` wrong ones level with it, `(Q,)` right ones; fp64 on the CPU.

    Raises:
        ConfigError: as `retrieval`.
    """
    is_right = _is_right(query, gallery, target)
    counts = []
    for start in range(0, len(query), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        scores = (query[rows].float() @ gallery.float().T).cpu()  # (q, G)
        right = is_right[rows]
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # (q, 1)
        better = ((scores > best) & ~right).sum(dim=1)
        equal = ((scores == best) & ~right).sum(dim=1)
        counts.append(torch.stack([better, equal, right.sum(dim=1)]))
    better, equal, num_right = torch.cat(counts, dim=1).double()
    return better, equal, num_right


def _is_right(query: Tensor, gallery: Tensor, target: Tensor) -> Tensor:
    """`(Q, G)` of bool, on the CPU."""
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ConfigError(
            f"Queries (Q, D) and candidates (G, D) must share a width, got {tuple(query.shape)} and "
            f"{tuple(gallery.shape)}."
        )
    if not len(query) or not len(gallery):
        raise ConfigError(f"There is nothing to rank: {len(query)} queries, {len(gallery)} candidates.")
    target = target.cpu()
    if target.dtype == torch.bool and target.shape == (len(query), len(gallery)):
        if not target.any(dim=1).all():
            raise ConfigError("A query has no right candidate; leave it out.")
        return target
    if target.shape != (len(query),) or target.is_floating_point() or target.dtype == torch.bool:
        raise ConfigError(f"target must be (Q,) numbers or (Q, G) of bool, got {tuple(target.shape)} {target.dtype}.")
    if int(target.min()) < 0 or int(target.max()) >= len(gallery):
        raise ConfigError(f"target names candidate {int(target.max())}, and there are {len(gallery)}, from 0.")
    return torch.zeros(len(query), len(gallery), dtype=torch.bool).scatter_(1, target[:, None], True)


def _hits(better: Tensor, equal: Tensor, k: int) -> Tensor:
    """Chance of each query to have its right candidate among the first k, when ties are ordered by lot."""
    return ((k - better) / (equal + 1)).clamp(0.0, 1.0)


def _chance(right: Tensor, num_candidates: int, k: int) -> float:
    """Of a random order to have one of the right candidates among the first k, averaged over the queries."""
    k = min(k, num_candidates)
    all_orders = comb(num_candidates, k)
    counts, times = right.long().unique(return_counts=True)
    missed = sum(
        comb(num_candidates - count, k) / all_orders * time
        for count, time in zip(counts.tolist(), times.tolist(), strict=True)
    )
    return 1 - missed / len(right)
