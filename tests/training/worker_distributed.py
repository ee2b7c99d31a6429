"""Two processes train together: `torchrun --nproc_per_node 2 -m tests.training.worker_distributed FOLDER`.

Four runs: "ddp" and "fsdp" to the end, and each once more with the first process alone asked to stop at step 3.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import TrainerCallback

from bindlm.training.checkpointing import full_state

from ..tiny import token_batch, unit_rows
from .training_case import PLAIN_LORA, MicroBatches, run, trained_model


class Watch(TrainerCallback):
    """Notes how much of the model is here, and stops the first process."""

    def __init__(self, stop_at: int) -> None:
        self.stop_at = stop_at
        self.kept: dict[str, int] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, parameter in kwargs["model"].named_parameters():
            self.kept[name] = getattr(parameter, "_local_tensor", parameter).numel()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop_at and args.process_index == 0:
            signal.raise_signal(signal.SIGTERM)


def train_as(way: str, folder: Path, stop_at: int = -1) -> None:
    """One run; what each process saw goes to FOLDER/RANK.json, and the whole model to FOLDER/model.safetensors."""
    model = trained_model(lora=PLAIN_LORA)
    arguments = {"fsdp": True} if way == "fsdp" else {}
    watch, data = Watch(stop_at), MicroBatches(12)
    result = run(
        model,
        folder / "run",
        accumulation=1,
        data=data,
        callbacks=[watch],
        gradient_checkpointing=stop_at > 0,  # which makes no difference to the result
        trainer_arguments=arguments,
    )
    state = full_state(model, model.saved_names())
    tokens = model.generate(token_batch(1, 4), joint_embedding=unit_rows(1), max_new_tokens=4, do_sample=False)
    rank = distributed.get_rank()
    report = {
        "losses": result.losses,
        "asked": data.asked,
        "kept": watch.kept,
        "done": result.num_steps_done,
        "is_interrupted": result.is_interrupted,
        "tokens": tokens.tolist(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(report))
    if rank == 0:
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    distributed.barrier()


def main(folder: Path) -> None:
    for way in ("ddp", "fsdp"):
        for name, stop_at in ((way, -1), (f"{way}-stopped", 3)):
            (folder / name).mkdir(exist_ok=True)
            train_as(way, folder / name, stop_at)
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
