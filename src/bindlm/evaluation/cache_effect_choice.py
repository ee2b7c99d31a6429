"""What is a setting worth on media that had no part in choosing it?"""

import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bindlm.evaluation.cache_effect import COUNTS, Setting


def choose(right: Mapping[Setting, Tensor], rows: Sequence[int]) -> Setting:
    """The setting with the most right answers on some media, strict and lenient added up.

    Among equals the one whose neighbours in the table are best, so that a lone peak does not win over a plateau; then
    the smallest alpha.
    """
    score = {setting: float(table[list(rows)].sum()) for setting, table in right.items()}

    def worth(setting: Setting) -> tuple[float, float, float]:
        beside = [
            points
            for other, points in score.items()
            if (other.weighting, other.temperature) == (setting.weighting, setting.temperature)
            and (other.alpha == setting.alpha or other.top_k == setting.top_k)
        ]
        return score[setting], statistics.fmean(beside), -setting.alpha

    return max(score, key=worth)


def choose_on_halves(
    right: Mapping[Setting, Tensor],
    keys: Sequence[str],
    fixed: Mapping[str, Tensor],
    *,
    repeats: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose on a random half, report on the other; a name is in one half only.

    Args:
        right: by setting, bool `(N, 2)`.
        keys: of each medium, its name.
        fixed: other ways of answering, the same, that choose nothing: to be compared on the same halves.
        repeats: random halves.
        seed: of these.

    Returns:
        `chosen`: how often which setting; `ways`: by way ("chosen" and those of `fixed`) and count, `mean` and
        `spread` (standard deviation over the halves) of the share of right answers on the halves that did not choose;
        `gain`: the same of the differences between "chosen" and each fixed way.
    """
    shares: dict[str, list[Tensor]] = {way: [] for way in ("chosen", *fixed)}
    counts: dict[str, int] = {}
    dice = random.Random(seed)
    for _ in range(repeats):
        names = sorted(set(keys))
        choosing = set(dice.sample(names, len(names) // 2))
        validation = [row for row, key in enumerate(keys) if key in choosing]
        test = [row for row, key in enumerate(keys) if key not in choosing]
        best = choose(right, validation)
        counts[str(best)] = counts.get(str(best), 0) + 1
        for way, table in {"chosen": right[best], **fixed}.items():
            shares[way].append(table[test].double().mean(dim=0))  # (2,)
    stacked = {way: torch.stack(rows) for way, rows in shares.items()}  # (R, 2)
    return {
        "chosen": dict(sorted(counts.items(), key=lambda row: -row[1])),
        "ways": {way: _spread(rows) for way, rows in stacked.items()},
        "gain": {way: _spread(stacked["chosen"] - rows) for way, rows in stacked.items() if way != "chosen"},
    }


def _spread(rows: Tensor) -> dict[str, dict[str, float]]:
    return {
        count: {"mean": round(column.mean().item(), 4), "spread": round(column.std(correction=0).item(), 4)}
        for count, column in zip(COUNTS, rows.T, strict=True)
    }
