"""Right names for held-out objects, and held-out recordings as an exam."""

from pathlib import Path

import pytest

from bindlm.binding.sources.splits import split_of
from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation.recordings import read_table
from bindlm.evaluation.scoring import names_any
from bindlm.evaluation.senses.names import FOLDER, Names, names_of, read_names
from bindlm.evaluation.senses.sounds import _item as sound_item
from bindlm.evaluation.senses.sounds import entries_of
from bindlm.evaluation.senses.tables import training_media
from bindlm.space.entry_names import NamedEntry


@pytest.mark.parametrize(("source", "count"), [("furniture", 135), ("emoji", 149)])
def test_no_training_name_has_a_row_except_those_that_shares_may_reach(source: str, count: int) -> None:
    labels = read_names(FOLDER / f"{source}.tsv")
    assert len(labels) == count
    assert all(split_of(label) != "train" for label in labels)


@pytest.mark.parametrize("source", ["furniture", "emoji"])
def test_no_name_is_right_and_a_parent_at_once_and_none_is_as_general_as_an_object(source: str) -> None:
    for label, names in read_names(FOLDER / f"{source}.tsv").items():
        assert not set(names.acceptable) & set(names.parents), label
        assert not {"object", "thing", "artifact", "item", "entity", ""} & {*names.acceptable, *names.parents}, label
        assert len(set(names.acceptable)) == len(names.acceptable), label


@pytest.mark.parametrize("source", ["furniture", "emoji"])
def test_the_label_itself_is_a_right_answer(source: str) -> None:
    labels = read_names(FOLDER / f"{source}.tsv")
    wrong = {label for label, names in labels.items() if not names_any(f"This is a {label}.", names.acceptable)}
    assert wrong == ({"socket"} if source == "furniture" else set())  # the thing is a sock


def test_a_label_that_the_table_lacks_is_right_by_itself_and_its_noun() -> None:
    assert names_of("furniture", "garden gnome") == Names(("garden gnome", "gnome"), ())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("label\tacceptable\n", "columns"),
        ("label\tacceptable\tparents\ncat\tcat\n", "line 2 has 2 columns"),
        ("label\tacceptable\tparents\ncat\t\tanimal\n", "at least one acceptable"),
        ("label\tacceptable\tparents\ncat\tcat\t\nCat\tcat\t\n", "line 3: 'Cat' was there before"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "names.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        read_names(tmp_path / "names.tsv")


def test_a_recording_stands_for_the_entries_of_its_name() -> None:
    entries = [
        NamedEntry("beagle", "dog", "imagenet"),
        NamedEntry("accordion", "musical instrument", "imagenet"),
        NamedEntry("dog", "", "emoji"),
    ]
    items = {each.label: sound_item(each) for each in read_table()}
    assert entries_of(items["accordion"], entries) == [1]
    assert 0 in entries_of(items["dog"], entries)
    unnamed = next(each for each in items.values() if "unnamed" in each.groups)
    assert entries_of(unnamed, entries) == []


def test_training_media_are_those_of_the_training_part(tmp_path: Path) -> None:
    table = tmp_path / "pairs.jsonl"
    table.write_text('{"audio": "a.flac", "label": "dog"}\n{"audio": "b.flac", "label": "cat", "split": "test"}\n')
    assert training_media(table, "audio") == [(tmp_path / "a.flac", "dog")]
    with pytest.raises(CheckpointError, match="'point'"):
        training_media(table, "point")
