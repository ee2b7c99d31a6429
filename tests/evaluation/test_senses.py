"""The measurement of a new sense, on stand-ins."""

from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.sense_stand_ins import ENTRIES, bound_model, write_source

from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation.entries import cache_entries
from bindlm.evaluation.senses.answers import answer_all, cache_without, check_entries, nearest_names
from bindlm.evaluation.senses.counting import ANOTHER, score_ways
from bindlm.evaluation.senses.exam import Exam, Item
from bindlm.evaluation.senses.finding import find_pictures, find_prototypes
from bindlm.evaluation.senses.measure import ELSEWHERE, NOWHERE, Asking, by_what_is_known, measure_sense, own_entries
from bindlm.evaluation.senses.report import as_markdown
from bindlm.evaluation.senses.shapes import shapes_exam
from bindlm.evaluation.senses.texts import texts_exam
from bindlm.space.entry_names import NamedEntry


def item(label: str, *acceptable: str, groups: tuple[str, ...] = (), pictures: tuple[Path, ...] = ()) -> Item:
    return Item(label, f"{label}.wav", label, acceptable or (label,), ("thing",), groups, pictures)


# -- exams ------------------------------------------------------------------------------------------------------------


def test_shapes_are_those_of_the_split_and_training_is_the_rest(tmp_path: Path) -> None:
    exam = shapes_exam("point", "test", root=write_source(tmp_path / "furniture"))
    assert [each.label for each in exam.items] == ["couch", "vase", "vase", "broom"]
    assert {label for _, label in exam.training} == {"armchair", "door", "bathtub"}
    assert "sofa" in exam.items[0].acceptable
    assert "furniture" in exam.items[0].parents
    assert exam.categories == ("Bathroom", "Kitchen")


def test_the_folder_may_be_named_by_its_parent(tmp_path: Path) -> None:
    write_source(tmp_path / "furniture")
    assert len(shapes_exam("point", "validation", root=tmp_path).items) == 1


@pytest.mark.parametrize(("views", "count"), [(1, 4), (2, 8)])
def test_each_depth_picture_counts_as_a_medium(tmp_path: Path, views: int, count: int) -> None:
    assert len(shapes_exam("depth", "test", root=write_source(tmp_path), views=views).items) == count


def test_a_folder_without_the_data_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bindlm data fetch furniture"):
        shapes_exam("point", "test", root=tmp_path)


def test_a_name_of_two_sources_is_one_text_with_all_its_pictures(tmp_path: Path) -> None:
    write_source(tmp_path / "furniture", seed=1)
    write_source(tmp_path / "emoji", seed=2)
    exam = texts_exam("test", root=tmp_path)
    assert [(each.label, len(each.pictures)) for each in exam.items] == [("couch", 2), ("vase", 4), ("broom", 2)]
    assert exam.items[0].groups == ("emoji", "furniture")


# -- retrieval --------------------------------------------------------------------------------------------------------


def test_pictures_of_the_same_name_count_apart_from_own_ones() -> None:
    paths = [Path("a"), Path("b"), Path("c")]
    items = [
        item("vase", pictures=(paths[0],)),
        item("Vase", pictures=(paths[1],)),
        item("oven", pictures=(paths[2],)),
    ]
    pictures = torch.eye(3)
    found = find_pictures(items, pictures[[1, 0, 2]], paths, pictures)
    assert found["media → own pictures"]["R@1"]["score"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["media → pictures of the same name"]["R@1"]["score"] == 1
    assert found["media → pictures of the same name"]["R@1"]["chance"] == pytest.approx(5 / 9, abs=1e-3)


def test_prototypes_are_means_of_entries_and_items_without_one_are_left_out() -> None:
    keys = torch.eye(4)
    entries = [NamedEntry(name, "", "imagenet") for name in ("beagle", "poodle", "cat", "owl")]
    chosen = {"dog": [0, 1], "cat": [2], "tuba": []}
    exam = Exam(
        "audio",
        (item("dog", groups=("animal",)), item("cat", groups=("animal",)), item("tuba")),
        groups=("animal",),
        entries_of=lambda each, _: chosen[each.label],
    )
    media = torch.stack([(keys[0] + keys[1]) / 2**0.5, keys[2], keys[3]])
    found = find_prototypes(exam, media, 3 * keys, entries)
    assert found["media → prototypes of names"]["R@1"]["score"] == 1
    assert found["media → prototypes of names"]["num_queries"] == 2
    assert "animal → prototypes of names" in found


# -- scores -----------------------------------------------------------------------------------------------------------


def test_answers_are_counted_by_group_and_dealt_out_for_chance() -> None:
    exam = Exam("audio", (item("dog", groups=("animal",)), item("dog", groups=("animal",)), item("horn")), ("animal",))
    scores = score_ways(exam, {"model": ["A dog.", "A thing.", "A dog."]})
    assert scores["model"]["all"]["strict"] == 1
    assert scores["model"]["all"]["lenient"] == 2
    assert scores["model"]["animal"] == {
        "strict": 1,
        "lenient": 2,
        "media": 2,
        "names": 1,
        "names right once": 1,
    }
    # of the others' answers, one of two is right for the first dog, both for the second
    assert scores[ANOTHER]["animal"]["strict"] == pytest.approx(1.5)
    assert scores[ANOTHER]["all"]["strict"] == pytest.approx(1.5)


def test_own_entries_and_what_else_is_known() -> None:
    entries = [NamedEntry(*row) for row in ENTRIES]
    exam = Exam("point", (item("couch", "couch", "sofa"), item("vase")), own_sources=("furniture",))
    own = own_entries(exam, entries)
    assert [entries[place].name for place in own] == ["couch", "vase"]
    known = by_what_is_known(exam, entries, own)
    assert [each.groups for each in known.items] == [(ELSEWHERE,), (NOWHERE,)]


# -- answers ----------------------------------------------------------------------------------------------------------


def test_answers_in_batches_are_those_asked_one_by_one(tmp_path: Path) -> None:
    model = bound_model(tmp_path)
    joint = tiny.unit_rows(5, seed=3)
    batched = answer_all(model, joint, model.cache, "What is this?", batch_size=2)
    one_by_one = [answer_all(model, row[None], model.cache, "What is this?")[0] for row in joint]
    assert batched == one_by_one
    assert len(set(batched)) > 1


def test_answers_agree_with_ask(tmp_path: Path) -> None:
    model = bound_model(tmp_path)
    picture = tiny.picture(1)
    joint = model.embed(image=picture)
    assert answer_all(model, joint, model.cache, "What?") == [model.ask("What?", picture, max_new_tokens=40)]


def test_the_cache_off_is_the_embedding_itself(tmp_path: Path) -> None:
    model = bound_model(tmp_path)
    joint = tiny.unit_rows(4, seed=5)
    off = answer_all(model, joint, None, "What is this?")
    model.cache.config.alpha = 0.0
    assert answer_all(model, joint, model.cache, "What is this?") == off


def test_a_smaller_cache_knows_nothing_of_what_was_left_out(tmp_path: Path) -> None:
    model = bound_model(tmp_path)
    entries = cache_entries(model)
    whole = nearest_names(model.cache.keys.clone(), model.cache, entries)
    assert whole == [name for name, *_ in ENTRIES]
    smaller = cache_without(model.cache, [0, 3])
    rest = [entry for place, entry in enumerate(entries) if place not in (0, 3)]
    names = nearest_names(model.cache.keys.clone(), smaller, rest)
    assert names[1] == "dog"
    assert not {"sofa", "couch"} & set(names)
    assert model.cache.config.num_entries == len(ENTRIES)


def test_names_of_another_cache_are_refused(tmp_path: Path) -> None:
    model = bound_model(tmp_path)
    with pytest.raises(CheckpointError, match="names 1; export it anew"):
        check_entries(model.cache, cache_entries(model)[:1])


# -- all of it --------------------------------------------------------------------------------------------------------


def test_a_report_has_every_way_and_its_table_too(tmp_path: Path) -> None:
    model = bound_model(tmp_path / "model", "point")
    exam = shapes_exam("point", "test", root=write_source(tmp_path / "furniture"))
    report = measure_sense(model, exam, Asking(neighbours=2))
    assert set(report["ways"]) == {
        "model",
        "model, without the objects' own cache entries",
        "model, cache off",
        "model, shown the picture",
        "model, shown the picture, without the objects' own cache entries",
        "nearest cache entry",
        "nearest cache entry, without the objects' own cache entries",
        "nearest training medium",
        "model's most frequent answer",
        "plain language model",
        ANOTHER,
    }
    assert report["own entries"] == 2
    assert [answer["label"] for answer in report["answers"]] == ["couch", "vase", "vase", "broom"]
    assert all(answer["nearest training medium"] in {"armchair", "door", "bathtub"} for answer in report["answers"])
    table = as_markdown(report, "test")
    assert "| media → own pictures |" in table
    assert "| Kitchen | 2 |" in table
    assert f"{ELSEWHERE} (2, 2 names)" in table  # a sofa among the classes, a broom among the emoji


def test_the_nearest_training_medium_is_found_in_the_joint_space(tmp_path: Path) -> None:
    folder = write_source(tmp_path / "furniture")
    held_out, seen = (shapes_exam("point", split, root=folder) for split in ("test", "validation"))
    assert held_out.training == seen.training
    copied = held_out.training[1]
    Path(held_out.items[0].medium).write_bytes(Path(copied[0]).read_bytes())
    report = measure_sense(bound_model(tmp_path / "model", "point"), held_out)
    assert report["answers"][0]["nearest training medium"] == copied[1]


def test_without_names_of_entries_the_rest_is_measured(tmp_path: Path) -> None:
    model = bound_model(tmp_path / "model", "point")
    (tmp_path / "model" / "cache_entries.json").unlink()
    report = measure_sense(model, shapes_exam("point", "test", root=write_source(tmp_path / "furniture")))
    assert "nearest cache entry" not in report["ways"]
    assert report["groups"] == ["all"]


def test_a_model_without_the_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="point"):
        measure_sense(bound_model(tmp_path / "m"), shapes_exam("point", "test", root=write_source(tmp_path / "f")))
