"""The band of weights in which both of two things are named."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bindlm.errors import ConfigError
from bindlm.evaluation.mixing import (
    WEIGHTS,
    Concept,
    answers,
    as_table,
    band_width,
    choose_pairs,
    draw,
    mixed_answers,
    named_alone,
    score,
)

from ..tiny import DIM, picture, tiny_model, tiny_processor, unit_rows

QUESTION = "What is this?"


@pytest.fixture(scope="module")
def model() -> Any:
    built = tiny_model(gate=1.0, cache={"num_entries": 20, "dim": DIM, "top_k": 3})
    built.processor = tiny_processor()
    return built


def concept(id: str, *names: str, parents: tuple[str, ...] = (), seed: int = 0) -> Concept:
    return Concept(id, unit_rows(1, DIM, seed)[0], names, parents)


UNLIKE = torch.nn.functional.normalize(torch.tensor([[1.0] * 8 + [-1.0] * 8, [1.0, -1.0] * 8]))
DOG = concept("d1", "dog", parents=("animal",))
SKY = concept("s1", "sky", "cloud", seed=1)


def test_a_band_is_measured_in_weights() -> None:
    assert band_width([True] * 21) == pytest.approx(1.0)
    assert band_width([False] * 21) == 0
    assert band_width([0.2 <= weight <= 0.8 for weight in WEIGHTS]) == pytest.approx(0.65)  # 13 of 20 steps
    assert band_width([True, True, False], weights=(0.0, 0.5, 1.0)) == pytest.approx(0.75)
    assert all(high - low == pytest.approx(0.05) for low, high in pairwise(WEIGHTS))


def test_both_must_be_named_and_parents_count_only_leniently() -> None:
    said = [["a sky", "a sky and a dog", "a cloud, an animal", "a dog"]]
    report = score([(SKY, DOG)], said, weights=(0.0, 1 / 3, 2 / 3, 1.0))
    assert report["strict"]["both"] == [0, 1, 0, 0]
    assert report["strict"]["width"] == pytest.approx(1 / 3)
    assert report["strict"]["first"] == [1, 1, 1, 0]
    assert report["strict"]["second"] == [0, 1, 0, 1]
    assert report["lenient"]["both"] == [0, 1, 1, 0]
    assert report["lenient"]["any"] == 1


def test_pairs_have_no_name_in_common_and_no_input_too_often() -> None:
    things = [concept(f"{name}{number}", name) for name in ("dog", "sky", "cup") for number in range(4)]
    pairs = choose_pairs(things, things, 8, uses=2)
    assert len(pairs) == 8
    assert not any(one.shares_a_name(other) for one, other in pairs)
    ids = [each.id for pair in pairs for each in pair]
    assert max(map(ids.count, ids)) == 2
    assert len({frozenset((one.id, other.id)) for one, other in pairs}) == 8
    assert [(a.id, b.id) for a, b in choose_pairs(things, things, 8, uses=2)] == [(a.id, b.id) for a, b in pairs]
    assert [(a.id, b.id) for a, b in choose_pairs(things, things, 8, uses=2, seed=1)] != [
        (a.id, b.id) for a, b in pairs
    ]


def test_a_parent_is_a_name_in_common_too() -> None:
    assert not choose_pairs([DOG], [concept("a", "cat", parents=("animal",))], 5)


def test_answers_in_a_batch_are_those_of_ask(model: Any) -> None:
    joint = model.embed(image=[picture(seed) for seed in range(4)])
    expected = [model.ask(QUESTION, image=picture(seed), max_new_tokens=24) for seed in range(4)]
    assert answers(model, joint[[0, 1, 1, 2, 3]]) == [expected[number] for number in (0, 1, 1, 2, 3)]


@pytest.mark.parametrize("way", ["turns", "released"])
def test_mixed_answers_are_those_of_ask(model: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joint = unit_rows(2, DIM, 3)
    pairs = [(Concept("a", joint[0], ("x",)), Concept("b", joint[1], ("y",)))]
    weights = (0.0, 0.05, 0.3, 0.6, 1.0)
    monkeypatch.setattr(model, "encode_media", lambda **media: {"image": joint})
    (said,) = mixed_answers(model, pairs, way, weights=weights)
    for weight, text in zip(weights, said, strict=True):
        asked = model.ask(QUESTION, image=[picture(0)] * 2, weights=[1 - weight, weight], mix=way, max_new_tokens=24)
        assert text == asked


@pytest.mark.parametrize(
    "settings",
    [{"modalities": ["audio"]}, {"by_sense": {"audio": {"alpha": 1.0, "top_k": 1}}}],
    ids=["pulls", "by sense"],
)
@pytest.mark.parametrize("way", ["turns", "released"])
def test_a_cache_meets_each_sense_as_in_ask(
    way: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model(gate=1.0, cache={"num_entries": 20, "dim": DIM, "top_k": 3, **settings})
    model.processor = tiny_processor()
    photo, sound = UNLIKE.split(1)
    pair = (Concept("a", photo[0], ("x",)), Concept("b", sound[0], ("y",), sense="audio"))
    monkeypatch.setattr(model, "encode_media", lambda **media: {"image": photo, "audio": sound})
    monkeypatch.setattr(model, "_read", lambda *given: None)
    weights = (0.05, 0.3, 0.6)
    (said,) = mixed_answers(model, [pair], way, weights=weights)
    for weight, text in zip(weights, said, strict=True):
        given = {"image": picture(0), "audio": "b", "weights": [1 - weight, weight], "mix": way}
        assert text == model.ask(QUESTION, max_new_tokens=24, **given)


def test_what_is_named_alone_is_met_as_its_sense() -> None:
    model: Any = tiny_model(
        gate=1.0, cache={"num_entries": 20, "dim": DIM, "top_k": 3, "alpha": 1.0, "modalities": ["audio"]}
    )
    model.processor = tiny_processor()
    (pulled,) = answers(model, UNLIKE[:1])
    (plain,) = answers(model, UNLIKE[:1], use_cache_entries=False)
    words = [max(text.split(), key=len) for text in (pulled, plain)]
    assert words[0] not in plain
    assert words[1] not in pulled
    heard = Concept("heard", UNLIKE[0], (words[0],), sense="audio")
    seen = Concept("seen", UNLIKE[0], (words[1],))
    assert named_alone(model, [heard, seen]) == [heard, seen]
    assert named_alone(model, [replace(heard, sense="image"), replace(seen, sense="audio")]) == []


def test_apart_asks_about_a_mixture_of_what_the_cache_makes_of_each(model: Any) -> None:
    pairs = [(concept("a", "x", seed=1), concept("b", "y", seed=2))]
    enhanced = [model.cache.enhance(each.embedding[None]) for each in pairs[0]]
    (said,) = mixed_answers(model, pairs, "apart", weights=(0.25,))
    mixed = 0.75 * enhanced[0] + 0.25 * enhanced[1]
    assert said == answers(model, mixed, use_cache_entries=False)


def test_an_unknown_way_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="way must be one of turns, apart, released, paper"):
        mixed_answers(model, [], "sum")


def test_only_what_is_named_rightly_alone_is_kept(model: Any) -> None:
    (said,) = answers(model, unit_rows(1, DIM, 4))
    word = max(said.split(), key=len)
    right, wrong = concept("r", word, seed=4), concept("w", "nobody says this", seed=4)
    assert [each.id for each in named_alone(model, [wrong, right])] == ["r"]
    assert named_alone(model, []) == []


def test_the_table_has_a_row_a_way_and_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = [["a sky and a dog" if 0.2 <= weight <= 0.8 else "a sky" for weight in WEIGHTS]]
    ways = {"released": score([(SKY, DOG)], [["a dog"] * 21]), "turns": score([(SKY, DOG)], said)}
    rows = as_table(ways).splitlines()
    assert rows[2] == "| one mixture (released) | 0.00 / 0.00 | 0% / 0% | 0% / 0% |"
    assert rows[3] == "| in turn | 0.65 / 0.65 | 100% / 100% | 100% / 100% |"
    draw({"pairs": ways, "others": ways}, tmp_path / "band.png")
    assert (tmp_path / "band.png").read_bytes().startswith(b"\x89PNG")
