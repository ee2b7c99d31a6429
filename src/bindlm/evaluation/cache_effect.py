"""Does the visual cache help? Answers over its share alpha and its number of neighbours k, sense by sense.

ImageBind-LLM (arXiv 2309.03905), section 3.2.3, Eq. (3)-(4), names no values; the release has alpha 0.5, k 10. Media
are embedded once (`cache_effect_media`); a setting then costs one pass of cache, bridge and language model. What a
setting chosen on one half of the media is worth on the other half says `cache_effect_choice`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.evaluation.answer_book import AnswerBook
from bindlm.evaluation.cache_effect_media import Panel
from bindlm.evaluation.scoring import names_any
from bindlm.evaluation.senses.answers import cache_without, check_entries
from bindlm.evaluation.senses.counting import all_names
from bindlm.evaluation.senses.exam import Exam, Item
from bindlm.evaluation.senses.measure import own_entries
from bindlm.space import CacheSimilarity, CacheWeighting, VisualCache, VisualCacheConfig
from bindlm.space.entry_names import NamedEntry

ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
TOP_KS = (1, 3, 10, 30)
COUNTS = ("strict", "lenient")
WITHOUT = ", without the objects' own entries"


@dataclass(frozen=True)
class Setting:
    """How the cache is consulted."""

    alpha: float
    """Share of the retrieved feature, 0 to 1; 0 is the cache off."""
    top_k: int = 10
    """Neighbours that count."""
    temperature: float = 32.0
    """Factor on the cosines before the softmax; only that weighting reads it."""
    weighting: CacheWeighting = CacheWeighting.SOFTMAX
    """The release's softmax, or the paper's raw cosines."""
    similarity: CacheSimilarity = CacheSimilarity.INNER_PRODUCT
    """What finds the neighbours."""

    @classmethod
    def of(cls, config: VisualCacheConfig) -> "Setting":
        """The one that a cache has, of those that `VisualCacheBase.for_senses` gives."""
        return cls(config.alpha, config.top_k, config.temperature, config.weighting, config.similarity)

    def apply(self, cache: VisualCache) -> VisualCache:
        """A cache of the same entries, consulted in this way.

        Raises:
            ConfigError: an impossible value, such as more neighbours than entries.
        """
        config = replace(cache.config, by_sense={}, **vars(self))
        with torch.device("meta"):  # the tensors are shared, not made anew for each setting
            other = VisualCache(config)
        other.keys, other.values = cache.keys, cache.values
        return other

    def __str__(self) -> str:
        if self.alpha == 0:
            return "off"
        how = "paper" if self.weighting is CacheWeighting.COSINE else f"t {self.temperature:g}"
        by = ", by cosine" if self.similarity is CacheSimilarity.COSINE else ""
        return f"alpha {self.alpha:g}, k {self.top_k}, {how}{by}"


def off(shipped: Setting) -> Setting:
    """The cache off; one setting for all that differ in nothing else."""
    return replace(shipped, alpha=0.0, top_k=1, weighting=CacheWeighting.SOFTMAX)


def shipped_setting(cache: VisualCache | None, sense: str) -> Setting:
    """How a model's cache meets one sense.

    Raises:
        ConfigError: there is no cache.
    """
    if cache is None:
        raise ConfigError("The model has no visual cache whose effect could be measured.")
    met = cache.for_senses([sense])
    return Setting.of(met.config) if met is not None else off(Setting.of(cache.config.for_sense(sense)))


def settings_grid(
    shipped: Setting, alphas: Sequence[float] = ALPHAS, top_ks: Sequence[int] = TOP_KS, *, paper_k: int | None = 10
) -> list[Setting]:
    """The settings to measure; alpha 0, where k says nothing, once.

    Args:
        shipped: gives temperature and similarity.
        alphas: shares.
        top_ks: numbers of neighbours.
        paper_k: neighbours of the paper's weighting; None leaves it out.
    """
    plain = replace(shipped, weighting=CacheWeighting.SOFTMAX)
    pulled = [alpha for alpha in alphas if alpha]
    grid = [off(shipped)] * (0.0 in alphas)
    grid += [replace(plain, alpha=alpha, top_k=top_k) for top_k in top_ks for alpha in pulled]
    if paper_k is not None:
        paper = replace(shipped, top_k=paper_k, weighting=CacheWeighting.COSINE)
        grid += [replace(paper, alpha=alpha) for alpha in pulled]
    return grid


def answers_by_setting(
    book: AnswerBook, cache: VisualCache, joint: Tensor, settings: Sequence[Setting], *, desc: str = "asking"
) -> dict[Setting, list[str]]:
    """Greedy answers to "What is this?" about each medium under each setting; equal conditions are asked once.

    Args:
        book: answers of a bound model.
        cache: its own, or another one.
        joint: `(N, D_joint)`, unit length.
        settings: how the cache is consulted.
        desc: what the bar on stderr says.
    """
    joint = joint.to(cache.keys.device)
    pulled = [setting.apply(cache).enhance(joint) if setting.alpha else joint for setting in settings]
    texts = book.ask(torch.cat(pulled), desc=desc)
    count = len(joint)
    return {setting: texts[count * number : count * (number + 1)] for number, setting in enumerate(settings)}


def right_answers(items: Sequence[Item], texts: Sequence[str]) -> Tensor:
    """Which answers are right, bool `(N, 2)`: with a right name, or at least a parent's or the family's."""
    pairs = list(zip(items, texts, strict=True))
    return torch.tensor(
        [[names_any(text, item.acceptable), names_any(text, all_names(item))] for item, text in pairs]
    ).reshape(-1, 2)


def nearest_entries(
    joint: Tensor, cache: VisualCache, entries: Sequence[NamedEntry], setting: Setting = Setting(1.0)
) -> list[str]:
    """Name and kind of each medium's nearest entry, by a setting's similarity: what needs no language model."""
    nearest = replace(setting, top_k=1).apply(cache)
    places = nearest.search(joint.to(cache.keys.device))[1][:, 0]
    return [f"{entries[place].name}, {entries[place].kind}" for place in places.tolist()]


def measure_panel(
    book: AnswerBook, panel: Panel, joint: Tensor, settings: Sequence[Setting], entries: Sequence[NamedEntry]
) -> tuple[dict[Setting, list[str]], dict[str, list[str]]]:
    """What is said of each medium of a panel.

    Args:
        book: answers of a bound model with a cache.
        panel: N media.
        joint: `(N, D_joint)`.
        settings: to go through, the cache off among them or not.
        entries: names of the cache's entries.

    Returns:
        Answers by setting; and by way: the model as it is configured, the cache off, the name of the nearest entry
        without a language model, and where the cache shows the very objects, the same without those entries.

    Raises:
        ConfigError: the model has no cache.
        CheckpointError: the names are not those of its cache.
    """
    cache = book.bound.cache
    shipped = shipped_setting(cache, panel.sense)
    check_entries(cache, entries)
    own = own_entries(Exam(panel.sense, panel.items, own_sources=panel.own_sources), entries)
    asked = list(dict.fromkeys([*settings, shipped, off(shipped)]))
    said = answers_by_setting(book, cache, joint, asked, desc=panel.title)
    ways = {
        "model, as shipped": said[shipped],
        "model, cache off": said[off(shipped)],
        "nearest entry, no language model": nearest_entries(joint, cache, entries, shipped),
    }
    if own:
        rest = cache_without(cache, own)
        others = [entry for place, entry in enumerate(entries) if place not in set(own)]
        ways |= {
            f"model, as shipped{WITHOUT}": answers_by_setting(book, rest, joint, [shipped])[shipped],
            f"nearest entry, no language model{WITHOUT}": nearest_entries(joint, rest, others, shipped),
        }
    return {setting: said[setting] for setting in settings}, ways
