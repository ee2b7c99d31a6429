"""transformers' Trainer with what bound models need: loss on answers only, and a learning rate for the gates."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup


class BindTrainer(Trainer):
    """Trainer whose batches carry `labels` for the last positions only.

    The full-vocabulary matrix is then made for answers, not for questions and padding.
    """

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Mean cross entropy over answer tokens."""
        if "labels" not in inputs:  # a model with a loss of its own, such as the readout
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]
        labels = inputs.pop("labels")  # (B, A)
        outputs = model(**inputs, logits_to_keep=labels.shape[1] + 1, use_cache=False)
        logits = outputs.logits[:, :-1]  # (B, A, V): position t predicts token t + 1
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return (loss, outputs) if return_outputs else loss


def train(
    model: nn.Module,
    dataset: Any,
    collator: Any,
    *,
    folder: Path,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    gate_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    warmup_steps: int = 20,
    save_every: int = 100,
    seed: int = 0,
    max_grad_norm: float = 1.0,
) -> Trainer:
    """Train what requires gradients, resuming from the last checkpoint in `folder` if there is one.

    Args:
        model: any module whose forward takes the collator's batches.
        dataset: map-style; sample order is index order, and shuffling its own business.
        collator: samples to a batch.
        folder: checkpoints and logs go here.
        num_steps: optimizer steps.
        batch_size: samples a step.
        learning_rate: peak, after warmup; half cosine to zero.
        gate_learning_rate: peak for parameters whose name ends in "gate"; None for the same.
        weight_decay: for tensors of two dimensions and more.
        warmup_steps: linear.
        save_every: steps between checkpoints.
        seed: of torch; the data has its own.
        max_grad_norm: gradient clipping.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gates = [parameter for name, parameter in trainable.items() if name.endswith("gate")]
    flat = [p for name, p in trainable.items() if p.ndim < 2 and not name.endswith("gate")]
    matrices = [p for p in trainable.values() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": weight_decay, "lr": learning_rate},
            {"params": flat, "weight_decay": 0.0, "lr": learning_rate},
            {"params": gates, "weight_decay": 0.0, "lr": gate_learning_rate or learning_rate},
        ],
        betas=(0.9, 0.95),
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=num_steps,
        per_device_train_batch_size=batch_size,
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=max(1, min(10, math.ceil(num_steps / 20))),
        report_to=[],
        seed=seed,
        max_grad_norm=max_grad_norm,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_num_workers=0,
        train_sampling_strategy="sequential",
        include_num_input_tokens_seen="no",
        label_names=["labels"],
    )
    trainer = BindTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=collator,
        optimizers=(optimizer, get_cosine_schedule_with_warmup(optimizer, warmup_steps, num_steps)),
    )
    has_checkpoint = any(folder.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=has_checkpoint or None)
    return trainer
