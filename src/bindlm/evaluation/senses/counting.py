"""Right answers, counted: by way of answering, by group, and by chance."""

from collections import Counter
from collections.abc import Mapping, Sequence

from bindlm.evaluation.scoring import names_any
from bindlm.evaluation.senses.exam import ALL, Exam, Item

ANOTHER = "another medium's answer"
"""Chance: the model's answers dealt out at random, in the mean over all ways to deal them."""


def score_ways(exam: Exam, ways: Mapping[str, Sequence[str]]) -> dict[str, dict[str, dict[str, float]]]:
    """Right answers by way and group; of `ANOTHER` their expected number."""
    groups = (ALL, *exam.groups, *exam.categories)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for way, texts in ways.items():
        strict = [names_any(text, item.acceptable) for item, text in zip(exam.items, texts, strict=True)]
        lenient = [names_any(text, all_names(item)) for item, text in zip(exam.items, texts, strict=True)]
        scores[way] = {group: _sums(exam, group, strict, lenient) for group in groups}
    dealt = [_dealt(exam.items, ways["model"], is_lenient) for is_lenient in (False, True)]
    scores[ANOTHER] = {group: _sums(exam, group, *dealt) for group in groups}
    return scores


def _sums(exam: Exam, group: str, strict: Sequence[float], lenient: Sequence[float]) -> dict[str, float]:
    numbers = exam.numbers_of(group)
    return {
        "strict": round(sum(strict[number] for number in numbers), 2),
        "lenient": round(sum(lenient[number] for number in numbers), 2),
        "media": len(numbers),
        "names": len({exam.items[number].key for number in numbers}),
        "names right once": len({exam.items[number].key for number in numbers if strict[number] == 1}),
    }


def _dealt(items: Sequence[Item], texts: Sequence[str], is_lenient: bool) -> list[float]:
    """For each item the share of the other items' answers that would be right for it."""
    counts = Counter(texts)
    shares = []
    for item, text in zip(items, texts, strict=True):
        names = all_names(item) if is_lenient else item.acceptable
        others = counts - Counter([text])
        shares.append(sum(times for each, times in others.items() if names_any(each, names)) / max(1, len(items) - 1))
    return shares


def all_names(item: Item) -> tuple[str, ...]:
    """What the lenient count accepts."""
    return (*item.acceptable, *item.parents)
