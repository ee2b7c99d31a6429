"""The measurement of what a visual cache does to answers, on stand-ins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.sense_stand_ins import ENTRIES, bound_model

from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation.answer_book import AnswerBook, stamp_of
from bindlm.evaluation.cache_effect import (
    WITHOUT,
    Setting,
    answers_by_setting,
    measure_panel,
    nearest_entries,
    right_answers,
    settings_grid,
    shipped_setting,
)
from bindlm.evaluation.cache_effect_choice import choose, choose_on_halves
from bindlm.evaluation.cache_effect_keys import KEYS, choose_keys, keys_table, scaled_keys
from bindlm.evaluation.cache_effect_media import Panel, embed_once
from bindlm.evaluation.cache_effect_report import as_markdown, draw_effect, report_panel
from bindlm.evaluation.senses.answers import answer_all
from bindlm.evaluation.senses.exam import Item
from bindlm.space import CacheWeighting
from bindlm.space.entry_names import NamedEntry

NAMED = [NamedEntry(*row) for row in ENTRIES]
ITEMS = tuple(
    Item(label, Path(label), label, (label,), ("furniture",)) for label in ("couch", "vase", "broom", "dog", "sofa")
)
PANEL = Panel("3-D objects", "point", ITEMS, own_sources=("furniture",))


@pytest.fixture
def book(tmp_path: Path) -> AnswerBook:
    model = bound_model(tmp_path, "point")
    model.cache.keys.copy_(tiny.unit_rows(len(ENTRIES), seed=7))
    return AnswerBook(model)


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_grid_has_the_cache_off_once() -> None:
    grid = settings_grid(Setting(0.7, 3, 20.0), (0.0, 0.5, 1.0), (1, 3), paper_k=2)
    assert [str(each) for each in grid] == [
        "off",
        "alpha 0.5, k 1, t 20",
        "alpha 1, k 1, t 20",
        "alpha 0.5, k 3, t 20",
        "alpha 1, k 3, t 20",
        "alpha 0.5, k 2, paper",
        "alpha 1, k 2, paper",
    ]
    assert len(settings_grid(Setting(0.7), (0.5,), (1, 3), paper_k=None)) == 2


def test_a_setting_consults_the_same_entries_in_its_own_way(book: AnswerBook) -> None:
    cache, joint = book.bound.cache, tiny.unit_rows(4, seed=3)
    before = cache.enhance(joint)
    paper = Setting(1.0, 2, weighting=CacheWeighting.COSINE).apply(cache)
    similarity, entries = (joint @ cache.keys.T).topk(2)
    torch.testing.assert_close(paper.enhance(joint), torch.einsum("bk,bkd->bd", similarity, cache.keys[entries]))
    assert paper.keys is cache.keys
    torch.testing.assert_close(cache.enhance(joint), before)


def test_a_sense_is_measured_by_its_own_settings(book: AnswerBook) -> None:
    cache = book.bound.cache
    assert shipped_setting(cache, "point") == Setting(0.5, 3, 20.0)
    cache.config.by_sense = {"point": {"similarity": "cosine", "alpha": 0.9}}
    own = shipped_setting(cache, "point")
    assert str(own) == "alpha 0.9, k 3, t 20, by cosine"
    cache.keys[0] *= 9
    joint = tiny.unit_rows(4, seed=3)
    torch.testing.assert_close(own.apply(cache).enhance(joint), cache.for_senses(["point"]).enhance(joint))
    cache.config.modalities = ("audio",)
    assert str(shipped_setting(cache, "point")) == "off"


def test_more_neighbours_than_entries_are_refused(book: AnswerBook) -> None:
    with pytest.raises(ConfigError, match="top_k must lie in"):
        Setting(0.5, len(ENTRIES) + 1).apply(book.bound.cache)


# -- answers ----------------------------------------------------------------------------------------------------------


def test_answers_by_setting_are_those_of_one_setting_alone(book: AnswerBook) -> None:
    cache, joint = book.bound.cache, tiny.unit_rows(5, seed=3)
    settings = [Setting(0.0), Setting(0.5, 3, 20.0), Setting(1.0, 1)]
    said = answers_by_setting(book, cache, joint, settings)
    for setting in settings:
        alone = AnswerBook(book.bound).ask(setting.apply(cache).enhance(joint) if setting.alpha else joint)
        assert said[setting] == alone, setting
    assert len({tuple(texts) for texts in said.values()}) > 1


def test_the_book_says_what_the_model_answers(book: AnswerBook) -> None:
    joint = tiny.unit_rows(3, seed=5)
    texts = answer_all(book.bound, joint, book.bound.cache, "What is this?")
    for text, long in zip(book.ask(book.bound.cache.enhance(joint)), texts, strict=True):
        assert text
        assert long.startswith(text)  # it stops sooner


def test_a_stopped_measurement_goes_on_where_it_was(book: AnswerBook, tmp_path: Path) -> None:
    file, rows = tmp_path / "answers.json", tiny.unit_rows(4, seed=5)
    first = AnswerBook(book.bound, file, stamp="tiny").ask(rows)
    again = AnswerBook(None, file, stamp="tiny")  # nothing is asked: there is no model
    assert again.ask(rows.flip(0)) == first[::-1]
    assert len(json.loads(file.read_text())["answers"]) == 4
    assert again.ask(rows[[1, 1]]) == [first[1]] * 2


def test_answers_of_another_model_and_damaged_ones_are_refused(book: AnswerBook, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    AnswerBook(book.bound, file, stamp="tiny").ask(tiny.unit_rows(1))
    with pytest.raises(CheckpointError, match="not of 'other'"):
        AnswerBook(book.bound, file, stamp="other")
    for damaged in ("", "[]", '{"stamp": "tiny"}', file.read_text()[:-5]):
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match="no file of answers"):
            AnswerBook(book.bound, file, stamp="tiny")


def test_another_bridge_has_another_stamp_and_another_cache_the_same(book: AnswerBook) -> None:
    stamp = stamp_of(book.bound)
    book.bound.cache.keys.mul_(2)
    assert stamp_of(book.bound) == stamp
    with torch.no_grad():
        next(book.bound.bridge.parameters()).mul_(2)
    assert stamp_of(book.bound) != stamp


def test_a_name_counts_strictly_and_a_parent_leniently() -> None:
    right = right_answers(ITEMS[:3], ["This is a couch.", "This is furniture.", "This is a boat."])
    assert right.tolist() == [[True, True], [False, True], [False, False]]


def test_the_nearest_entry_is_named_with_its_kind(book: AnswerBook) -> None:
    cache = book.bound.cache
    assert nearest_entries(cache.keys[[1, 3]], cache, NAMED) == ["dog, animal", "couch, "]


def test_a_panel_is_asked_in_every_way(book: AnswerBook) -> None:
    cache = book.bound.cache
    joint = cache.keys[[3, 4, 6, 1, 0]]
    settings = [Setting(0.0, 1), Setting(1.0, 1)]
    said, ways = measure_panel(book, PANEL, joint, settings, NAMED)
    assert list(said) == settings
    assert ways["model, cache off"] == said[settings[0]]
    named = ["couch, ", "vase, ", "broom, ", "dog, animal", "sofa, furniture"]
    assert ways["nearest entry, no language model"] == named
    without = ways[f"nearest entry, no language model{WITHOUT}"]
    assert "couch, " not in without  # the entry that shows the held-out couch is left out
    assert without[3:] == named[3:]
    assert f"model, as shipped{WITHOUT}" in ways


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    model = bound_model(tmp_path)
    model.cache = None
    with pytest.raises(ConfigError, match="no visual cache"):
        measure_panel(AnswerBook(model), PANEL, tiny.unit_rows(5), [], NAMED)


# -- choosing ---------------------------------------------------------------------------------------------------------


def table(*rows: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_the_best_setting_is_chosen_and_a_plateau_before_a_peak() -> None:
    good, poor = table((1, 1), (1, 1)), table((0, 0), (0, 1))
    right = {Setting(0.1, 1): good, Setting(0.5, 1): poor, Setting(0.9, 3): good, Setting(1.0, 3): good}
    assert choose(right, [0, 1]) == Setting(0.9, 3)
    assert choose({**right, Setting(0.2, 1): table((1, 1), (1, 0))}, [0]).top_k == 3


def test_halves_choose_without_seeing_what_they_are_scored_on() -> None:
    keys = [f"thing {number // 2}" for number in range(40)]
    dice = torch.Generator().manual_seed(0)
    settings = [Setting(alpha, 1) for alpha in torch.linspace(0.01, 1, 40).tolist()]
    noise = {each: torch.rand(40, 1, generator=dice).lt(0.5).expand(40, 2) for each in settings}
    report = choose_on_halves(noise, keys, {"model, as shipped": noise[settings[0]]}, repeats=30)
    # the best of 40 coins is right 0.7 times and more where it was chosen, and a coin elsewhere
    assert report["ways"]["chosen"]["strict"]["mean"] == pytest.approx(0.5, abs=0.1)
    assert sum(report["chosen"].values()) == 30


def test_a_setting_that_is_really_better_gains_on_the_other_half() -> None:
    keys = [f"thing {number}" for number in range(20)]
    better, worse = torch.ones(20, 2).bool(), torch.zeros(20, 2).bool()
    right = {Setting(0.5): worse, Setting(0.9): better}
    report = choose_on_halves(right, keys, {"off": worse}, repeats=5)
    assert report["gain"]["off"] == {count: {"mean": 1.0, "spread": 0.0} for count in ("strict", "lenient")}
    assert report["chosen"] == {str(Setting(0.9)): 5}
    assert report == choose_on_halves(right, keys, {"off": worse}, repeats=5)


def test_media_of_one_name_never_stand_in_both_halves() -> None:
    keys = ["chair"] * 5 + ["lamp"] * 5
    chairs = table(*[(1, 1)] * 5, *[(0, 0)] * 5)
    report = choose_on_halves({Setting(0.2): chairs, Setting(0.7): ~chairs}, keys, {}, repeats=20)
    assert report["ways"]["chosen"]["strict"] == {"mean": 0.0, "spread": 0.0}


# -- keys -------------------------------------------------------------------------------------------------------------


def test_scaled_keys_are_of_the_length_asked_for_and_mix_in_the_same(book: AnswerBook) -> None:
    cache = book.bound.cache
    cache.keys[3:6] *= 0.7
    scaled = scaled_keys(cache, NAMED, {"furniture": 1.0})
    torch.testing.assert_close(scaled.keys.norm(dim=1), torch.ones(len(ENTRIES)))
    torch.testing.assert_close(cache.keys[3:6].norm(dim=1), torch.full((3,), 0.7))
    numbers = torch.arange(len(ENTRIES))
    torch.testing.assert_close(scaled.values_of(numbers), cache.values_of(numbers))


def test_keys_are_chosen_on_one_part_and_counted_on_the_other(book: AnswerBook) -> None:
    cache = book.bound.cache
    cache.keys[3:6] *= 0.1
    asked = (PANEL, cache.keys[[3, 4, 6, 1, 0]] * 10)
    row = choose_keys(book, asked, asked, NAMED, choices=[(1.0, 50.0)])
    assert row["media"] == {"validation": 5, "test": 5}
    assert row["test"]["nearest entry, keys icons 1"]["strict"] == 5
    assert row["test"]["nearest entry, keys icons 1, without the objects' own entries"]["strict"] < 5
    assert len(row["validation"]) == 2 * len(KEYS)  # the model's own setting and one more
    assert "| 3-D objects (5) |" in keys_table([row])


# -- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_is_tables_and_a_plot(book: AnswerBook, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    settings = settings_grid(Setting(0.7, 3, 20.0), (0.0, 0.5, 1.0), (1, 3), paper_k=2)
    joint = book.bound.cache.keys[[3, 4, 6, 1, 0]]
    panel = report_panel(PANEL, *measure_panel(book, PANEL, joint, settings, NAMED), repeats=3)
    assert json.loads(json.dumps(panel)) == panel
    assert [row["name"] for row in panel["settings"]] == [str(each) for each in settings]
    text = as_markdown([panel, {**panel, "title": "depth maps"}])
    assert "| nearest entry, no language model | 5 / 5 | 5 / 5 |" in text
    assert "depth maps (5)" in text
    draw_effect([panel] * 3, tmp_path / "effect.png")
    assert (tmp_path / "effect.png").read_bytes().startswith(b"\x89PNG")


def test_embeddings_are_kept_and_those_of_other_media_refused(tmp_path: Path) -> None:
    model = bound_model(tmp_path / "model")
    for number, each in enumerate(ITEMS):
        tiny.picture(number).save(tmp_path / f"{each.label}.png")
    items = tuple(replace(each, medium=tmp_path / f"{each.label}.png") for each in ITEMS)
    panels, file = [Panel("photographs", "image", items)], tmp_path / "held.safetensors"
    made = embed_once(model, panels, file)
    (tmp_path / "couch.png").unlink()  # read no more
    assert torch.equal(embed_once(model, panels, file)["photographs"], made["photographs"])
    with pytest.raises(CheckpointError, match="other media"):
        embed_once(model, [replace(panels[0], items=items[1:])], file)
