"""transformers' Trainer with a loss on answers, one mean over an optimizer step, and checkpoints of our own.

What is Trainer's own stays Trainer's: the loop, the devices, the logs. `fit` makes one and runs it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from bindlm.checkpoints.state import load_state
from bindlm.errors import CheckpointError, TrainingError
from bindlm.training import checkpointing
from bindlm.training.answers import Owned, count_targets, find_targets, head_only_at, summed_loss, touch
from bindlm.training.checkpointing import Manifest
from bindlm.training.generators import random_state, set_random_state
from bindlm.training.interruption import Interruption
from bindlm.training.sharding import shard, trained_in


@dataclass
class Plan:
    """What a BindTrainer needs beyond `TrainingArguments`."""

    optimizer_groups: list[dict[str, Any]]
    schedule: Callable[[int], float]
    betas: tuple[float, float]
    keep_checkpoints: int
    identity: dict[str, Any]
    interruption: Interruption
    fsdp: dict[str, Any] | None


class BindTrainer(Trainer):
    """Trainer of bound models; made by `fit`.

    A step's loss is the sum over target tokens divided by their number in the whole step: all micro-batches of all
    devices. Micro-batches with few targets then count for little, and the split into micro-batches changes nothing.
    """

    loss_is_scaled_for_ga = True  # by the target tokens of the step; Trainer must not divide again
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, plan: Plan, **kwargs: Any) -> None:
        self.plan = plan
        super().__init__(**kwargs)
        self.bare_model: nn.Module = kwargs["model"]
        self.touched: list[Owned] = trained_in(self.bare_model)
        self.is_stopping = False
        names = {id(parameter): name for name, parameter in self.bare_model.named_parameters()}
        self.group_names = [[names[id(p)] for p in group["params"]] for group in plan.optimizer_groups]

    # -- optimizer ----------------------------------------------------------------------------------------------------

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if self.plan.fsdp is None:  # else layer by layer: the whole may not fit
            super()._move_model_to_device(model, device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the groups; with FSDP the model is sharded first, because that swaps its parameters."""
        if self.optimizer is None:
            if self.plan.fsdp is not None:
                self.touched = shard(self.bare_model, self.args.device, self.plan.fsdp)
                self.bare_model._is_accelerate_prepared = True  # type: ignore[assignment]  # or DDP wraps it again
            elif self.is_deepspeed_enabled:
                self.touched = []  # ZeRO waits for no gradient, and parameters are empty outside their modules
            parameters = dict(self.bare_model.named_parameters())
            groups = [
                {**group, "params": [parameters[name] for name in names]}
                for group, names in zip(self.plan.optimizer_groups, self.group_names, strict=True)
            ]
            is_fused = self.args.device.type == "cuda" or None
            self.optimizer = torch.optim.AdamW(groups, betas=self.plan.betas, fused=is_fused)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The plan's multiplier of every group's learning rate, by optimizer step."""
        if self.lr_scheduler is None:
            schedule = self.plan.schedule
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer, lambda step: schedule(step)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # -- loss ---------------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of this process for one step, and the step's target tokens over all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        targets = sum(_num_items(batch) for batch in batches)
        tokens = sum(_num_tokens(batch) for batch in batches)
        is_asked = self.plan.interruption.is_requested
        targets, tokens, num_asked = self._sums(targets, tokens, int(is_asked))
        # All processes must stop after the same step, so that is what all of them know when it begins.
        self.is_stopping = num_asked > 0
        self.state.num_input_tokens_seen += tokens
        return batches, targets

    def _sums(self, *values: int) -> list[int]:
        """Each value summed over all processes."""
        if self.args.world_size == 1:
            return list(values)
        gathered = self.accelerator.gather(torch.tensor(values, device=self.args.device))
        return gathered.view(-1, len(values)).sum(dim=0).tolist()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch."""
        if self.plan.fsdp is not None:  # gradients meet once a step, as DDP's `no_sync` has it
            self.bare_model.set_requires_gradient_sync(self.accelerator.sync_gradients)  # type: ignore[operator]
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the step's mean loss, times the processes, over which gradients are averaged.

        A model that has a loss of its own gets micro-batches without `labels`, and each counts the same.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        with self.accelerator.autocast():
            if labels is None:
                outputs = model(**inputs)
                loss = touch(outputs["loss"], self.touched)
            else:
                places, targets = find_targets(labels, inputs.get("position_ids"))
                with head_only_at(self.bare_model, places, self.touched):
                    outputs = model(**inputs, use_cache=False)
                loss = summed_loss(outputs.logits, targets)
        num_items = max(1, int(num_items_in_batch)) if num_items_in_batch is not None else 1
        loss = loss * (self.accelerator.num_processes / num_items)
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: Trainer would count the model's parameters anew for every micro-batch."""
        return 0

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        norm = self._grad_norm()
        torch.nn.utils.clip_grads_with_norm_(self._trained(), self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The gradient's norm; what is not a number stops training here, before it is in the weights."""
        if self.is_deepspeed_enabled:
            return super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = float(self._grad_norm() if grad_norm is None else grad_norm)
        loss = float(self._tr_loss)
        if not math.isfinite(norm) or not math.isfinite(loss):
            what = "loss" if not math.isfinite(loss) else "gradient"
            step = self.state.global_step + 1
            last = checkpointing.last_before(Path(self.args.output_dir), step)
            raise TrainingError(
                f"The {what} of step {step} is not a finite number, so training stopped before "
                f"that step. The last good checkpoint is {last}. Lower the learning rate, "
                "set max_grad_norm, or look for bad rows in the data, and train into another folder."
            )
        return norm

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _grad_norm(self) -> Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained() if p.grad is not None])
        gather = getattr(norm, "full_tensor", None)
        return norm if gather is None else gather()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Save step, weights, optimizer and generators; only the first process writes."""
        if self.is_deepspeed_enabled:
            super()._save_checkpoint(model, trial)
            return
        output = Path(self.args.output_dir)
        manifest = Manifest(self.state.global_step, self.plan.identity, self._progress())
        contents = {
            "trained": checkpointing.trained_tensors(self.bare_model),
            "optimizer": self._optimizer_tensors(),
            "random_states": self._random_states(),
        }
        fault: CheckpointError | None = None
        if self.is_world_process_zero():
            try:
                text = json.dumps(dataclasses.asdict(self.state), indent=1)
                checkpointing.save_checkpoint(output, manifest, trainer_state=text, **contents)
                checkpointing.keep_newest(output, self.plan.keep_checkpoints, upto=manifest.step)
            except CheckpointError as error:
                fault = error
        if self._sums(int(fault is not None))[0]:
            last = checkpointing.last_before(output, manifest.step)
            raise TrainingError(
                f"Step {manifest.step} could not be saved: {fault or 'see the first process'}. The last good "
                f"checkpoint is {last}; mend this, and the same command goes on from it."
            ) from fault

    def _progress(self) -> dict[str, Any]:
        # the loss since the last log line, so that a resumed run logs the same line next
        window = self.accelerator.gather(self._tr_loss.reshape(1)).mean()
        schedule = self.lr_scheduler.state_dict()
        return {
            "schedule": {key: schedule[key] for key in ("base_lrs", "last_epoch", "_step_count", "_last_lr")},
            "window": {"loss": window.item(), "since": self._globalstep_last_logged},
            "num_processes": self.args.world_size,
        }

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        states = self.optimizer.state_dict()["state"]
        for index, name in enumerate(name for names in self.group_names for name in names):
            for key, value in states.get(index, {}).items():
                tensors[f"{name}/{key}"] = checkpointing.full_tensor(torch.as_tensor(value))
        return tensors

    def _random_states(self) -> dict[str, Tensor]:
        states: dict[str, Tensor] = {}
        for name, value in random_state(self.args.device).items():
            gathered = self.accelerator.gather(value.to(self.args.device)[None])
            states |= {f"{rank}/{name}": each.cpu() for rank, each in enumerate(gathered)}
        return states

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.bare_model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        tensors = checkpointing.read_tensors(Path(checkpoint), checkpointing.OPTIMIZER_FILE)
        whole: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            whole.setdefault(name, {})[field] = value
        parameters = dict(self.bare_model.named_parameters())
        state = self.optimizer.state_dict()
        for index, name in enumerate(name for names in self.group_names for name in names):
            fields = whole.get(name, {})
            split = {key: checkpointing.like(parameters[name], v) if v.ndim else v for key, v in fields.items()}
            if split:
                state["state"][index] = split
        schedule = checkpointing.read_manifest(Path(checkpoint)).progress["schedule"]
        for group, rate in zip(state["param_groups"], schedule["_last_lr"], strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict({**schedule, "lr_lambdas": [None] * len(schedule["base_lrs"])})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = checkpointing.read_tensors(Path(checkpoint), checkpointing.RANDOM_FILE)
        mine = f"{self.args.process_index}/"
        own = {name.removeprefix(mine): value for name, value in states.items() if name.startswith(mine)}
        if own:  # else there are more processes now than there were
            set_random_state(own, self.args.device)

    def restore_window(self, checkpoint: Path) -> None:
        """Put the loss since the last log line back."""
        window = checkpointing.read_manifest(checkpoint).progress["window"]
        self._tr_loss += window["loss"]
        self._globalstep_last_logged = window["since"]


class Conductor(TrainerCallback):
    """Stops a trainer that is asked to, with a checkpoint; and sets it off from where one stands."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self.trainer: BindTrainer | None = None
        self.is_interrupted = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        if self.checkpoint is not None and not self.trainer.is_deepspeed_enabled:
            self.trainer.restore_window(self.checkpoint)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        # a process that is alone need not wait for the next step to be asked
        asked = self.trainer.plan.interruption.is_requested if args.world_size == 1 else self.trainer.is_stopping
        if asked and state.global_step < state.max_steps:
            self.is_interrupted = True
            control.should_save = control.should_training_stop = True
        if state.global_step >= state.max_steps:
            control.should_log = True


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Give a model the trained tensors of a checkpoint.

    Raises:
        CheckpointError: they are not those that train in this model.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    path = checkpoint / checkpointing.TRAINED_FILE
    state = load_state(path, expected={name: tuple(parameter.shape) for name, parameter in own.items()})
    for name, parameter in own.items():
        checkpointing.copy_whole(parameter, state[name])


def _num_items(batch: dict[str, Tensor]) -> int:
    """Target tokens; 1 where the model has a loss of its own."""
    return count_targets(batch["labels"], batch.get("position_ids")) if "labels" in batch else 1


def _num_tokens(batch: dict[str, Tensor]) -> int:
    """Tokens that are no padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel() if "input_ids" in batch else 0
