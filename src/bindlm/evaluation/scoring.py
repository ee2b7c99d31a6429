"""Does an answer name the object? Whole words, any case, singular or plural. And is it a sound sentence?"""

import re
from collections.abc import Iterable, Sequence
from functools import cache

_AROUND = (
    "this is a an these are kind of it the picture shows so yes no i cannot tell but see in one word color how "
    "many there where background who made size age photo image of and with or on not thing"
)
"""Words that an answer may hold around a name."""


@cache
def _pattern(word: str) -> re.Pattern[str]:
    """A word of its own, in singular and plural: "fly" also finds "flies"."""
    escaped = re.escape(word.strip().lower())
    forms = rf"{escaped[:-1]}(?:y|ys|ies)" if escaped.endswith("y") else rf"{escaped}(?:s|es)?"
    return re.compile(rf"(?<![\w-]){forms}(?![\w-])")


def names_any(answer: str, words: Iterable[str]) -> bool:
    """Whether any of the words stands in the answer as a word of its own."""
    text = answer.lower().replace("’", "'")
    return any(_pattern(word).search(text) for word in words if word.strip())


def stutters(answer: str) -> bool:
    """Whether a word, or a run of two or three, follows itself at once: "ram ram", "a lamp a lamp"."""
    words = re.findall(r"[\w'-]+", answer.lower())
    return any(words[i : i + n] == words[i + n : i + 2 * n] for n in (1, 2, 3) for i in range(len(words) - 2 * n + 1))


def unknown_words(answer: str, lexicon: frozenset[str]) -> list[str]:
    """Words of the answer that the lexicon lacks, in singular and plural: made up, or at least unheard of."""
    words = re.findall(r"[a-z]+", answer.lower())
    return [word for word in words if not {word, word.removesuffix("s"), word.removesuffix("es")} & lexicon]


def is_whole_sentence(answer: str) -> bool:
    """Whether the answer starts with a capital and ends as a sentence does."""
    text = answer.strip()
    return bool(re.match(r"[A-Z]", text)) and text.endswith((".", "!", "?"))


def words_of(names: Iterable[str]) -> frozenset[str]:
    """A lexicon: every word that an honest answer could hold, of names and of the words around them."""
    return frozenset(re.findall(r"[a-z]+", " ".join([_AROUND, *names]).lower()))


def find_faults(answers: Sequence[str], lexicon: frozenset[str]) -> dict[str, float]:
    """Shares of the answers that stutter, hold a made-up word, or are no whole sentence."""
    count = max(1, len(answers))
    return {
        "stutter": sum(map(stutters, answers)) / count,
        "made-up words": sum(bool(unknown_words(text, lexicon)) for text in answers) / count,
        "no whole sentence": sum(not is_whole_sentence(text) for text in answers) / count,
    }
