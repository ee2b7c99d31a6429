"""Does an answer name the object?"""

import pytest

from bindlm.evaluation.scoring import is_whole_sentence, names_any, stutters, unknown_words


@pytest.mark.parametrize(
    ("answer", "words", "is_right"),
    [
        ("This is a German shepherd, a kind of dog.", ["dog"], True),
        ("These are dogs.", ["dog"], True),
        ("Two foxes.", ["fox"], True),
        ("It shows berries.", ["berry"], True),
        ("This is a catamaran.", ["cat"], False),
        ("This is a hot-dog stand.", ["dog"], False),
        ("THIS IS A CAT", ["cat"], True),
        ("This is a jack-o'-lantern.", ["jack-o’-lantern".replace("’", "'")], True),
        ("This is a cat.", ["", " "], False),
    ],
)
def test_names_are_whole_words(answer: str, words: list[str], is_right: bool) -> None:
    assert names_any(answer, words) is is_right


@pytest.mark.parametrize("answer", ["This is a ram ram.", "a lamp a lamp", "it is a it is a dog"])
def test_repetition_is_stutter(answer: str) -> None:
    assert stutters(answer)


def test_a_kind_that_repeats_the_name_apart_is_no_stutter() -> None:
    assert not stutters("This is a tabby cat, a kind of cat.")


def test_unknown_words_are_found_and_plurals_forgiven() -> None:
    assert unknown_words("These are dogs and a blorf.", frozenset({"these", "are", "dog", "and", "a"})) == ["blorf"]


@pytest.mark.parametrize(("answer", "is_whole"), [("This is a cat.", True), ("this is", False), ("", False)])
def test_whole_sentences(answer: str, is_whole: bool) -> None:
    assert is_whole_sentence(answer) is is_whole
