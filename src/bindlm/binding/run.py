"""A binding run, from a recipe to a folder with the tower: what `bindlm bind` calls."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bindlm.binding.anchor import read_distractors
from bindlm.binding.batches import Batches
from bindlm.binding.companion import FILE as COMPANION_FILE
from bindlm.binding.companion import Companion, drop_lonely
from bindlm.binding.model import BindingModel
from bindlm.binding.recipe import BindRecipe
from bindlm.binding.setup import Say, Setup, counts, prepare
from bindlm.binding.values import BackboneFeatures
from bindlm.binding.watch import CurvesCallback, EvaluationCallback, evaluated
from bindlm.checkpoints.state import write_text_atomic
from bindlm.encoders.towers import tower_settings
from bindlm.training import checkpointing
from bindlm.training.processes import is_first_process, num_processes
from bindlm.training.recipe import plain
from bindlm.training.record import versions
from bindlm.training.schedule import step_multiplier
from bindlm.training.trainer import TrainResult, fit
from bindlm.training.watch import MetricsCallback, ProgressBar

__all__ = ["BindResult", "bind"]

TOWER_FOLDER = "tower"
REPORT_FILE = "report.json"


@dataclass(frozen=True)
class BindResult:
    """What a run left."""

    output: Path
    """The run's folder."""
    tower: Path | None
    """Folder of the trained tower; None where the run was interrupted."""
    report: dict[str, Any] | None
    """What `report.json` says; None where the run was interrupted."""
    training: TrainResult
    """Steps, losses and the last checkpoint."""


def bind(recipe: BindRecipe, *, is_fresh: bool = False, say: Say | None = None) -> BindResult:
    """Bind a sense, or go on with it where the recipe's folder holds checkpoints.

    The folder then holds `recipe.yaml` (all that repeats the run), `metrics.jsonl`, `evaluation.jsonl`, `curves.png`,
    checkpoints, caches of anchors and media, `report.json` and, in `tower/`, the result, which `bindlm.load_embedder`
    takes.

    Args:
        recipe: of the run.
        is_fresh: begin again in spite of checkpoints.
        say: takes lines of progress; None is silent.

    Raises:
        ConfigError: a setting is impossible, or the folder holds a run of another recipe.
        CheckpointError: weights cannot be had, or the disk is full.
        TrainingError: the loss is not finite.
    """
    tell: Say = say if say is not None and is_first_process() else _silent
    setup = prepare(recipe, tell)
    model = make_model(recipe, setup)
    batches = make_batches(recipe, setup)
    if is_first_process():
        _write_recipe(recipe)
    companion = Companion(model, recipe.output, recipe.optimizer.ema)
    training = _fit(recipe, setup, model, batches, companion, resume=not is_fresh)
    if training.is_interrupted:
        return BindResult(recipe.output, None, None, training)
    if training.last_checkpoint is not None and (training.last_checkpoint / COMPANION_FILE).is_file():
        companion.load(training.last_checkpoint)
    companion.put_in_place(is_best=recipe.evaluate.keep_best)
    companion.average = {}
    report = _report(recipe, setup, model, batches, companion, training)
    folder = recipe.output / TOWER_FOLDER
    if is_first_process():
        from bindlm.encoders.bound import save_tower

        save_tower(setup.tower.eval(), folder, anchor=setup.anchor, notice=recipe.notice)
        write_text_atomic(recipe.output / REPORT_FILE, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for split, scores in report["splits"].items():
        tell(f"{split}: {scores['summary']}")
    return BindResult(recipe.output, folder, report, training)


def make_model(recipe: BindRecipe, setup: Setup) -> BindingModel:
    """The tower under the recipe's loss."""
    return BindingModel(
        setup.tower,
        recipe.objective,
        [side.column.weight for side in setup.pairs.sides],
        chunk=recipe.optimizer.micro_batch_size,
        takes_features=isinstance(setup.values, BackboneFeatures),
        distractors=read_distractors(recipe.objective.distractors, setup.banks[0].dim),
    )


def make_batches(recipe: BindRecipe, setup: Setup) -> Batches:
    """The run's batches, as many as its steps."""
    batches = Batches(
        setup.pairs,
        setup.pairs.rows_of("train"),
        setup.banks,
        setup.values,
        recipe.objective,
        batch_size=recipe.optimizer.batch_size,
        seed=recipe.run.seed,
        num_steps=1,
        num_processes=num_processes(),
    )
    batches.num_steps = steps_of(recipe, batches.plan.steps_per_epoch)
    return batches


def steps_of(recipe: BindRecipe, steps_per_epoch: int) -> int:
    """Optimizer steps of a run."""
    optimizer = recipe.optimizer
    if optimizer.num_steps is not None:
        return optimizer.num_steps
    return max(1, math.ceil((optimizer.num_epochs or 0) * steps_per_epoch))


def _fit(
    recipe: BindRecipe, setup: Setup, model: BindingModel, batches: Batches, companion: Companion, *, resume: bool
) -> TrainResult:
    optimizer, run = recipe.optimizer, recipe.run
    warmup: float = optimizer.warmup_steps
    if optimizer.warmup_epochs is not None:
        warmup = optimizer.warmup_epochs * batches.plan.steps_per_epoch
    callbacks: list[Any] = [companion]
    trial = setup.trial("validation", recipe.evaluate.max_media)
    if trial is not None:
        keeps_best = recipe.evaluate.keep_best
        callbacks.append(
            EvaluationCallback(trial, companion, recipe.output, recipe.evaluate.every, keeps_best=keeps_best)
        )
    callbacks += [MetricsCallback(recipe.output), ProgressBar(), CurvesCallback(recipe.output, recipe.output.name)]
    if resume and is_first_process() and recipe.output.is_dir():
        with checkpointing.exclusive(recipe.output):
            drop_lonely(recipe.output)
    return fit(
        model,
        batches,
        output=recipe.output,
        num_steps=batches.num_steps,
        optimizer_groups=_groups(model, optimizer.learning_rate, optimizer.weight_decay),
        schedule=step_multiplier(
            num_steps=batches.num_steps,
            warmup_steps=min(warmup, batches.num_steps),
            min_ratio=optimizer.min_learning_rate / optimizer.learning_rate,
        ),
        betas=optimizer.betas,
        seed=run.seed,
        save_every=run.save_every,
        keep_checkpoints=run.keep_checkpoints,
        log_every=run.log_every,
        bf16=run.bf16,
        max_grad_norm=optimizer.max_grad_norm,
        callbacks=callbacks,
        report_to=run.report_to,
        trainer_arguments={"dataloader_num_workers": run.workers, **run.trainer},
        identity=_identity(recipe, setup),
        resume=resume,
    )


def _groups(model: BindingModel, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; biases, norms and the temperature are not (OpenCLIP)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay, "lr": learning_rate},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "lr": learning_rate},
    ]
    return [group for group in groups if group["params"]]


def _identity(recipe: BindRecipe, setup: Setup) -> dict[str, Any]:
    """What a result depends on beyond what `fit` sees; how a run is watched and kept is not part of it."""
    content = plain(recipe)
    kept: dict[str, Any] = {name: content[name] for name in ("objective", "augment")}
    kept["optimizer"] = {key: value for key, value in content["optimizer"].items() if key != "micro_batch_size"}
    kept["columns"] = [plain(side.column) for side in setup.pairs.sides]
    kept["pairs"] = setup.pairs.fingerprint
    kept["anchors"] = [[bank.fingerprint, list(bank.rows.shape)] for bank in setup.banks]
    kept["tower"] = tower_settings(setup.tower)
    kept["seed"] = recipe.run.seed
    kept["best"] = content["evaluate"] if recipe.evaluate.keep_best else None
    return kept


def _report(
    recipe: BindRecipe,
    setup: Setup,
    model: BindingModel,
    batches: Batches,
    companion: Companion,
    training: TrainResult,
) -> dict[str, Any]:
    splits: dict[str, Mapping[str, Any]] = {}
    for split in ("validation", "test"):
        trial = setup.trial(split)
        if trial is not None:
            scores = evaluated(model, trial, companion)
            splits[split] = {"summary": scores.describe(), **scores.as_json()}
    scale = model.logit_scale().item()
    report = {
        "sense": setup.pairs.modality,
        "tower": tower_settings(setup.tower),
        "parameters": sum(p.numel() for p in model.tower.parameters() if p.requires_grad),
        "anchor": setup.anchor,
        "pairs": counts(setup.pairs),
        "left_out": setup.pairs.left_out,
        "steps": training.num_steps_done,
        "batch_size": batches.plan.batch_size,
        "steps_per_epoch": batches.plan.steps_per_epoch,
        "best_step": companion.best_step if recipe.evaluate.keep_best else None,
        "temperature": 1 / scale,
        "loss": training.losses[-1][1] if training.losses else None,
        "seconds": round(training.seconds, 1),
        "splits": splits,
        "recipe": plain(recipe),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    return json.loads(json.dumps(report))  # lists for tuples, as a reader of the file has it


def _write_recipe(recipe: BindRecipe) -> None:
    """The recipe with every default spelled out; `bindlm bind OUTPUT/recipe.yaml` repeats the run."""
    import yaml

    text = yaml.safe_dump(plain(recipe), sort_keys=False, allow_unicode=True)
    write_text_atomic(recipe.output / "recipe.yaml", text)


def _silent(line: str) -> None:
    """For those who do not watch."""
