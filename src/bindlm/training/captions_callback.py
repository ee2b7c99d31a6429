"""A model describes a few pictures while it trains, so that a person sees it learn."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from bindlm.errors import ConfigError
from bindlm.training.journal import Journal

CAPTIONS_FILE = "captions.jsonl"


@dataclass(frozen=True)
class CaptionPicture:
    """A medium to describe now and then."""

    label: str
    """What lines call it."""
    joint_embedding: Tensor
    """`(D_joint,)`, unit length, as the frozen encoder gives it: it need be computed only once."""


def caption_pictures(model: Any, media: Sequence[str], *, modality: str = "image") -> list[CaptionPicture]:
    """Embed what is to be described, before training begins.

    Args:
        model: a bound model with a processor, or an `Embedder`.
        media: paths.
        modality: their sense.

    Raises:
        MediaError: one cannot be read.
    """
    if not media:
        return []
    embeddings: Tensor = model.embed(**{modality: list(media)})  # (N, D_joint)
    return [CaptionPicture(Path(medium).name, row) for medium, row in zip(media, embeddings, strict=True)]


class CaptionCallback(TrainerCallback):
    """Has the model describe pictures at the start, every so many optimizer steps and at the end.

    The answers are greedy, and training does not notice: random generators, modules' modes and gradients are as they
    were. They are shown above the progress bar and appended to `captions.jsonl` as `{step, picture, text}`.

    Args:
        pictures: see `caption_pictures`.
        prompt_ids: tokens of the question, up to where the answer begins, as the stage's samples have them.
        tokenizer: turns the answer into text.
        folder: of the run.
        every: optimizer steps between two rounds; 0 for the start and the end only.
        max_new_tokens: where an answer is cut.

    Raises:
        ConfigError: nothing to describe or an impossible number.

    Example:
        >>> prompt = model.processor.tokenize_chat([{"role": "user", "content": "What is this?"}], is_conditioned=True)
        >>> CaptionCallback(
        ...     caption_pictures(model, ["cat.jpg"]), prompt["input_ids"][0], model.processor.tokenizer, folder=output
        ... )
    """

    def __init__(
        self,
        pictures: Sequence[CaptionPicture],
        prompt_ids: Sequence[int] | Tensor,
        tokenizer: Any,
        *,
        folder: Path,
        every: int = 200,
        max_new_tokens: int = 32,
    ) -> None:
        if not pictures or not len(prompt_ids):
            raise ConfigError("Captions while training need at least one picture and a question about it.")
        if every < 0 or max_new_tokens < 1:
            raise ConfigError(f"Captions need every >= 0 and max_new_tokens >= 1, got {every} and {max_new_tokens}.")
        self.pictures = list(pictures)
        self.prompt_ids = torch.as_tensor(prompt_ids, dtype=torch.long)  # (T,)
        self.tokenizer = tokenizer
        self.journal = Journal(Path(folder) / CAPTIONS_FILE)
        self.every = every
        self.max_new_tokens = max_new_tokens
        self._last_step = -1
        self._is_failing = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Drop lines of steps that will be done again; describe, where this is a new run."""
        if state.is_world_process_zero:
            kept = self.journal.keep_until(state.global_step)
            if not is_sharded(model):  # else all processes have to decide alike, and only this one has the file
                self._last_step = kept[-1]["step"] if kept else -1
        if state.global_step == 0:
            self._describe(model, state)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Describe, where it is time to."""
        if self.every and state.global_step % self.every == 0:
            self._describe(model, state)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Describe what the last step taught."""
        self._describe(model, state)

    def _describe(self, model: Any, state: Any) -> None:
        # A sharded model runs in all processes or in none; else the first does it alone, and the others wait for it.
        if not (state.is_world_process_zero or is_sharded(model)) or state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        try:
            texts = describe(model, self.pictures, self.prompt_ids, self.tokenizer, self.max_new_tokens)
        except (RuntimeError, ValueError) as error:  # out of memory, say: a caption is not worth a run
            if state.is_world_process_zero and not self._is_failing:
                _say(f"bindlm: no captions at step {state.global_step}: {error}")
            self._is_failing = True
            return
        if state.is_world_process_zero:
            self._show(state.global_step, texts)

    def _show(self, step: int, texts: Sequence[str]) -> None:
        for picture, text in zip(self.pictures, texts, strict=True):
            self.journal.append({"step": step, "picture": picture.label, "text": text})
            _say(f"bindlm: step {step}, {picture.label}: {' '.join(text.split()) or '(nothing)'}")


def describe(
    model: Any, pictures: Sequence[CaptionPicture], prompt_ids: Tensor, tokenizer: Any, max_new_tokens: int = 32
) -> list[str]:
    """Greedy answers to one question about each picture; the model's state and the random generators stay untouched.

    Args:
        model: a bound model in any mode, sharded by FSDP2 or not.
        prompt_ids: `(T,)`.
    """
    device = model.device
    embeddings = torch.stack([picture.joint_embedding for picture in pictures]).to(device)  # (N, D_joint)
    ids = prompt_ids.to(device).expand(len(pictures), -1)  # (N, T)
    with undisturbed(model), torch.no_grad():
        output: Tensor = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            joint_embedding=embeddings,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,  # Trainer switches it off in the configuration
            pad_token_id=tokenizer.pad_token_id,
        )
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in output[:, ids.shape[1] :]]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a block with a training model in evaluation mode; after it, its modules and random generators are as before.

    A model that FSDP2 shards has its outermost parts, such as the bridge, whole while the block runs.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    sharded: Any = model if is_sharded(model) else None
    # Compiled layers would be compiled anew for each length of an answer. Without dynamo nothing is compiled, and
    # importing it takes a second.
    eager: Any = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.random.fork_rng(devices=devices), eager:
        model.eval()
        if sharded is not None:
            sharded.unshard()
        try:
            yield
        finally:
            if sharded is not None:
                sharded.reshard()
            for module, mode in modes:
                module.training = mode


def is_sharded(model: Any) -> bool:
    """Whether FSDP2 keeps only a slice of this model in each process."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def _say(text: str) -> None:
    """A line on stderr, above the progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
