"""The names the mini knows, and the sentences that say them."""

import csv
from pathlib import Path

import numpy as np

from bindlm.space.entry_names import NamedEntry

TABLE = Path(__file__).parent / "vocabulary.tsv"


def load_vocabulary() -> list[NamedEntry]:
    """The 1000 ImageNet classes in the order of the head, with everyday names (WordNet lemmas, edited by hand)."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [NamedEntry(row["name"], row["kind"], "imagenet") for row in rows]


_UNCOUNTABLE = frozenset(
    "hay guacamole consomme espresso velvet wool lipstick lotion sunscreen dough broccoli cauliflower corn bread rice "
    "salt butter milk sushi popcorn garlic bacon spaghetti sand water snow fog fire furniture clothing food fruit "
    "cattle carbonara eggnog soap".split()
) | {
    "mashed potato",
    "red wine",
    "toilet paper",
    "chain mail",
    "face powder",
    "hair spray",
    "ice cream",
    "cooked rice",
}
_PLURAL = frozenset(
    "jeans sunglasses pajamas binoculars swimming trunks parallel bars maracas scissors glasses goggles books grapes "
    "cherries blueberries peanuts beans chopsticks socks gloves shorts briefs headphones chains skis bubbles flowers "
    "pancakes noodles slippers".split()
) | {"swimming trunks", "parallel bars", "french fries", "ballet shoes", "paw prints", "prayer beads"}
_VOWEL_SOUND_EXCEPTIONS = ("uni", "euro", "ewe", "ukulele", "one-", "u-")
_SILENT_H = ("hour", "heir", "honest")


def is_plural(name: str) -> bool:
    """Whether a name is said in the plural: "jeans", "scissors"."""
    return name in _PLURAL or name.split()[-1] in _PLURAL


def with_article(name: str) -> str:
    """ "an espresso maker", "a cat", "hay"."""
    if name in _UNCOUNTABLE or is_plural(name):
        return name
    lower = name.lower()
    if lower.startswith(_SILENT_H) or (lower[0] in "aeiou" and not lower.startswith(_VOWEL_SOUND_EXCEPTIONS)):
        return f"an {name}"
    return f"a {name}"


def sentence(entry: NamedEntry) -> str:
    """ "This is a German shepherd, a kind of dog." """
    opening = "These are" if is_plural(entry.name) else "This is"
    return f"{opening} {statement(entry)}."


def statement(entry: NamedEntry) -> str:
    """ "a German shepherd, a kind of dog"."""
    thing = with_article(entry.name)
    return f"{thing}, a kind of {entry.kind}" if entry.kind else thing


NAME_QUESTIONS = (
    "What is this?",
    "What is in the picture?",
    "What do you see?",
    "What does this picture show?",
    "What is shown here?",
    "Can you tell me what this is?",
    "What am I looking at?",
    "Describe the picture.",
    "Describe this image.",
    "What object is in this image?",
    "Name the thing in the picture.",
    "Which animal or thing is this?",
    "Tell me what you see.",
    "What's this?",
    "What is it?",
)
_ANIMALS = (
    "dog cat wolf fox bear monkey ape lemur rabbit squirrel rodent antelope sheep goat cattle pig elephant camel "
    "whale dolphin seal marsupial mammal bird parrot penguin owl eagle heron fish shark ray snake lizard turtle "
    "reptile frog salamander amphibian dinosaur spider arachnid insect beetle butterfly crustacean worm"
).split() + ["big cat", "wild cat", "wild dog", "sea creature"]
_BROADER: dict[str, frozenset[str]] = {
    **{kind: frozenset({"animal"}) for kind in _ANIMALS},
    **{kind: frozenset({"animal", "bird"}) for kind in ("parrot", "penguin", "owl", "eagle", "heron")},
    **{kind: frozenset({"animal", "reptile"}) for kind in ("snake", "lizard", "turtle", "dinosaur")},
    **{kind: frozenset({"animal", "amphibian"}) for kind in ("frog", "salamander")},
    **{kind: frozenset({"animal", "insect"}) for kind in ("beetle", "butterfly")},
    **{kind: frozenset({"animal", "mammal"}) for kind in _ANIMALS[: _ANIMALS.index("bird")]},
    **{kind: frozenset({"animal", "mammal"}) for kind in ("big cat", "wild cat", "wild dog")},
    **{kind: frozenset({"animal", "fish"}) for kind in ("shark", "ray")},
    **{kind: frozenset({"vehicle"}) for kind in "car truck bus train ship boat aircraft bicycle motorcycle".split()},
    **{kind: frozenset({"furniture"}) for kind in "chair table bed sofa".split()},
    **{kind: frozenset({"food"}) for kind in "fruit vegetable bread dessert sandwich soup".split()},
    **{kind: frozenset({"clothing"}) for kind in "hat shoe dress skirt swimsuit sweater".split()},
    **{kind: frozenset({"container"}) for kind in "bottle box bowl cup jar pot bag".split()},
    **{kind: frozenset({"building"}) for kind in "house tower".split()},
    "guitar": frozenset({"musical instrument"}),
    "gun": frozenset({"weapon"}),
}
"""Kinds that a kind belongs to: what a question may ask about, and what must not be denied."""


def _broader(kind: str) -> frozenset[str]:
    return _BROADER.get(kind, frozenset())


_KIND_QUESTIONS = ("What kind of thing is this?", "What sort of thing is it?", "Which category does this belong to?")
_SHORT_QUESTIONS = ("In one word, what is this?", "Answer with one word: what is it?", "Name it in a word or two.")
_UNSEEN_QUESTIONS = (
    ("What color is it?", "the color"),
    ("What colour is this?", "the color"),
    ("How many are there?", "how many there are"),
    ("Where was this picture taken?", "where this is"),
    ("What is in the background?", "the background"),
    ("Who made this?", "who made it"),
    ("How big is it?", "the size"),
    ("How old is it?", "the age"),
)


def name_dialogue(entry: NamedEntry, random: np.random.Generator) -> tuple[str, str]:
    """A question for the name and its answer."""
    question = NAME_QUESTIONS[0] if random.random() < 0.3 else str(random.choice(NAME_QUESTIONS))
    return question, sentence(entry)


def any_dialogue(entry: NamedEntry, kinds: list[str], random: np.random.Generator) -> tuple[str, str]:
    """A question of any sort and an answer that keeps to it.

    Yes or no comes last, after the name: the model can then read its own words. What the joint embedding does not
    hold (colour, number, place) is said not to be seen.
    """
    draw = random.random()
    if draw < 0.55:
        return name_dialogue(entry, random)
    if draw < 0.63 and entry.kind:
        return str(random.choice(_KIND_QUESTIONS)), f"It is a kind of {entry.kind}: {with_article(entry.name)}."
    if draw < 0.70:
        return str(random.choice(_SHORT_QUESTIONS)), f"{entry.name[:1].upper()}{entry.name[1:]}."
    if draw < 0.88 and entry.kind:
        true_kinds = sorted({entry.kind, *_broader(entry.kind)})
        if random.random() < 0.5:
            return f"Is this {with_article(str(random.choice(true_kinds)))}?", f"{sentence(entry)[:-1]}, so yes."
        other = str(random.choice(kinds))
        if other not in true_kinds and entry.kind not in _broader(other):
            return f"Is this {with_article(other)}?", f"{sentence(entry)[:-1]}, so no."
    question, thing = _UNSEEN_QUESTIONS[int(random.integers(len(_UNSEEN_QUESTIONS)))]
    return question, f"I cannot tell {thing}, but {sentence(entry)[:1].lower()}{sentence(entry)[1:]}"
