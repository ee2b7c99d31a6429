"""Measure one sense: retrieval, and answers beside simpler ways to find out what a medium is of."""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.evaluation.entries import cache_entries
from bindlm.evaluation.scoring import find_faults, names_any, words_of
from bindlm.evaluation.senses.answers import (
    MAX_NEW_TOKENS,
    answer_all,
    cache_without,
    check_entries,
    embed_all,
    nearest_names,
)
from bindlm.evaluation.senses.counting import all_names, score_ways
from bindlm.evaluation.senses.exam import ALL, Exam
from bindlm.evaluation.senses.finding import find_pictures, find_prototypes
from bindlm.space.entry_names import NamedEntry

ELSEWHERE, NOWHERE = "name known from elsewhere", "name not known from elsewhere"
"""Whether another entry of the cache, which is what the language model was trained to name, carries a right name."""


@dataclass(frozen=True)
class Asking:
    """How media are asked about."""

    question: str = "What is this?"
    """Asked of each medium."""
    batch_size: int = 16
    """Media, and answers, at once."""
    neighbours: int = 1000
    """Training media, drawn at random, among which the nearest is looked for; 0 leaves that out."""


def measure_sense(bound: Any, exam: Exam, asking: Asking | None = None, *, show: bool = False) -> dict[str, Any]:
    """Ask about every medium of an exam and score each way of answering.

    Args:
        bound: a bound model with its processor, such as `bindlm.load` gives.
        exam: of a sense that it has.
        asking: how; None for the defaults.
        show: print each answer on stderr.

    Returns:
        `retrieval`: scores by direction; `ways`: by way and group, right answers (strict, lenient), media, names, and
        names that were right at least once; `faults`: of the model's answers; `answers`: each answer by each way.

    Raises:
        ConfigError: the model lacks the sense.
        MediaError: a medium cannot be used.
    """
    asking = asking or Asking()
    entries = cache_entries(bound)
    check_entries(bound.cache, entries)
    own = own_entries(exam, entries)
    exam = by_what_is_known(exam, entries, own)
    media = embed_all(bound, exam.sense, [item.medium for item in exam.items], asking.batch_size)
    paths = list(dict.fromkeys(path for item in exam.items for path in item.pictures))
    pictures = embed_all(bound, "image", paths, asking.batch_size)
    found: dict[str, Any] = {}
    if paths:
        found = find_pictures(exam.items, media, paths, pictures)
    elif exam.entries_of is not None and entries:
        found = find_prototypes(exam, media, bound.cache.keys, entries)
    ways = _ways(bound, exam, asking, media, _first_pictures(exam, paths, pictures), entries, own)
    if show:
        for item, text in zip(exam.items, ways["model"], strict=True):
            print(f"{item.label:>24}  {text}", file=sys.stderr)
    return {
        "sense": exam.sense,
        "groups": [ALL, *exam.groups],
        "categories": list(exam.categories),
        "own entries": len(own),
        "retrieval": found,
        "ways": score_ways(exam, ways),
        "faults": find_faults(ways["model"], _lexicon(exam, entries)),
        "answers": [
            {"id": item.id, "label": item.label, **{way: texts[number] for way, texts in ways.items()}}
            for number, item in enumerate(exam.items)
        ],
    }


def own_entries(exam: Exam, entries: Sequence[NamedEntry]) -> list[int]:
    """Places of the cache entries that show the held-out objects themselves."""
    held_out = {item.key for item in exam.items}
    return [
        place
        for place, entry in enumerate(entries)
        if entry.source in exam.own_sources and entry.name.casefold() in held_out
    ]


def by_what_is_known(exam: Exam, entries: Sequence[NamedEntry], own: Sequence[int]) -> Exam:
    """The exam with two more groups, where it has entries of its own: is a right name known from elsewhere?"""
    if not exam.own_sources or not entries:
        return exam
    left_out = set(own)
    others = ", ".join(sorted({entry.name for place, entry in enumerate(entries) if place not in left_out}))
    items = tuple(
        replace(item, groups=(*item.groups, ELSEWHERE if names_any(others, item.acceptable) else NOWHERE))
        for item in exam.items
    )
    return replace(exam, items=items, groups=(*exam.groups, ELSEWHERE, NOWHERE))


def _ways(
    bound: Any,
    exam: Exam,
    asking: Asking,
    media: Tensor,
    pictures: Tensor,
    entries: Sequence[NamedEntry],
    own: Sequence[int],
) -> dict[str, list[str]]:
    """By each way of answering, what it says of each medium.

    Args:
        bound: the model.
        exam: N media.
        asking: how.
        media: `(N, D_joint)`.
        pictures: `(N, D_joint)`, one of each object, or `(0, D_joint)`.
        entries: of the cache, or none where their names are unknown.
        own: which of them show the held-out objects.
    """
    cache = bound.cache
    caches = {"": cache}
    if own:
        caches = caches | {", without the objects' own cache entries": cache_without(cache, own)}
    met = {how: each and each.for_senses([exam.sense]) for how, each in caches.items()}
    asked = {f"model{how}": (media, each) for how, each in met.items()}
    if cache is not None:
        asked["model, cache off"] = (media, None)
    if len(pictures):
        asked |= {f"model, shown the picture{how}": (pictures, each) for how, each in caches.items()}
    ways = {
        way: answer_all(bound, joint, each, asking.question, batch_size=asking.batch_size, desc=way)
        for way, (joint, each) in asked.items()
    }
    if entries:
        rest = [entry for place, entry in enumerate(entries) if place not in set(own)]
        ways |= {
            f"nearest cache entry{how}": nearest_names(media, each, rest if how else entries)
            for how, each in met.items()
            if each
        }
    if exam.training and asking.neighbours:
        ways["nearest training medium"] = _nearest_training(bound, exam, media, asking)
    ways["model's most frequent answer"] = [Counter(ways["model"]).most_common(1)[0][0]] * len(exam.items)
    ways["plain language model"] = [bound.ask(asking.question, max_new_tokens=MAX_NEW_TOKENS)] * len(exam.items)
    return ways


def _first_pictures(exam: Exam, paths: Sequence[Path], pictures: Tensor) -> Tensor:
    """`(N, D_joint)`, the first picture of each object; `(0, D_joint)` where there are none."""
    place = {path: number for number, path in enumerate(paths)}
    return pictures[[place[item.pictures[0]] for item in exam.items if item.pictures]]


def _nearest_training(bound: Any, exam: Exam, media: Tensor, asking: Asking) -> list[str]:
    """The label of the training medium nearest to each medium in the joint space."""
    pairs = list(exam.training)
    if len(pairs) > asking.neighbours:
        pairs = random.Random(0).sample(pairs, asking.neighbours)
    seen = embed_all(bound, exam.sense, [medium for medium, _ in pairs], asking.batch_size)
    nearest = torch.argmax(media @ seen.T, dim=1)
    return [pairs[number][1] for number in nearest.tolist()]


def _lexicon(exam: Exam, entries: Sequence[NamedEntry]) -> frozenset[str]:
    from bindlm.training.mini.vocabulary import load_vocabulary

    words = [word for entry in entries for word in (entry.name, entry.kind)]
    words += [word for row in load_vocabulary() for word in (row.name, row.kind)]
    return words_of([*words, *(word for item in exam.items for word in all_names(item))])
