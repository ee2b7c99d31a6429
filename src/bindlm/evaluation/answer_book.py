"""Answers to one question about joint embeddings, each asked once and kept: a long measurement can be stopped."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError

QUESTION = "What is this?"
MAX_NEW_TOKENS = 16
"""The mini's answers have at most 15, of hundreds looked at; what goes on stutters."""
ROWS_AT_ONCE = 64
_SAMPLES = 16
"""Values of each tensor that enter a stamp."""


class AnswerBook:
    """Greedy answers of one model about embeddings that have been through the cache.

    Args:
        bound: a bound model with its processor.
        file: JSON file to read and to keep answers in after each batch; None keeps them in memory alone.
        stamp: what the answers depend on besides the embedding, see `stamp_of`.

    Raises:
        CheckpointError: the file is damaged, or its answers are another model's.
    """

    def __init__(self, bound: Any, file: str | os.PathLike[str] | None = None, *, stamp: str = "") -> None:
        self.bound = bound
        self.file = None if file is None else Path(file)
        self.stamp = stamp
        self.answers: dict[str, str] = {}
        if self.file is not None and self.file.is_file():
            self.answers = self._read(self.file)

    def _read(self, file: Path) -> dict[str, str]:
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            stamp, answers = kept["stamp"], dict(kept["answers"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file} is no file of answers, or is damaged; name another, or remove it"
            ) from error
        if stamp != self.stamp:
            raise CheckpointError(f"{file} has the answers of {stamp!r}, not of {self.stamp!r}; name another file")
        return answers

    def ask(self, pulled: Tensor, *, desc: str = "asking") -> list[str]:
        """What is said about each row of `(N, D_joint)`, the cache's work done.

        Args:
            pulled: as the bridge takes them.
            desc: what the bar on stderr says.
        """
        from tqdm import tqdm

        names = [_name_of(row) for row in pulled.cpu()]
        missing = {name: row for row, name in enumerate(names) if name not in self.answers}  # the last of equal ones
        with tqdm(total=len(missing), desc=desc, file=sys.stderr, leave=False) as bar:
            listed = list(missing.items())
            for start in range(0, len(listed), ROWS_AT_ONCE):
                batch = listed[start : start + ROWS_AT_ONCE]
                texts = self._generate(pulled[[row for _, row in batch]])
                self.answers |= {name: text for (name, _), text in zip(batch, texts, strict=True)}
                self._save()
                bar.update(len(batch))
        return [self.answers[name] for name in names]

    @torch.inference_mode()
    def _generate(self, rows: Tensor) -> list[str]:
        bound = self.bound
        tokenizer = bound.processor.tokenizer
        prompt = bound.processor.tokenize_chat([{"role": "user", "content": QUESTION}], is_conditioned=True)
        tokens = prompt["input_ids"].to(bound.device)  # (1, T): all rows ask the same, so nothing is padded
        output = bound.generate(
            input_ids=tokens.expand(len(rows), -1),
            attention_mask=torch.ones_like(tokens).expand(len(rows), -1),
            condition=bound.condition_from(rows, use_cache_entries=False),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        decoded = tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in decoded]

    def _save(self) -> None:
        if self.file is not None:
            write_text_atomic(self.file, json.dumps({"stamp": self.stamp, "answers": self.answers}))


def stamp_of(bound: Any) -> str:
    """Tells one model's answers from another's: its name, and a sample of what was trained between encoder and words.

    What the towers and the cache are does not matter: the book begins behind them.
    """
    digest = hashlib.sha256()
    parts = {"bridge": bound.bridge.state_dict(), "injection": bound.injection.state_dict()}
    parts["lora"] = {str(number): value for number, value in enumerate(bound.lora_parameters())}
    for part, state in parts.items():
        for name, tensor in sorted(state.items()):
            flat = tensor.detach().flatten()
            sample = flat[:: max(1, flat.numel() // _SAMPLES)].cpu().double()
            digest.update(f"{part}.{name} {tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return f"{bound.name} {digest.hexdigest()[:16]}"


def _name_of(row: Tensor) -> str:
    """Of one embedding `(D_joint,)`; the last bits, which threads and batches change, are left out."""
    rounded = (row.double() * 1e5).round().to(torch.int32)
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:24]
