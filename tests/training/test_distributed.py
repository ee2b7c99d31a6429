"""Two processes (gloo, CPU) learn what one learns, wrapped in DDP or sharded with FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bindlm.training.checkpointing import TRAINED_FILE, full_state

from ..tiny import token_batch, unit_rows
from .training_case import PLAIN_LORA, run, trained_model, weights

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Any, list[tuple[int, float]], Path]:
    """The same steps in this process, two micro-batches each."""
    folder = tmp_path_factory.mktemp("alone")
    model = trained_model(lora=PLAIN_LORA)
    result = run(model, folder, accumulation=2)
    return model, result.losses, folder


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Folder of what two processes left; one launch for all tests, since most of its time is imports."""
    folder = tmp_path_factory.mktemp("together")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.training.worker_distributed", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Warning" not in done.stderr, done.stderr[-4000:]
    return folder


def report(folder: Path, way: str, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / way / f"{rank}.json").read_text())


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_loss_curve_is_that_of_one_process(alone, together, way):
    # worst measured: 2e-7
    assert [loss for _, loss in report(together, way)["losses"]] == pytest.approx(
        [loss for _, loss in alone[1]], abs=1e-4
    )


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_the_weights_are_those_of_one_process(alone, together, way):
    model = alone[0]
    saved = load_file(together / way / "model.safetensors")
    # worst measured: 1.5e-6; AdamW's first steps magnify what differs in the last bit of a gradient
    assert largest_difference(saved, full_state(model, model.saved_names())) < 1e-5
    checkpoint = load_file(together / way / "run" / "checkpoint-6" / TRAINED_FILE)
    assert largest_difference(checkpoint, weights(model)) < 1e-5
    moved = weights(trained_model(lora=PLAIN_LORA))
    assert all((moved[name] - value).abs().max() > 1e-4 for name, value in weights(model).items())


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_processes_take_turns_at_the_data(together, way):
    assert report(together, way, 0)["asked"] == [0, 2, 4, 6, 8, 10]
    assert report(together, way, 1)["asked"] == [1, 3, 5, 7, 9, 11]


def test_each_process_keeps_half_of_what_is_sharded(alone, together):
    kept = [report(together, "fsdp", rank)["kept"] for rank in (0, 1)]
    for name, parameter in alone[0].named_parameters():
        here, there = kept[0][name], kept[1][name]
        if name.startswith("encoder."):
            assert here == there == parameter.numel(), name
        else:
            assert here + there == parameter.numel(), name
            assert here <= -(-len(parameter) // 2) * (parameter.numel() // len(parameter)), name


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_request_to_one_process_stops_all_after_the_same_step(together, way):
    reports = [report(together, f"{way}-stopped", rank) for rank in (0, 1)]
    # the second process learns of it when the next step begins
    assert [each["done"] for each in reports] == [4, 4]
    assert all(each["is_interrupted"] for each in reports)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_what_two_processes_began_one_process_ends(alone, together, way):
    model = trained_model(lora=PLAIN_LORA)
    result = run(model, together / f"{way}-stopped" / "run", accumulation=2)
    assert result.is_finished
    assert [loss for _, loss in result.losses] == pytest.approx([loss for _, loss in alone[1]], abs=1e-4)
    assert largest_difference(weights(model), weights(alone[0])) < 1e-5


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_model_in_training_answers(alone, together, way):
    model = alone[0]
    with torch.no_grad():
        tokens = model.generate(token_batch(1, 4), joint_embedding=unit_rows(1), max_new_tokens=4, do_sample=False)
    for rank in (0, 1):
        assert report(together, way, rank)["tokens"] == tokens.tolist()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_only_the_first_process_writes(together, way):
    names = sorted(path.name for path in (together / way / "run").iterdir())
    assert names == [".training.lock", "checkpoint-4", "checkpoint-6"]
    states = load_file(together / way / "run" / "checkpoint-6" / "random.safetensors")
    assert {name.split("/")[0] for name in states} == {"0", "1"}
