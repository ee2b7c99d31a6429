"""A stage from its recipe to a model that answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bindlm
from bindlm.errors import ConfigError
from bindlm.training.dry_run import plan_stage
from bindlm.training.recipe import load_recipe
from bindlm.training.run import StageResult, train_stage
from bindlm.training.stage_recipe import StageRecipe

from ..tiny import picture
from .stage_case import NAMES, write_data, write_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    write_data(folder / "data")
    write_recipe(folder)
    return folder


def recipe_in(folder: Path, *overrides: str) -> StageRecipe:
    return load_recipe(folder / "recipe.yaml", StageRecipe, overrides)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(folder: Path, lines: list[str]) -> StageResult:
    return train_stage(recipe_in(folder), say=lines.append)


def test_the_folder_holds_all_that_repeats_and_shows_the_run(result: StageResult) -> None:
    held = {path.name for path in result.output.iterdir()}
    assert {"recipe.yaml", "run.json", "metrics.jsonl", "loss.png", "model", "checkpoint-6"} <= held
    record = json.loads((result.output / "run.json").read_text())
    assert set(record["data"]) == {"captions", "talk"}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or record["versions"]["torch"]
    again = load_recipe(result.output / "recipe.yaml", StageRecipe)
    assert again.optimizer.num_steps == 6
    steps = [json.loads(line)["step"] for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_torn_picture_is_left_out_and_said(result: StageResult, lines: list[str]) -> None:
    assert any("samples of 1 unreadable media left out" in line for line in lines)
    assert any(f"{len(NAMES) + 2} samples ({len(NAMES) + 1} with a medium)" in line for line in lines)


def test_what_trains_and_what_does_not_is_printed(result: StageResult, lines: list[str]) -> None:
    table = {line.split("  ")[0]: line.split() for line in lines}
    assert table["bridge"][1] != "0"
    assert table["encoder"][1] == "0"
    assert table["language model"][2] == "0"


def test_the_loss_falls_and_the_model_answers(result: StageResult) -> None:
    losses = [loss for _, loss in result.training.losses]
    assert losses[-1] < losses[0]
    assert result.model is not None
    model = bindlm.load(result.model)
    assert isinstance(model.ask("Say what it is.", image=picture(0), max_new_tokens=4), str)
    assert model.config.lora_scope == "always"
    assert model.config.tuned == {
        "norms": True,
        "biases": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }


def test_the_finished_run_is_not_done_again(folder: Path, result: StageResult) -> None:
    again = train_stage(recipe_in(folder))
    assert again.training.is_finished
    assert again.training.seconds < result.training.seconds
    assert again.training.losses == result.training.losses


def test_other_settings_are_refused_in_the_same_folder(folder: Path, result: StageResult) -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        train_stage(recipe_in(folder, "optimizer.learning_rate=0.01"))


def test_another_split_into_micro_batches_learns_the_same(folder: Path, result: StageResult, tmp_path: Path) -> None:
    whole = train_stage(recipe_in(folder, f"output={tmp_path}", "optimizer.micro_batch_size=4"))
    for (_, loss), (_, other) in zip(result.training.losses, whole.training.losses, strict=True):
        assert other == pytest.approx(loss, abs=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(folder: Path, result: StageResult, tmp_path: Path) -> None:
    """Killed with SIGKILL after the second step, by the process itself; then the same command."""
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bindlm.training import bind_trainer\n"
        "step = bind_trainer.BindTrainer.training_step; seen = []\n"
        "def dying(*arguments, **options):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(*arguments, **options)\n"
        "bind_trainer.BindTrainer.training_step = dying\n"
        "from bindlm.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", str(folder / "recipe.yaml"), f"output={tmp_path}"]
    killed = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2"}
    train_stage(recipe_in(folder, f"output={tmp_path}"))
    ours, theirs = (load_file(output / "model" / "model.safetensors") for output in (tmp_path, result.output))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_changed_picture_is_embedded_again(folder: Path, result: StageResult, tmp_path: Path) -> None:
    place = folder / "data" / "images" / "3.png"
    before, times = place.read_bytes(), place.stat()
    said: list[str] = []
    try:
        picture(77).save(place)
        train_stage(recipe_in(folder, f"output={tmp_path}", "optimizer.num_steps=1"), say=said.append)
    finally:
        place.write_bytes(before)
        os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert any(line.startswith("1 embedded") for line in said)


def test_a_dry_run_counts_what_the_run_trains_and_writes_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    plan = plan_stage(recipe_in(folder, f"output={tmp_path / 'run'}"))
    assert plan.num_steps == 6
    assert plan.accumulation == 2
    assert plan.memory.num_trained == plan.parameters.trained
    assert plan.memory.total > plan.memory.frozen > 0
    assert not list(tmp_path.glob("run/checkpoint-*"))
    assert json.dumps(plan.as_json())


def test_streamed_data_need_a_number_of_steps_and_train(folder: Path, tmp_path: Path) -> None:
    streaming = ["data.sources.0.streaming=true", "data.sources.1.streaming=true", f"output={tmp_path}"]
    result = train_stage(recipe_in(folder, *streaming))
    assert result.training.is_finished
    with pytest.raises(ConfigError, match="num_steps"):
        train_stage(recipe_in(folder, *streaming, "optimizer.num_steps=null", "optimizer.num_epochs=2", "run.seed=1"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("features=null", "features.path"),
        ("optimizer.warmup_steps=7", "longer than the run"),
        ("data.sources.1.name=captions", "Two data sets are called 'captions'"),
        ("run.caption_pictures=[nowhere.png]", "nowhere.png"),
        ("model.start_from=nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_is_said_before_training(folder: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(bindlm.BindLMError) as caught:
        train_stage(recipe_in(folder, f"output={tmp_path}", override))
    assert said in str(caught.value)
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.exhaustive  # test_distributed.py compares the trainer itself under both ways of sharing
def test_two_processes_learn_what_one_does(folder: Path, result: StageResult, tmp_path: Path) -> None:
    words = ["train", str(folder / "recipe.yaml"), f"output={tmp_path}", f"features.path={tmp_path / 'features'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "bindlm", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for (step, loss), line in zip(result.training.losses, lines, strict=True):
        assert line["step"] == step
        assert line["loss"] == pytest.approx(loss, abs=1e-4)
    ours, theirs = (load_file(output / "model" / "model.safetensors") for output in (tmp_path, result.output))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)
