"""Labels of sounds, and the names that stand for them."""

import json
from pathlib import Path

import bindlm
from bindlm.binding.sources.sound_labels import load_sound_labels

ENTRIES = json.loads((Path(bindlm.__file__).parent / "mini/cache_entries.json").read_text(encoding="utf-8"))


def test_every_name_is_an_entry_of_the_minis_cache():
    known = {f"{source}:{name}" for name, _, source in ENTRIES} | {f"kind:{kind}" for _, kind, _ in ENTRIES}
    for label in load_sound_labels().values():
        assert set(label.names) <= known, label.label
        assert label.family


def test_an_exact_label_stands_for_at_least_one_entry():
    for label in load_sound_labels().values():
        assert label.entries(ENTRIES) or not label.exact


def test_a_violin_is_exact_and_a_clarinet_borrows_the_oboe():
    labels = load_sound_labels()
    assert {ENTRIES[place][0] for place in labels["violin"].entries(ENTRIES)} == {"violin"}
    assert labels["violin"].exact
    assert not labels["clarinet"].exact
    assert {ENTRIES[place][0] for place in labels["clarinet"].entries(ENTRIES)} == {"oboe"}
    assert labels["clarinet"].family == labels["oboe"].family


def test_a_dog_stands_for_every_breed():
    places = load_sound_labels()["dog"].entries(ENTRIES)
    assert len(places) > 100
    assert {ENTRIES[place][1] for place in places if ENTRIES[place][2] == "imagenet"} == {"dog"}
