"""One stage of training, on one device or many: `fit` never loses a step that it has saved.

    result = fit(model, data, output=Path("run"), num_steps=1000, accumulation=4, save_every=200, ...)

The same call goes on where the last one ended, whatever ended it: the end, Ctrl-C, a kill, a full disk.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from bindlm.errors import ConfigError
from bindlm.injections import find_decoder_layers
from bindlm.training import checkpointing
from bindlm.training.arguments import build_arguments, taken_fsdp
from bindlm.training.bind_trainer import BindTrainer, Conductor, Plan, load_trained
from bindlm.training.identity import run_identity
from bindlm.training.interruption import listening
from bindlm.training.schedule import step_multiplier

__all__ = ["BindTrainer", "TrainResult", "fit", "train"]
_ABSENT = object()


@dataclass(frozen=True)
class TrainResult:
    """How far a call of `fit` came."""

    num_steps_done: int
    """Optimizer steps, those of earlier calls included."""
    is_finished: bool
    """Whether these are all."""
    is_interrupted: bool
    """Whether Ctrl-C or SIGTERM ended the call; the same call goes on."""
    losses: list[tuple[int, float]]
    """Step and mean loss of a target token over the `log_every` steps up to it, from the first step of the run on."""
    last_checkpoint: Path | None
    """The newest one."""
    seconds: float
    """Of this call."""


def fit(
    model: nn.Module,
    data: Dataset[dict[str, Tensor]],
    *,
    output: Path,
    num_steps: int,
    accumulation: int = 1,
    optimizer_groups: list[dict[str, Any]],
    schedule: Callable[[int], float],
    betas: tuple[float, float] = (0.9, 0.95),
    seed: int = 0,
    save_every: int = 200,
    keep_checkpoints: int = 2,
    log_every: int = 10,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    compile_layers: bool = False,
    max_grad_norm: float | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: Sequence[str] = (),
    trainer_arguments: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    resume: bool = True,
) -> TrainResult:
    """Train what requires gradients, from the last checkpoint in `output` on if there is one.

    Started by `torchrun`, the processes share each step's micro-batches: process r of W takes items r, r + W, r + 2W …
    of the data. They wrap the model in DDP, or shard it with FSDP2 if `trainer_arguments` has `fsdp`. All processes
    must see the same `output`; only the first writes there.

    Args:
        model: a `BindLMForConditionalGeneration`, or any module whose forward takes the micro-batches and returns a
            `loss`.
        data: items are finished micro-batches: `input_ids (R, T)`, `labels (R, T)` aligned with them and -100 where
            there is no target, and what else the model's forward takes. Map-style: in index order, at least
            num_steps x accumulation x W of them. An `IterableDataset` has to give as many, and is read again up to
            where a resumed run goes on.
        output: folder of the run's checkpoints and logs.
        num_steps: optimizer steps of the whole run.
        accumulation: micro-batches a process takes for one optimizer step.
        optimizer_groups: as AdamW takes them: `params`, `lr`, `weight_decay`, …; of parameters that train.
        schedule: optimizer step, from 0 -> multiplier of every group's `lr`.
        betas: of AdamW.
        seed: of everything random but the data.
        save_every: optimizer steps between checkpoints; there is one at the end in any case.
        keep_checkpoints: how many stay.
        log_every: optimizer steps between log lines.
        bf16: whether matrix products are made in bfloat16 (autocast).
        gradient_checkpointing: whether decoder layers are computed again in backward.
        compile_layers: whether decoder layers go through `torch.compile`.
        max_grad_norm: where the gradient's norm is clipped; None for nowhere.
        callbacks: of transformers' Trainer. `state.num_input_tokens_seen` counts the tokens of all processes.
        report_to: trackers, by transformers' names; "tensorboard" writes into `output`. None by default.
        trainer_arguments: further fields of `TrainingArguments`:
            {"fsdp": True, "fsdp_config": {"reshard_after_forward": True, "cpu_offload": False}} shards with FSDP2;
            {"deepspeed": "ds.json"} runs under DeepSpeed (install `deepspeed`, start with its launcher or `torchrun`;
            let the file say "auto" for batch sizes, accumulation and clipping, and leave optimizer and scheduler out:
            ours are used. DeepSpeed writes checkpoints in its own format, which is not atomic);
            {"dataloader_num_workers": 2} prepares micro-batches in the background.
        identity: what else the result depends on (recipe, data); JSON. A checkpoint of another is not gone on from.
        resume: False starts afresh, and puts earlier checkpoints aside.

    Returns:
        How far it came. The model has the trained weights; with FSDP it stays sharded, see
        `checkpointing.full_state`.

    Raises:
        ConfigError: a setting is impossible, or the last checkpoint is of a run with others.
        TrainingError: loss or gradient is not finite, or a checkpoint cannot be written.
        CheckpointError: all checkpoints are damaged.
    """
    started = time.monotonic()
    output = Path(output)
    given = dict(trainer_arguments or {})
    fsdp = taken_fsdp(given)
    arguments = build_arguments(
        given,
        output_dir=str(output),
        max_steps=num_steps,
        gradient_accumulation_steps=accumulation,
        save_steps=save_every,
        logging_steps=log_every,
        report_to=list(report_to) or "none",
        seed=seed,
        bf16=bf16,
        max_grad_norm=max_grad_norm or 0.0,
        checkpoints_activations=gradient_checkpointing,
    )
    if fsdp is not None and arguments.world_size == 1:
        raise ConfigError("fsdp shards over several processes, and here is one; start with torchrun, or leave it out.")
    num_batches = num_steps * accumulation * arguments.world_size
    data = _checked_data(data, num_batches)
    _check_groups(model, optimizer_groups)
    run = run_identity(
        model,
        optimizer_groups,
        schedule,
        num_steps=num_steps,
        batches_a_step=accumulation * arguments.world_size,
        betas=betas,
        seed=seed,
        bf16=bf16,
        max_grad_norm=max_grad_norm,
    )
    whole_identity = json.loads(json.dumps({"run": run, "given": dict(identity or {})}, default=str))
    with checkpointing.exclusive(output) if arguments.process_index == 0 else nullcontext():
        checkpoint = _checkpoint_to_resume(output, arguments, whole_identity, resume=resume)
        num_done, is_interrupted, losses = num_steps, False, []
        if checkpoint is not None and checkpointing.step_of(checkpoint) >= num_steps:
            load_trained(model, checkpoint)
            losses = _losses(json.loads((checkpoint / checkpointing.STATE_FILE).read_text("utf-8"))["log_history"])
        else:
            with listening() as interruption, _compiled(model if compile_layers else None):
                plan = Plan(optimizer_groups, schedule, betas, keep_checkpoints, whole_identity, interruption, fsdp)
                num_done, is_interrupted, losses = _run(model, data, arguments, plan, checkpoint, callbacks)
    found = checkpointing.checkpoints_in(output)
    return TrainResult(
        num_steps_done=num_done,
        is_finished=num_done >= num_steps,
        is_interrupted=is_interrupted,
        losses=losses,
        last_checkpoint=found[-1] if found else None,
        seconds=time.monotonic() - started,
    )


def train(
    model: nn.Module,
    data: Dataset[dict[str, Tensor]],
    *,
    folder: Path,
    num_steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    warmup_steps: int = 20,
    save_every: int = 100,
    seed: int = 0,
    max_grad_norm: float = 1.0,
) -> TrainResult:
    """`fit` with one micro-batch a step, under linear warmup and half a cosine to zero.

    Args:
        model: any module whose forward takes the micro-batches and returns a `loss`, or has a head.
        data: finished micro-batches, in index order.
        folder: checkpoints and logs go here.
        num_steps: optimizer steps.
        learning_rate: peak, after warmup.
        weight_decay: for tensors of two dimensions and more.
        warmup_steps: linear.
        save_every: steps between checkpoints.
        seed: of torch; the data has its own.
        max_grad_norm: gradient clipping.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay, "lr": learning_rate},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "lr": learning_rate},
    ]
    return fit(
        model,
        data,
        output=folder,
        num_steps=num_steps,
        optimizer_groups=[group for group in groups if group["params"]],
        schedule=step_multiplier(num_steps=num_steps, warmup_steps=warmup_steps),
        seed=seed,
        save_every=save_every,
        log_every=max(1, min(10, num_steps // 20)),
        max_grad_norm=max_grad_norm,
    )


def _run(
    model: nn.Module,
    data: Dataset[Any],
    arguments: TrainingArguments,
    plan: Plan,
    checkpoint: Path | None,
    callbacks: Sequence[TrainerCallback],
) -> tuple[int, bool, list[tuple[int, float]]]:
    """Train; steps done, whether interrupted, and losses."""
    conductor = Conductor(checkpoint)
    was_training = model.training
    config: Any = getattr(model, "config", None)
    use_cache = vars(config).get("use_cache", _ABSENT) if config is not None else _ABSENT
    trainer = BindTrainer(
        plan,
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=_only_item,
        callbacks=[*callbacks, conductor],
    )
    conductor.trainer = trainer
    if arguments.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # Trainer's stand-in for a progress bar prints dictionaries
    try:
        with warnings.catch_warnings():
            # torch 2.13's own notice about what accelerate passes on to DDP; nobody who trains can act on it
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        model.train(was_training)
        if config is not None:  # Trainer sets it, and it would be saved with the model
            del config.use_cache
            if use_cache is not _ABSENT:
                config.use_cache = use_cache
        disable: Any = getattr(model, "activation_checkpointing_disable", None)
        disable = disable or getattr(model, "gradient_checkpointing_disable", None)
        if disable is not None:
            disable()
    return trainer.state.global_step, conductor.is_interrupted, _losses(trainer.state.log_history)


@contextmanager
def _compiled(model: nn.Module | None) -> Iterator[None]:
    """The decoder layers through `torch.compile` while the block runs; one graph serves all layers of a kind."""
    layers = [] if model is None else list(find_decoder_layers(getattr(model, "language_model", model)))
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _losses(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in log if "loss" in line]


def _checkpoint_to_resume(
    output: Path, arguments: TrainingArguments, identity: dict[str, Any], *, resume: bool
) -> Path | None:
    """The checkpoint to go on from; the first process looks, and the others are told."""
    step = -1
    if arguments.process_index == 0:
        if not resume:
            checkpointing.put_aside(output)
        whole = _last_of_deepspeed(output) if arguments.deepspeed else checkpointing.last_whole_checkpoint(output)
        step = -1 if whole is None else checkpointing.step_of(whole)
    if arguments.world_size > 1:
        told = torch.tensor(step, device=arguments.device)
        torch.distributed.broadcast(told, src=0)
        step = int(told)
    if step < 0:
        return None
    path = output / f"checkpoint-{step}"
    if not arguments.deepspeed:
        checkpointing.check_identity(path, identity)
    return path


def _last_of_deepspeed(output: Path) -> Path | None:
    """The newest checkpoint of Trainer's own kind; its state file is written last."""
    whole = [path for path in checkpointing.checkpoints_in(output) if (path / checkpointing.STATE_FILE).is_file()]
    return whole[-1] if whole else None


def _check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Raise a ConfigError unless the groups hold exactly what trains, each once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    grouped = [
        names.get(id(parameter), "a tensor of another model") for group in groups for parameter in group["params"]
    ]
    wrong = sorted(trained.symmetric_difference(grouped)) or sorted(
        {name for name in grouped if grouped.count(name) > 1}
    )
    if wrong or not grouped:
        raise ConfigError(
            "optimizer_groups must hold every parameter that requires a gradient once, and no other; "
            f"{len(wrong)} do not fit: {', '.join(wrong[:3])}."
        )


def _checked_data(data: Dataset[Any], num_batches: int) -> Dataset[Any]:
    """The data, which give at least so many micro-batches."""
    if isinstance(data, IterableDataset):
        return _Enough(data, num_batches)
    length = len(data)  # type: ignore[arg-type]
    if length < num_batches:
        raise ConfigError(f"The data hold {length} micro-batches, and the run takes {num_batches}.")
    return data


class _Enough(IterableDataset[Any]):
    """A stream that must not end early: Trainer would read it again from the start, and again."""

    def __init__(self, data: IterableDataset[Any], num_batches: int) -> None:
        self.data = data
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for count, batch in enumerate(self.data, start=1):
            yield batch
        if count < self.num_batches and get_worker_info() is None:
            raise ConfigError(f"The data ended after {count} micro-batches, and the run takes {self.num_batches}.")


def _only_item(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    (item,) = items
    return item
