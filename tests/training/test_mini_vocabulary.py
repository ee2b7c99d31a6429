"""The sentences that the mini learns."""

import numpy as np
import pytest

from bindlm.space.entry_names import NamedEntry
from bindlm.training.mini.vocabulary import (
    any_dialogue,
    is_plural,
    load_vocabulary,
    name_dialogue,
    sentence,
    with_article,
)


def test_every_class_of_the_head_has_a_name() -> None:
    entries = load_vocabulary()
    assert len(entries) == 1000
    assert all(entry.name and entry.name == entry.name.strip() for entry in entries)
    assert [entries[index].name for index in (207, 235, 281, 339)] == [
        "golden retriever",
        "German shepherd",
        "tabby cat",
        "horse",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cat", "a cat"),
        ("espresso maker", "an espresso maker"),
        ("hourglass", "an hourglass"),
        ("unicycle", "a unicycle"),
        ("hay", "hay"),
        ("jeans", "jeans"),
        ("umbrella", "an umbrella"),
    ],
)
def test_articles(name: str, said: str) -> None:
    assert with_article(name) == said


def test_sentences_agree_in_number_and_name_the_kind() -> None:
    assert sentence(NamedEntry("German shepherd", "dog", "imagenet")) == "This is a German shepherd, a kind of dog."
    assert sentence(NamedEntry("sunglasses", "", "imagenet")) == "These are sunglasses."


def test_no_class_is_a_kind_of_itself() -> None:
    assert [entry.name for entry in load_vocabulary() if entry.kind and entry.kind in entry.name.lower().split()] == []


def test_yes_and_no_are_true() -> None:
    """A dog is an animal and a mammal; nothing that holds may be denied."""
    random = np.random.default_rng(0)
    dog, violin = (
        NamedEntry("German shepherd", "dog", "imagenet"),
        NamedEntry("violin", "musical instrument", "imagenet"),
    )
    kinds = ["animal", "bird", "dog", "mammal", "musical instrument", "vehicle"]
    asked: dict[str, set[str]] = {"yes": set(), "no": set()}
    for _ in range(3000):
        for entry in (dog, violin):
            question, answer = any_dialogue(entry, kinds, random)
            if question.startswith("Is this"):
                verdict = "yes" if answer.endswith("so yes.") else "no"
                asked[verdict].add(f"{entry.name}: {question}")
                assert answer.startswith(sentence(entry)[:-1])
    dogs_yes = {question for question in asked["yes"] if question.startswith("German")}
    assert dogs_yes == {f"German shepherd: Is this {kind}?" for kind in ("a dog", "an animal", "a mammal")}
    assert not dogs_yes & asked["no"]
    assert "violin: Is this a bird?" in asked["no"]


def test_answers_are_whole_sentences() -> None:
    random = np.random.default_rng(1)
    entries = load_vocabulary()
    kinds = sorted({entry.kind for entry in entries if entry.kind})
    for index in range(2000):
        entry = entries[index % len(entries)]
        for question, answer in (name_dialogue(entry, random), any_dialogue(entry, kinds, random)):
            assert question[0].isupper()
            assert question[-1] in "?."
            assert answer[0].isupper() or not answer[0].isalpha() or is_plural(entry.name) or answer[0] == "i"
            assert answer.endswith(".")
