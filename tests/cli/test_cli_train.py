"""`bindlm train` as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..training.stage_case import write_data, write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_data(folder / "data")
    return write_recipe(folder)


def test_a_dry_run_prints_data_parameters_and_memory(recipe, bindlm_command, tmp_path):
    run = bindlm_command("train", recipe, f"output={tmp_path}", "--dry-run")
    assert run.code == 0, run.err
    assert "6 optimizer steps of 2 micro-batches a device" in run.out
    assert "language model" in run.out
    assert "in all, on each device" in run.out


def test_settings_may_stand_after_options(recipe, bindlm_command, tmp_path):
    run = bindlm_command("train", recipe, "--dry-run", f"output={tmp_path}", "--json", "optimizer.num_steps=3")
    assert run.code == 0, run.err
    assert json.loads(run.out)["num_steps"] == 3


def test_a_dry_run_as_json_is_one_object(recipe, bindlm_command, tmp_path):
    run = bindlm_command("train", recipe, f"output={tmp_path}", "--dry-run", "--json")
    plan = json.loads(run.out)
    assert plan["num_steps"] == 6
    assert plan["memory"]["total"] == sum(
        plan["memory"][part]
        for part in ("frozen", "trained", "gradients", "optimizer", "gathered", "activations", "runtime")
    )


def test_a_run_tells_where_the_model_is(recipe, bindlm_command, tmp_path):
    run = bindlm_command("train", recipe, f"output={tmp_path}", "optimizer.num_steps=2", "--json")
    assert run.code == 0, run.err
    result = json.loads(run.out)
    assert result["steps"] == 2
    assert result["loss"] > 0
    assert (Path(result["model"]) / "model.safetensors").is_file()
    assert f"--model {result['model']}" in run.err
    assert "samples of 1 unreadable media left out" in run.err
    assert "step 2/2" in run.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.yaml"], "no recipe nowhere.yaml"),
        (["RECIPE", "optimiser.num_steps=2"], "unknown key 'optimiser'"),
        (["RECIPE", "optimizer.num_steps=two"], "num_steps must be of type int"),
        (["RECIPE", "stage=finetune"], "pretrain, instruct, quality"),
        (["RECIPE", "data.sources.0.path=none.tsv"], "none.tsv"),
        (["RECIPE", "data.sources.0.format=tsv"], "captions"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_a_usage_error(recipe, bindlm_command, tmp_path, words, said):
    words = [recipe if word == "RECIPE" else word for word in words]
    run = bindlm_command("train", *words, *([f"output={tmp_path}"] if recipe in words else []))
    assert run.code == 2
    assert said in run.err
    assert "Traceback" not in run.err


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(recipe, tmp_path):
    command = [sys.executable, "-m", "bindlm", "train", str(recipe), f"output={tmp_path}", "optimizer.num_steps=4000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # a shell that starts jobs in the background has SIGINT ignored, and children inherit that
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=_listen, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped after step" in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said


def _listen() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
