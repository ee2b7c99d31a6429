"""A binding run from table to tower: equal runs, broken ones that go on, broken media, and what the folder holds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bindlm
from bindlm.binding import companion as companion_module
from bindlm.binding.recipe import BindRecipe
from bindlm.binding.run import BindResult, bind
from bindlm.errors import ConfigError

from .binding_case import read_recipe, write_pairs

FULL: dict[str, Any] = {
    "optimizer": {"ema": 0.9},
    "objective": {"hard_negatives": 1, "extra_negatives": 3, "mask_duplicates": "label"},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), broken=2)


def weights(result: BindResult) -> dict[str, torch.Tensor]:
    assert result.tower is not None
    return load_file(result.tower / "model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def done(pairs, tmp_path_factory) -> tuple[BindResult, list[str], BindRecipe]:
    """A whole run with all that there is, and what it said."""
    said: list[str] = []
    recipe = read_recipe(tmp_path_factory.mktemp("done"), pairs, **FULL)
    return bind(recipe, say=said.append), said, recipe


def test_the_folder_holds_tower_report_and_curves(done):
    result, said, recipe = done
    assert result.report == json.loads((recipe.output / "report.json").read_text())
    assert (recipe.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {"tower", "recipe.yaml", "metrics.jsonl", "evaluation.jsonl"} < {p.name for p in recipe.output.iterdir()}
    assert set(result.report["splits"]) == {"validation", "test"}
    assert 0 <= result.report["splits"]["test"]["feature"]["to_anchor"]["R@1"]["score"] <= 1
    looks = [json.loads(line) for line in (recipe.output / "evaluation.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [3, 6]
    assert looks[-1]["scores"] == {
        column: scores for column, scores in result.report["splits"]["validation"].items() if column != "summary"
    }


def test_broken_media_are_counted_named_and_left_out(done):
    result, said, _ = done
    assert len(result.report["left_out"]) == 2
    assert "2 media cannot be used and are left out; 48 pairs stay" in said
    assert sum(split["pairs"] for split in result.report["pairs"].values()) == 48


def test_the_tower_is_an_encoder_by_its_folder(done, pairs):
    result, _, _ = done
    embedder = bindlm.load_embedder(str(result.tower))
    assert embedder.modalities == ("depth",)
    assert embedder.embed(depth=[str(pairs.parent / "0-0.npy")]).shape == (1, 16)


def test_two_equal_runs_end_bit_identical(done, pairs, tmp_path):
    assert_same(weights(done[0]), weights(bind(read_recipe(tmp_path, pairs, **FULL))))


@pytest.mark.parametrize("is_before_companion", [True, False])
def test_a_killed_run_goes_on_and_ends_bit_identical(done, pairs, tmp_path, monkeypatch, is_before_companion):
    recipe = read_recipe(tmp_path, pairs, **FULL)
    on_save = companion_module.Companion.on_save

    def killed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 4 or not is_before_companion:
            on_save(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(companion_module.Companion, "on_save", killed)
    with pytest.raises(KeyboardInterrupt):
        bind(recipe)
    monkeypatch.setattr(companion_module.Companion, "on_save", on_save)
    assert_same(weights(done[0]), weights(bind(recipe)))
    steps = [json.loads(line)["step"] for line in (recipe.output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_best_weights_survive_a_resumed_run(pairs, tmp_path):
    recipe = read_recipe(tmp_path, pairs, evaluate={"every": 1, "keep_best": True})
    first = bind(recipe)
    again = bind(recipe)  # nothing left to do but to save
    assert_same(weights(first), weights(again))
    looks = [json.loads(line) for line in (recipe.output / "evaluation.jsonl").read_text().splitlines()]
    scores = [
        look["scores"]["feature"]["to_anchor"]["R@1"]["score"]
        + look["scores"]["feature"]["from_anchor"]["R@1"]["score"]
        for look in looks
    ]
    assert first.report["best_step"] == looks[scores.index(max(scores))]["step"]


def test_a_finished_run_is_not_done_again(done):
    result, _, recipe = done
    again = bind(recipe)
    assert again.training.losses == result.training.losses
    assert_same(weights(again), weights(result))


def test_another_recipe_does_not_go_on_in_the_same_folder(done):
    recipe = done[2]
    other = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, temperature=0.2))
    with pytest.raises(ConfigError, match=r"objective\.temperature was 0\.07, now 0\.2"):
        bind(other)


@pytest.mark.slow
def test_batches_made_in_other_processes_are_the_same(pairs, tmp_path):
    one = bind(read_recipe(tmp_path, pairs))
    (tmp_path / "b").mkdir()
    two = bind(read_recipe(tmp_path / "b", pairs, run={"workers": 1}))
    assert_same(weights(one), weights(two))


@pytest.mark.slow
def test_it_learns_what_the_pairs_show(tmp_path):
    table = write_pairs(tmp_path / "many", objects=60, each=4)
    recipe = read_recipe(
        tmp_path,
        table,
        optimizer={"num_steps": 60, "batch_size": 48, "micro_batch_size": 48, "learning_rate": 0.01},
        augment={"is_on": False},
        objective={"is_learnable": True},
        evaluate={"every": 0},
        run={"save_every": 100},
    )
    result = bind(recipe)
    scores = result.report["splits"]["test"]["feature"]
    assert result.training.losses[-1][1] < 0.75 * result.training.losses[0][1]
    assert scores["to_anchor"]["median_rank"]["score"] < 0.7 * scores["to_anchor"]["median_rank"]["chance"]


def test_too_few_pairs_are_refused(tmp_path):
    table = write_pairs(tmp_path / "few", objects=1, each=1)
    with pytest.raises(ConfigError, match="There are 1 pairs to train on"):
        bind(read_recipe(tmp_path, table))


def test_features_that_hold_no_direction_are_left_out(tmp_path):
    table = write_pairs(tmp_path / "zeros")
    features = np.load(table.parent / "features.npy")
    features[3] = 0
    np.save(table.parent / "features.npy", features)
    result = bind(read_recipe(tmp_path, table, optimizer={"num_steps": 1}))
    assert sum(split["pairs"] for split in result.report["pairs"].values()) == 46
    assert "no direction" in str(result.report["left_out"])
