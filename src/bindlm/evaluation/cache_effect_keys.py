"""How long should the keys of a cache be? A longer key wins more often, and each sense may want another length.

The mini's class prototypes are about 1 long, its icons and emoji 0.7, which photographs of things are served by best.
Whether other senses are is measured here: chosen on the validation part, reported on the test part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bindlm.evaluation.answer_book import AnswerBook
from bindlm.evaluation.cache_effect import Setting, answers_by_setting, nearest_entries, right_answers, shipped_setting
from bindlm.evaluation.cache_effect_media import Panel
from bindlm.evaluation.senses.answers import cache_without, check_entries
from bindlm.evaluation.senses.exam import Exam
from bindlm.evaluation.senses.measure import own_entries
from bindlm.space import CacheSimilarity, VisualCache
from bindlm.space.entry_names import NamedEntry

KEYS: dict[str, dict[str, float]] = {
    "as they are": {},
    "icons 1": {"furniture": 1.0, "emoji": 1.0},
    "classes 1, icons 0.8": {"furniture": 0.8, "emoji": 0.8, "imagenet": 1.0},
    "all 1 (cosine)": {"furniture": 1.0, "emoji": 1.0, "imagenet": 1.0},
}
"""By name, the length of the keys of each source of entries; a source that is not named keeps its lengths."""
CHOICES = ((0.8, 32.0), (1.0, 32.0), (0.8, 50.0), (1.0, 50.0))
"""Alpha and temperature."""


def scaled_keys(cache: VisualCache, entries: Sequence[NamedEntry], lengths: Mapping[str, float]) -> VisualCache:
    """The same cache with the keys of some sources brought to one length; what is mixed in stays.

    Args:
        cache: any.
        entries: names of its entries.
        lengths: by source of entries; sources that the cache lacks say nothing.
    """
    check_entries(cache, entries)
    other = VisualCache(cache.config)
    other.keys, other.values = cache.keys.clone(), cache.values
    for source, length in lengths.items():
        rows = [place for place, entry in enumerate(entries) if entry.source == source]
        other.keys[rows] = length * F.normalize(cache.keys[rows], dim=-1)
    return other


def choose_keys(
    book: AnswerBook,
    validation: tuple[Panel, Tensor],
    test: tuple[Panel, Tensor],
    entries: Sequence[NamedEntry],
    *,
    keys: Mapping[str, Mapping[str, float]] = KEYS,
    choices: Sequence[tuple[float, float]] = CHOICES,
) -> dict[str, Any]:
    """Keys, alpha and temperature with the most right answers on one part, and what they are worth on the other.

    Args:
        book: answers of a bound model with a cache.
        validation: media and embeddings `(N, D_joint)` that choose.
        test: others, on which the choice and each form of keys, at the model's own settings, are measured.
        entries: names of the cache's entries.
        keys: forms to go through.
        choices: pairs of alpha and temperature to go through, besides the model's own.

    Returns:
        `validation`: right answers by form and setting; `chosen`; `test`: right answers by way.
    """
    shown = book.bound.cache
    forms = {name: scaled_keys(shown, entries, lengths) for name, lengths in keys.items()}
    shipped = replace(shipped_setting(shown, test[0].sense), similarity=CacheSimilarity.INNER_PRODUCT)
    settings = [replace(shipped, alpha=alpha, temperature=temperature) for alpha, temperature in choices]
    settings = list(dict.fromkeys([shipped, *settings]))
    found: dict[tuple[str, Setting], dict[str, int]] = {}
    for name, cache in forms.items():
        said = answers_by_setting(book, cache, validation[1], settings, desc=f"{validation[0].title}, {name}")
        found |= {(name, setting): _right(validation[0], texts) for setting, texts in said.items()}
    form, setting = max(found, key=lambda each: found[each]["strict"] + found[each]["lenient"])
    asked = {f"model, keys {name}": (cache, shipped) for name, cache in forms.items()}
    asked["model, chosen"] = (forms[form], setting)
    own = set(own_entries(Exam(test[0].sense, test[0].items, own_sources=test[0].own_sources), entries))
    rest = [entry for place, entry in enumerate(entries) if place not in own]
    if own:
        asked["model, chosen, without the objects' own entries"] = (cache_without(forms[form], sorted(own)), setting)
    ways = {}
    for way, (cache, how) in asked.items():
        ways[way] = answers_by_setting(book, cache, test[1], [how], desc=way)[how]
    for name, cache in forms.items():
        ways[f"nearest entry, keys {name}"] = nearest_entries(test[1], cache, entries)
        if own:
            ways[f"nearest entry, keys {name}, without the objects' own entries"] = nearest_entries(
                test[1], cache_without(cache, sorted(own)), rest
            )
    return {
        "title": test[0].title,
        "media": {"validation": len(validation[0].items), "test": len(test[0].items)},
        "validation": [{"keys": name, "name": str(how), **counts} for (name, how), counts in found.items()],
        "chosen": f"keys {form}, {setting}",
        "test": {way: _right(test[0], texts) for way, texts in ways.items()},
    }


def _right(panel: Panel, texts: Sequence[str]) -> dict[str, int]:
    strict, lenient = right_answers(panel.items, texts).sum(dim=0).tolist()
    return {"strict": strict, "lenient": lenient}


def keys_table(panels: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: right answers on the test part by way, and what was chosen."""
    ways = list(dict.fromkeys(way for panel in panels for way in panel["test"]))
    titles = [f"{panel['title']} ({panel['media']['test']})" for panel in panels]
    lines = [f"| right, strict / lenient | {' | '.join(titles)} |", "|---|" + "---|" * len(panels)]
    for way in ways:
        found = [panel["test"].get(way) for panel in panels]
        cells = [f"{counts['strict']} / {counts['lenient']}" if counts else "" for counts in found]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines.append(f"| chosen | {' | '.join(panel['chosen'] for panel in panels)} |")
    return "\n".join(lines)
