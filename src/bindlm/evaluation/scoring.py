"""Does an answer name the object? Whole words, any case, singular or plural."""

import re
from collections.abc import Iterable


def _forms(word: str) -> str:
    """A pattern for a word in singular and plural: "fly" also finds "flies"."""
    escaped = re.escape(word.strip().lower())
    if escaped.endswith("y"):
        return rf"{escaped[:-1]}(?:y|ys|ies)"
    return rf"{escaped}(?:s|es)?"


def names_any(answer: str, words: Iterable[str]) -> bool:
    """Whether any of the words stands in the answer as a word of its own."""
    text = answer.lower().replace("’", "'")
    return any(re.search(rf"(?<![\w-]){_forms(word)}(?![\w-])", text) for word in words if word.strip())


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
