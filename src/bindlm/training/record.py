"""What repeats a run, written beside its weights: recipe, versions, revision, seed and fingerprints of the data."""

import json
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from bindlm.checkpoints.state import write_text_atomic
from bindlm.training.recipe import plain
from bindlm.training.stage_recipe import StageRecipe

_PACKAGES = ("bindlm", "torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "numpy")


class FingerprintedSource(Protocol):
    """A data set as a record needs it."""

    name: str

    @property
    def fingerprint(self) -> str: ...


def write_record(
    recipe: StageRecipe, sources: Iterable[FingerprintedSource], *, encoder_fingerprint: str | None = None
) -> None:
    """Write `recipe.yaml`, the recipe with every default spelled out, and `run.json` into the run's folder.

    `bindlm train OUTPUT/recipe.yaml` repeats the run.

    Args:
        recipe: of the run.
        sources: its data sets.
        encoder_fingerprint: of the encoder whose features are trained on.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    import yaml

    recipe.output.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)
    write_text_atomic(recipe.output / "recipe.yaml", text)
    record = {
        "seed": recipe.run.seed,
        "data": {source.name: source.fingerprint for source in sources},
        "encoder": encoder_fingerprint,
        "versions": versions(),
        "git_revision": git_revision(),
        "machine": {"python": platform.python_version(), "system": platform.platform(), "device": _device()},
    }
    write_text_atomic(recipe.output / "run.json", json.dumps(record, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_revision(folder: Path | None = None) -> str | None:
    """Commit of the code, with `+changes` where files differ from it; None outside a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder or Path(__file__).parent), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's repository, whose revision would say nothing.
    if git("ls-files", "--error-unmatch", __file__) is None:
        return None
    revision = git("rev-parse", "HEAD")
    return f"{revision}+changes" if revision and git("status", "--porcelain", "-uno") else revision


def read_record(output: Path) -> dict[str, Any] | None:
    """`run.json` of a run, or None where there is none."""
    try:
        content = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
