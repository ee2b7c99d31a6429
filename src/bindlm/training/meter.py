"""How much a run has learnt from: tokens, answer tokens and samples, counted as batches pass through the model."""

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Counts:
    """What passed, padding left out."""

    tokens: float = 0.0
    """All of them, questions included."""
    target_tokens: float = 0.0
    """Those with a loss."""
    samples: float = 0.0
    """Samples; of a packed row each of its samples."""

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tokens - other.tokens, self.target_tokens - other.target_tokens, self.samples - other.samples
        )

    def times(self, factor: float) -> "Counts":
        """Each count multiplied."""
        return Counts(self.tokens * factor, self.target_tokens * factor, self.samples * factor)


class TokenMeter:
    """Counts the batches of a training model without slowing it: the sums stay on its device until they are read.

    Args:
        num_devices: how many processes train; each counts its own batches, and the sum is taken to be so many times
            this one's, which spares the processes from meeting.
    """

    def __init__(self, num_devices: int = 1) -> None:
        self.num_devices = num_devices
        self._sums: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._is_counting = False

    def attach(self, model: Any) -> None:
        """Count what goes through `model` in training mode from now on; a second call does nothing."""
        if self._handles:
            return
        self._handles.append(model.register_forward_pre_hook(self._count_inputs, with_kwargs=True))
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if isinstance(head, nn.Module):
            self._handles.append(head.register_forward_hook(self._count_logits))

    def detach(self) -> None:
        """Count no more; what was counted stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self) -> Counts:
        """What passed so far, on all devices."""
        if self._sums is None:
            return Counts()
        return Counts(*self._sums.tolist()).times(self.num_devices)

    def _count_inputs(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        self._is_counting = False
        if not model.training or not isinstance(input_ids, Tensor):  # captions in between are no training
            return
        self._is_counting = True
        with torch.no_grad():
            tokens, samples = count_batch(input_ids, kwargs.get("attention_mask"), kwargs.get("position_ids"))
            self._add(torch.stack([tokens, torch.zeros_like(tokens), samples]))

    def _count_logits(self, head: nn.Module, args: tuple[Any, ...], logits: Any) -> None:
        # Training runs the head where a target is and nowhere else, so its rows are the targets.
        if self._is_counting and isinstance(logits, Tensor):
            self._add(torch.tensor([0, logits.shape[:-1].numel(), 0], device=logits.device))

    def _add(self, counted: Tensor) -> None:
        self._sums = counted if self._sums is None else self._sums + counted


def count_batch(
    input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens that are no padding, and samples, of a micro-batch, without a wait for its device.

    Args:
        input_ids: `(R, T)`.
        attention_mask: `(R, T)`, 1 where there is a token; then a row is a sample.
        position_ids: `(R, T)`; without a mask, positions begin anew with each sample of a row, and with its padding,
            which is one token over and over.
    """
    if attention_mask is not None and attention_mask.ndim == 2:
        return attention_mask.ne(0).sum(), torch.full((), len(input_ids), device=input_ids.device)
    if position_ids is None or position_ids.shape != input_ids.shape:
        tokens, samples = torch.tensor([input_ids.numel(), len(input_ids)], device=input_ids.device)
        return tokens, samples
    begins = position_ids.eq(0)
    begins[:, 0] = True
    segment = begins.flatten().cumsum(0)  # (R * T,), from 1
    changes = F.pad(input_ids[:, 1:].ne(input_ids[:, :-1]), (1, 0)) & ~begins
    num_changes = torch.zeros(begins.numel() + 1, dtype=torch.long, device=begins.device)
    num_changes.index_add_(0, segment, changes.flatten().long())
    is_sample = num_changes.gt(0)
    return is_sample[segment].sum(), is_sample.sum()


class Rate:
    """Counts a second since the last look."""

    def __init__(self, meter: TokenMeter) -> None:
        self._meter = meter
        self._at = time.perf_counter()
        self._counts = meter.read()

    def look(self) -> Counts:
        """What passed a second since the last look, which this becomes."""
        now, counts = time.perf_counter(), self._meter.read()
        passed = (counts - self._counts).times(1 / max(now - self._at, 1e-9))
        self._at, self._counts = now, counts
        return passed
