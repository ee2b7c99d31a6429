"""`fit` never loses work: no end of a process costs more than the steps since the last checkpoint."""

import errno
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from bindlm.checkpoints import state as state_module
from bindlm.errors import CheckpointError, ConfigError, TrainingError
from bindlm.training.checkpointing import TRAINED_FILE, checkpoints_in

from .training_case import At, MicroBatches, Stop, assert_same_weights, run, stop, trained_model, weights
from .worker_killed import MOMENTS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("tiny_runs")


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """Folders of runs that were killed, each at another moment."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    launch = [sys.executable, "-m", "tests.training.worker_killed", str(folder)]
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    exits = json.loads((folder / "exits.json").read_text())
    assert set(exits.values()) == {-signal.SIGKILL}, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", [*(f"{moment}-{step}" for moment, step in MOMENTS), "anywhen"])
def test_a_run_that_was_killed_ends_with_the_same_bits(killed, uninterrupted, moment):
    model = trained_model()
    result = run(model, killed / moment)
    assert result.is_finished
    assert_same_weights(weights(model), uninterrupted[0])
    assert result.losses == uninterrupted[1]
    names = sorted(path.name for path in (killed / moment).iterdir())
    assert names == [".training.lock", "checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_run_that_failed_ends_with_the_same_bits_and_log(tmp_path, uninterrupted, step):
    with pytest.raises(Stop):
        run(trained_model(), tmp_path, callbacks=[At(step, stop)])
    model = trained_model()
    torch.manual_seed(step)  # the state of generators before must not matter
    result = run(model, tmp_path)
    assert_same_weights(weights(model), uninterrupted[0])
    assert result.losses == uninterrupted[1]


def test_weights_in_bf16_go_on_with_the_same_bits(tmp_path):
    def low_model():
        model = trained_model("pretrain", lora=None)
        model.bridge.to(torch.bfloat16)
        return model

    whole, parts = low_model(), low_model()
    run(whole, tmp_path / "whole", num_steps=3)
    with pytest.raises(Stop):
        run(low_model(), tmp_path / "parts", num_steps=3, callbacks=[At(3, stop)])
    run(parts, tmp_path / "parts", num_steps=3)
    assert {value.dtype for value in weights(parts).values()} == {torch.bfloat16, torch.float32}
    assert_same_weights(weights(parts), weights(whole))


def test_a_log_line_across_a_failure_is_the_same(tmp_path, uninterrupted):
    with pytest.raises(Stop):
        run(trained_model(), tmp_path, log_every=4, callbacks=[At(3, stop)])
    result = run(trained_model(), tmp_path, log_every=4)
    losses = dict(uninterrupted[1])
    assert result.losses[0] == (4, pytest.approx(sum(losses[step] for step in (1, 2, 3, 4)) / 4, abs=1e-5))


def test_a_finished_run_gives_its_weights_and_trains_no_more(tmp_path, uninterrupted):
    run(trained_model(), tmp_path)
    model, data = trained_model(), MicroBatches(12)
    result = run(model, tmp_path, data=data)
    assert result.is_finished
    assert data.asked == []
    assert_same_weights(weights(model), uninterrupted[0])
    assert result.losses == uninterrupted[1]


def test_a_checkpoint_holds_what_trains_and_no_frozen_weight(tmp_path):
    model = trained_model()
    result = run(model, tmp_path)
    assert_same_weights(load_file(result.last_checkpoint / TRAINED_FILE), weights(model))
    assert sum(p.numel() for p in weights(model).values()) < sum(p.numel() for p in model.parameters()) / 2


@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_as_many_checkpoints_are_kept_as_asked(tmp_path, keep, kept):
    run(trained_model(), tmp_path, keep_checkpoints=keep)
    assert [path.name for path in checkpoints_in(tmp_path)] == [f"checkpoint-{step}" for step in kept]


def test_the_last_step_is_saved_whatever_save_every(tmp_path):
    assert run(trained_model(), tmp_path, save_every=100).last_checkpoint == tmp_path / "checkpoint-6"


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, uninterrupted):
    run(trained_model(), tmp_path)
    os.truncate(tmp_path / "checkpoint-6" / TRAINED_FILE, 100)
    model, data = trained_model(), MicroBatches(12)
    with pytest.warns(UserWarning, match="checkpoint-6 is damaged"):
        run(model, tmp_path, data=data)
    assert data.asked == [8, 9, 10, 11]
    assert_same_weights(weights(model), uninterrupted[0])
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Folder of a run that stopped at its third step."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(Stop):
        run(trained_model(), folder, identity={"data": "a"}, callbacks=[At(3, stop)])
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "run.seed was 0, now 1"),
        ({"num_steps": 7}, "run.num_steps was 6, now 7"),
        ({"accumulation": 3}, "run.batches_a_step was 2, now 3"),
        ({"schedule": lambda step: 1.0}, "run.schedule was"),
        ({"betas": (0.9, 0.99)}, "run.betas was"),
        ({"bf16": True}, "run.bf16 was false, now true"),
        ({"identity": {"data": "b"}}, 'given.data was "a", now "b"'),
    ],
)
def test_another_run_is_not_gone_on_from(begun, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(trained_model(), begun, **{"identity": {"data": "a"}, **changes})
    assert [path.name for path in checkpoints_in(begun)] == ["checkpoint-2"]


def test_other_trained_tensors_are_another_run(tmp_path):
    run(trained_model("pretrain"), tmp_path)
    with pytest.raises(ConfigError, match="run.trained.numbers was"):
        run(trained_model("both"), tmp_path)


def test_starting_afresh_puts_the_checkpoints_aside(tmp_path, uninterrupted):
    run(trained_model(), tmp_path, seed=5)
    model = trained_model()
    run(model, tmp_path, resume=False)
    assert_same_weights(weights(model), uninterrupted[0])
    assert [path.name for path in checkpoints_in(tmp_path / "earlier-1")] == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_step_with_all_saved(tmp_path, uninterrupted, number):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = run(trained_model(), tmp_path, callbacks=[At(3, lambda: signal.raise_signal(number))])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.is_interrupted, result.is_finished, result.num_steps_done) == (True, False, 3)
    assert result.last_checkpoint == tmp_path / "checkpoint-3"
    model = trained_model()
    result = run(model, tmp_path)
    assert (result.is_interrupted, result.is_finished) == (False, True)
    assert_same_weights(weights(model), uninterrupted[0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path, value):
    class Poisoned(MicroBatches):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            if index == 6:  # the first half of step 4
                batch["joint_embedding"][0, 0] = value
            return batch

    model = trained_model()
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            kept.update(weights(model))

    with pytest.raises(TrainingError, match=r"of step 4 is not a finite number.*checkpoint-2"):
        run(model, tmp_path, data=Poisoned(12), callbacks=[Keep()])
    assert_same_weights(weights(model), kept)
    assert all(value.isfinite().all() for value in weights(model).values())


def test_a_gradient_that_is_no_number_stops_before_the_step(tmp_path):
    model = trained_model()
    model.injection.gate.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingError, match="gradient of step 1 is not a finite number.*none yet"):
        run(model, tmp_path)
    assert_same_weights(weights(model), weights(trained_model()))


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path, monkeypatch, uninterrupted):
    sync = state_module._sync

    def full(path):
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    with monkeypatch.context() as patched:
        patched.setattr(state_module, "_sync", full)
        with pytest.raises(
            TrainingError, match=r"Step 4 could not be saved.*no space is left.*checkpoint-2"
        ) as caught:
            run(trained_model(), tmp_path)
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".training.lock", "checkpoint-2"]
    model = trained_model()
    run(model, tmp_path)
    assert_same_weights(weights(model), uninterrupted[0])


def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"Step 2 could not be saved.*no space is left.*none yet"):
            run(trained_model(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == [".training.lock"]
