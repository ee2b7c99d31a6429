"""`bindlm bind` as a user types it."""

import json
from pathlib import Path

import pytest

from ..binding.binding_case import write_pairs, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bind")
    return write_recipe(folder, write_pairs(folder / "pairs", broken=1))


def test_a_dry_run_prints_pairs_parameters_steps_and_memory(recipe, bindlm_command, tmp_path):
    run = bindlm_command("bind", recipe, f"output={tmp_path / 'run'}", "--dry-run")
    assert run.code == 0, run.err
    assert "binds depth" in run.out
    assert "train       28 pairs, 28 media, 14 objects, 4 labels" in run.out
    assert "6 optimizer steps of 12 pairs, 2 an epoch" in run.out
    assert "trained parameters" in run.out
    assert "memory, about" in run.out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_as_json_is_one_object(recipe, bindlm_command, tmp_path):
    run = bindlm_command("bind", recipe, "--dry-run", "optimizer.num_steps=3", "--json", f"output={tmp_path}")
    plan = json.loads(run.out)
    assert plan["num_steps"] == 3
    assert plan["memory"]["total"] == sum(size for name, size in plan["memory"].items() if name != "total")


def test_a_run_tells_where_the_tower_is_and_what_it_can_do(recipe, bindlm_command, tmp_path):
    run = bindlm_command("bind", recipe, f"output={tmp_path}", "optimizer.num_steps=2", "--json")
    assert run.code == 0, run.err
    result = json.loads(run.out)
    assert result["steps"] == 2
    assert (Path(result["tower"]) / "model.safetensors").is_file()
    assert set(result["splits"]) == {"validation", "test"}
    assert "1 media cannot be used and are left out" in run.err
    assert f"the tower is in {result['tower']}" in run.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.batch=3"], "unknown key 'batch'"),
        (["tower.kind=nose"], "Unknown kind of tower 'nose'"),
        (["tower.settings.size=7"], "VitConfig.size"),
        (["objective.mask_duplicates=some"], "must be one of none, same, label"),
        (["data.pairs=[nowhere.csv]"], "There is no table nowhere.csv"),
        (["tower.settings.dim=32"], "32 wide, and the anchor's joint space 16"),
    ],
)
def test_a_wrong_setting_ends_with_usage_and_its_name(recipe, bindlm_command, tmp_path, words, said):
    run = bindlm_command("bind", recipe, f"output={tmp_path}", *words)
    assert run.code == 2
    assert said in run.err
