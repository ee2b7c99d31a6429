"""Training processes that are killed: `python -m tests.training.worker_killed FOLDER`.

As `kill -9` does it: nothing is flushed, closed or handled. The processes are forked from this one, so that libraries
are imported once; this one itself trains nothing, and has no threads.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import memory
from transformers import TrainerCallback

from bindlm.checkpoints import state
from bindlm.training import checkpointing

from .training_case import run, trained_model

MOMENTS = [("step", 1), ("step", 4), ("writing", 2), ("writing", 4), ("renaming", 4), ("removing", 6)]
"""After a step and before it is saved; in the middle of its checkpoint; all written, but the folder not in place; the
new checkpoint in place, and the old one half removed."""
NUM_KILLS = 6
"""How often one run is killed at a moment that nobody chose, unless it ends before."""


def die(*_args: Any, **_kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _DieAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            die()


def prepare(moment: str, step: int) -> list[TrainerCallback]:
    """Arrange for death; the patches go with the process."""
    name = f"checkpoint-{step}"
    save, replace, rmtree = checkpointing.save_state_atomic, os.replace, shutil.rmtree

    def writing(path: Path, tensors: Any, *args: Any) -> None:
        if moment == "writing" and name in str(path) and Path(path).name == checkpointing.OPTIMIZER_FILE:
            Path(path).write_bytes(b"half")
            die()
        save(path, tensors, *args)

    def renaming(source: Any, target: Any) -> None:
        if moment == "renaming" and Path(target).name == name:
            die()
        replace(source, target)

    def removing(path: Any, *args: Any, **kwargs: Any) -> None:
        if moment == "removing" and Path(path).name.endswith(".removed.part") and Path(path).exists():
            next(Path(path).iterdir()).unlink()
            die()
        rmtree(path, *args, **kwargs)

    checkpointing.save_state_atomic = writing
    state.os.replace = renaming
    shutil.rmtree = removing
    return [_DieAfter(step)] if moment == "step" else []


def child(folder: Path, moment: str = "never", step: int = 0, seconds: float | None = None) -> int:
    """Train in a process of its own, which dies at that moment or after these seconds; its exit status."""
    pid = os.fork()
    if pid == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            run(trained_model(), folder, callbacks=prepare(moment, step))
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_anywhen(folder: Path, whole_seconds: float) -> int:
    """Kill one run again and again, each time within half of what a whole run takes; the exit status of the first.

    A machine that has become fast since may end even the first: then it begins anew, with half of the time.
    """
    draw = random.Random(0)
    exits: list[int] = []
    while len(exits) < NUM_KILLS and 0 not in exits:  # a fast machine ends the run between two kills, which is fine
        exits.append(child(folder, seconds=draw.uniform(0.05, 0.5) * whole_seconds))
        if exits == [0]:
            shutil.rmtree(folder)
            exits, whole_seconds = [], whole_seconds / 2
    return exits[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    memory.gc = SimpleNamespace(collect=lambda: 0)  # accelerate collects garbage at every start, a third of a tiny run
    root = Path(sys.argv[1])
    exits = {f"{moment}-{step}": child(root / f"{moment}-{step}", moment, step) for moment, step in MOMENTS}
    start = time.monotonic()
    child(root / "whole")
    exits["anywhen"] = kill_anywhen(root / "anywhen", time.monotonic() - start)
    (root / "exits.json").write_text(json.dumps(exits))
