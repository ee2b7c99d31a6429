"""`TrainingArguments` as bound models need them, and what a caller may add."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainingArguments

from bindlm.errors import ConfigError
from bindlm.training.sharding import check_settings

_OURS = {
    "output_dir": "output",
    "max_steps": "num_steps",
    "num_train_epochs": "num_steps",
    "gradient_accumulation_steps": "accumulation",
    "per_device_train_batch_size": "accumulation and the size of the data's micro-batches",
    "seed": "seed",
    "save_steps": "save_every",
    "save_strategy": "save_every",
    "save_total_limit": "keep_checkpoints",
    "logging_steps": "log_every",
    "bf16": "bf16",
    "max_grad_norm": "max_grad_norm",
    "report_to": "report_to",
    "learning_rate": "optimizer_groups",
    "weight_decay": "optimizer_groups",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
}
"""Fields of `TrainingArguments` that have a place of their own in `fit`."""


def build_arguments(given: dict[str, Any], *, checkpoints_activations: bool, **ours: Any) -> TrainingArguments:
    """`TrainingArguments` of our settings, the defaults that bound models need, and what the caller wants beyond."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name in given:
        if name in _OURS:
            raise ConfigError(f"trainer_arguments must not set {name}: it follows from {_OURS[name]}.")
        if name == "fp16":
            raise ConfigError("fp16 is not supported, because its range is too small for training; use bf16.")
        if name not in known:
            raise ConfigError(f"trainer_arguments: transformers.TrainingArguments has no {name!r}.")
    has_cuda = torch.cuda.is_available()
    defaults = {
        "per_device_train_batch_size": 1,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        # never dispatched from one process: micro-batches differ in shape
        "accelerator_config": {"dispatch_batches": False, "split_batches": False},
        "ddp_find_unused_parameters": False,  # every trained parameter gets a gradient: answers.touch
        "ddp_broadcast_buffers": False,  # the visual cache is a buffer
        "dataloader_pin_memory": has_cuda,
        "logging_nan_inf_filter": False,  # it hides what must stop training
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "no",  # counted here, without another round of messages
        "label_names": ["labels"],
        "use_cpu": not has_cuda,
    }
    if checkpoints_activations:
        # the name before transformers 5.2x, and the one since
        name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        defaults |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    return TrainingArguments(**{**defaults, **ours, **given})


def taken_fsdp(given: dict[str, Any]) -> dict[str, Any] | None:
    """Take FSDP's settings out of the arguments: transformers and accelerate must not wrap as well."""
    config = given.pop("fsdp_config", None) or {}
    if not given.pop("fsdp", False):
        return None
    if not isinstance(config, Mapping):
        raise ConfigError(f"fsdp_config must be a section of settings, got {config!r}.")
    settings = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    check_settings(settings)
    return settings
