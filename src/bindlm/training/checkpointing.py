"""Checkpoints that appear whole or not at all, hold what was trained and nothing else, and are known when damaged.

A checkpoint is a folder `checkpoint-STEP`:

    trained.safetensors    tensors that train, by the model's own names
    optimizer.safetensors  the optimizer's moments, `NAME/exp_avg` and so on
    random.safetensors     state of the random generators, of every process
    trainer_state.json     transformers' record of the run: step, log
    checkpoint.json        what the run is, where the schedule stands, and the SHA-256 of the files above

The folder is written beside, synced and renamed, so that a kill at any moment leaves it absent or whole. Nothing in it
is a pickle.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bindlm.checkpoints.state import atomic_folder, load_state, save_state_atomic, sha256_of
from bindlm.errors import CheckpointError, ConfigError

TRAINED_FILE = "trained.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
STATE_FILE = "trainer_state.json"
"""Of this name because transformers' Trainer reads it."""
MANIFEST_FILE = "checkpoint.json"
VERSION = 1

_NAME = re.compile(r"checkpoint-(\d+)$")
_LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Manifest:
    """What `checkpoint.json` says."""

    step: int
    """Optimizer steps done."""
    identity: dict[str, Any]
    """What the run is: settings that its result depends on."""
    progress: dict[str, Any]
    """Where the schedule and the log stand."""


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, with the shards of all processes put together; every process must take part."""
    tensor = tensor.detach()
    gather = getattr(tensor, "full_tensor", None)  # of a DTensor
    return (tensor if gather is None else gather()).cpu()


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What trains, whole and on the CPU, by name; with FSDP every process must take part."""
    return {name: full_tensor(value) for name, value in model.named_parameters() if value.requires_grad}


def full_state(model: nn.Module, names: list[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a model that may be sharded, whole and on the CPU; with FSDP every process must take part.

    Args:
        model: not wrapped in DDP.
        names: of `model.state_dict()`; None for all.

    Example:
        >>> state = full_state(model, model.saved_names())
        >>> model.save_pretrained("result", state_dict=state, is_main_process=rank == 0)
    """
    state = model.state_dict()
    return {name: full_tensor(state[name]) for name in (state if names is None else names)}


def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be a shard."""
    with torch.no_grad():
        target.copy_(like(target, source))


def like(target: Tensor, source: Tensor) -> Tensor:
    """A whole tensor on the device of `target`, and split as that one is."""
    if getattr(target, "device_mesh", None) is None:
        return source.to(target.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    # every process has read the same file, so nothing needs to be sent
    split = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
    return split.to(target.device)  # another than the mesh's, where shards are offloaded


# -- writing ----------------------------------------------------------------------------------------------------------


def save_checkpoint(
    output: Path,
    manifest: Manifest,
    *,
    trained: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    random_states: Mapping[str, Tensor],
    trainer_state: str,
) -> Path:
    """Write `checkpoint-STEP`.

    Args:
        output: folder of the run.
        manifest: step, identity and progress.
        trained, optimizer, random_states: what the three files hold.
        trainer_state: transformers' `TrainerState` as JSON.

    Raises:
        CheckpointError: the disk is full or not writable; no trace of this checkpoint is left.
    """
    path = output / f"checkpoint-{manifest.step}"
    with atomic_folder(path) as folder:
        for name, tensors in ((TRAINED_FILE, trained), (OPTIMIZER_FILE, optimizer), (RANDOM_FILE, random_states)):
            save_state_atomic(folder / name, tensors)
        (folder / STATE_FILE).write_text(trainer_state, encoding="utf-8")
        names = (TRAINED_FILE, OPTIMIZER_FILE, RANDOM_FILE, STATE_FILE)
        content = {
            "version": VERSION,
            "step": manifest.step,
            "identity": manifest.identity,
            "progress": manifest.progress,
            "sha256": {name: sha256_of(folder / name) for name in names},
        }
        (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def keep_newest(output: Path, count: int, *, upto: int) -> None:
    """Remove all but the newest `count` checkpoints of steps up to `upto`.

    Later ones are damaged, or they would have been resumed from: they must not crowd out good ones.
    """
    old = [path for path in checkpoints_in(output) if step_of(path) <= upto][:-count]
    for path in old:
        doomed = path.with_name(f".{path.name}.removed.part")  # half a removal must not look like a checkpoint
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


# -- finding and reading ----------------------------------------------------------------------------------------------


def checkpoints_in(output: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, whole or damaged."""
    if not output.is_dir():
        return []
    return sorted((path for path in output.iterdir() if _NAME.match(path.name) and path.is_dir()), key=step_of)


def step_of(path: Path) -> int:
    """Optimizer steps that a checkpoint's name tells."""
    match = _NAME.match(path.name)
    assert match is not None, path
    return int(match[1])


def last_before(output: Path, step: int) -> str:
    """How messages name the newest checkpoint of an earlier step."""
    older = [path for path in checkpoints_in(output) if step_of(path) < step]
    return str(older[-1]) if older else "none yet"


def last_whole_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written; None where there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    found = checkpoints_in(output)
    for path in reversed(found):
        fault = _fault_of(path)
        if fault is None:
            return path
        warnings.warn(f"{path} is damaged ({fault}); the checkpoint before it is used.", UserWarning, stacklevel=2)
    if found:
        raise CheckpointError(
            f"Every checkpoint in {output} is damaged. Train into another folder, or start afresh with resume=False, "
            "which puts these aside."
        )
    return None


def read_manifest(path: Path) -> Manifest:
    """What `checkpoint.json` of a checkpoint says."""
    content = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
    return Manifest(step=content["step"], identity=content["identity"], progress=content["progress"])


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """One of the tensor files of a checkpoint."""
    return load_state(path / name)


def _fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        content = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            return f"version {content['version']}, expected {VERSION}"
        if content["step"] != step_of(path):
            return f"it is of step {content['step']}"
        digests = content["sha256"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} is missing or no JSON"
    for name, digest in digests:
        try:
            if sha256_of(path / name) != digest:
                return f"{name} is not as it was written"
        except CheckpointError:
            return f"{name} is missing"
    return None


def check_identity(path: Path, given: Mapping[str, Any]) -> None:
    """Refuse to go on with settings under which the result would be another.

    Raises:
        ConfigError: which settings differ, and how.
    """
    differences = list(_differences(read_manifest(path).identity, json.loads(json.dumps(given))))
    if differences:
        shown = "; ".join(differences[:5]) + ("; ..." if len(differences) > 5 else "")
        raise ConfigError(
            f"{path} is of a run with other settings ({shown}). Go back to those, or train into another folder, or "
            "start afresh with resume=False, which puts its checkpoints aside."
        )


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            inner = f"{where}.{key}" if where else key
            if key not in before or key not in now:
                yield f"{inner} {'is new' if key in now else 'is gone'}"
            else:
                yield from _differences(before[key], now[key], inner)
    elif before != now:
        yield f"{where} was {_short(before)}, now {_short(now)}"


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "..."


# -- the folder of a run ----------------------------------------------------------------------------------------------


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Have a run's folder to oneself, without what killed runs left half written.

    Raises:
        ConfigError: another process trains in it.
        CheckpointError: the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    from bindlm.checkpoints.home import disk_errors

    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".training.lock")
        try:
            # not at once: data workers of a killed run hold the lock for as long as they outlive it
            lock.acquire(timeout=_LOCK_SECONDS, poll_interval=0.1)
        except Timeout:
            raise ConfigError(
                f"Another process is training in {output}; wait for it, or use another folder."
            ) from None
        except NotImplementedError:
            pass  # some file systems of clusters have no locks
    try:
        remove_leftovers(output)
        yield
    finally:
        lock.release()


def remove_leftovers(output: Path) -> None:
    """Remove half-written and half-removed checkpoints; only for who has the folder to himself."""
    for path in output.glob(".checkpoint-*"):
        whole = output / path.name.removeprefix(".").removesuffix(".replaced")
        if path.name.endswith(".replaced") and not whole.exists():
            os.replace(path, whole)  # killed between the two renames of a replacement
        else:
            shutil.rmtree(path, ignore_errors=True)


def put_aside(output: Path) -> None:
    """Move the checkpoints of an earlier run into `earlier-1`, `earlier-2`, ..."""
    found = checkpoints_in(output)
    if not found:
        return
    number = 1
    while (output / f"earlier-{number}").exists():
        number += 1
    aside = output / f"earlier-{number}"
    aside.mkdir()
    for path in found:
        os.replace(path, aside / path.name)
