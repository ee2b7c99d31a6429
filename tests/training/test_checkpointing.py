"""Checkpoints: whole or absent, and known when damaged."""

import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bindlm.checkpoints import state as state_module
from bindlm.errors import CheckpointError, ConfigError
from bindlm.training import checkpointing
from bindlm.training.checkpointing import (
    MANIFEST_FILE,
    OPTIMIZER_FILE,
    TRAINED_FILE,
    Manifest,
    check_identity,
    checkpoints_in,
    exclusive,
    keep_newest,
    last_whole_checkpoint,
    put_aside,
    read_manifest,
    read_tensors,
    save_checkpoint,
)
from bindlm.training.generators import random_state, set_random_state

CPU = torch.device("cpu")


def save(output: Path, step: int, **identity: object) -> Path:
    return save_checkpoint(
        output,
        Manifest(step, {"seed": 0, "nested": {"rate": 0.5}, **identity}, {"where": step}),
        trained={"weight": torch.full((3,), float(step))},
        optimizer={"weight/exp_avg": torch.ones(3)},
        random_states={"0/torch": torch.get_rng_state()},
        trainer_state="{}",
    )


def names(output: Path) -> list[str]:
    return [path.name for path in checkpoints_in(output)]


def test_what_was_saved_is_read(tmp_path):
    path = save(tmp_path, 7)
    assert path.name == "checkpoint-7"
    assert last_whole_checkpoint(tmp_path) == path
    assert read_manifest(path).progress == {"where": 7}
    assert read_tensors(path, TRAINED_FILE)["weight"].tolist() == [7, 7, 7]
    assert sorted(each.name for each in path.iterdir()) == [
        "checkpoint.json",
        "optimizer.safetensors",
        "random.safetensors",
        "trained.safetensors",
        "trainer_state.json",
    ]


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


def damage_bit(path: Path) -> None:
    content = bytearray((path / OPTIMIZER_FILE).read_bytes())
    content[-1] ^= 1
    (path / OPTIMIZER_FILE).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_bit, "optimizer.safetensors is not as it was written"),
        (lambda path: os.truncate(path / TRAINED_FILE, 10), "trained.safetensors is not as it was written"),
        (lambda path: (path / TRAINED_FILE).unlink(), "trained.safetensors is missing"),
        (lambda path: (path / MANIFEST_FILE).unlink(), "checkpoint.json is missing or no JSON"),
        (lambda path: (path / MANIFEST_FILE).write_text("{"), "checkpoint.json is missing or no JSON"),
        (lambda path: (path / MANIFEST_FILE).write_text("[]"), "checkpoint.json is missing or no JSON"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(tmp_path, damage, reason):
    whole = save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with pytest.warns(UserWarning, match=f"checkpoint-2 is damaged .{reason}"):
        assert last_whole_checkpoint(tmp_path) == whole


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path):
    whole = save(tmp_path, 1)
    os.rename(save(tmp_path, 2), tmp_path / "checkpoint-9")
    with pytest.warns(UserWarning, match="it is of step 2"):
        assert last_whole_checkpoint(tmp_path) == whole


def test_where_all_are_damaged_nothing_starts_anew_unasked(tmp_path):
    damage_bit(save(tmp_path, 1))
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="resume=False"):
        last_whole_checkpoint(tmp_path)


def test_the_newest_are_kept_and_damaged_later_ones_do_not_crowd_them_out(tmp_path):
    for step in (1, 2, 3, 8):
        save(tmp_path, step)
    keep_newest(tmp_path, 2, upto=3)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-8"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("file", [TRAINED_FILE, OPTIMIZER_FILE, "trainer_state.json", MANIFEST_FILE])
def test_a_full_disk_leaves_no_trace(tmp_path, monkeypatch, file):
    save(tmp_path, 1)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    sync = state_module._sync

    def full(path):
        if Path(path).name.startswith((file, f".{file}")):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    monkeypatch.setattr(state_module, "_sync", full)
    with pytest.raises(CheckpointError, match="no space is left"):
        save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_leftovers_of_killed_runs_are_removed_at_the_start(tmp_path):
    save(tmp_path, 1)
    for name in (".checkpoint-2.host.1.0badcafe.part", ".checkpoint-1.removed.part"):
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "new" / TRAINED_FILE).write_bytes(b"half")
    with exclusive(tmp_path):
        assert not list(tmp_path.glob(".checkpoint-*"))
        assert names(tmp_path) == ["checkpoint-1"]


def test_a_replacement_that_was_killed_half_way_is_undone(tmp_path):
    os.rename(save(tmp_path, 2), tmp_path / ".checkpoint-2.replaced")
    with exclusive(tmp_path):
        assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "_LOCK_SECONDS", 0.1)
    with exclusive(tmp_path):
        with pytest.raises(ConfigError, match="Another process is training"), exclusive(tmp_path):
            pass
    with exclusive(tmp_path):
        pass


def test_checkpoints_put_aside_are_kept(tmp_path):
    for _ in range(2):
        save(tmp_path, 3)
        put_aside(tmp_path)
    assert names(tmp_path) == []
    assert names(tmp_path / "earlier-1") == names(tmp_path / "earlier-2") == ["checkpoint-3"]
    put_aside(tmp_path)
    assert not (tmp_path / "earlier-3").exists()


def test_the_same_identity_is_gone_on_from(tmp_path):
    check_identity(save(tmp_path, 1, betas=[0.9, 0.95]), {"seed": 0, "nested": {"rate": 0.5}, "betas": (0.9, 0.95)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1, "nested": {"rate": 0.5}}, "seed was 0, now 1"),
        ({"seed": 0, "nested": {"rate": 0.25}}, "nested.rate was 0.5, now 0.25"),
        ({"seed": 0}, "nested is gone"),
        ({"seed": 0, "nested": {"rate": 0.5}, "more": 1}, "more is new"),
    ],
)
def test_another_identity_is_refused_with_what_differs(tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        check_identity(save(tmp_path, 1), changed)


def test_generators_go_on_where_they_were():
    random.gauss(0, 1)  # Python and numpy keep the second of a pair of normal numbers
    np.random.standard_normal()
    state = random_state(CPU)

    def draw():
        return random.gauss(0, 1), random.random(), *np.random.standard_normal(3), *torch.rand(2).tolist()

    expected = draw()
    assert draw() != expected
    set_random_state(state, CPU)
    assert draw() == expected


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    for path in save(tmp_path, 1).iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"
            assert path.read_bytes()[8:9] == b"{"
