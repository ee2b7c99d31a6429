"""A training step that is done without memory, to see how much it would take.

The very model, stage, loss and checkpointing run forward and backward on torch's fake tensors, which have a shape, a
dtype and a lifetime and no data. What lives at the same time is added up. No formula has to know what autograd keeps
of a norm, of LoRA or of another family of decoders; the count agrees with a real step's to the byte (tested).
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bindlm.errors import ConfigError
from bindlm.injections import find_decoder_layers
from bindlm.training.answers import Owned, head_only_at, summed_loss
from bindlm.training.sharding import trained_in

_REHEARSED = (3, 5)
"""Depths of decoder between which the cost of a layer is read off. With fewer the head's logits, with more the layers
decide which moment is the fullest; from three layers on it was the same for every model tried."""


@dataclass(frozen=True)
class StepShape:
    """Size of a micro-batch on one device."""

    rows: int
    """R."""
    row_tokens: int
    """T, padding included."""
    target_tokens: int
    """A: tokens with a loss, for which alone there are logits."""
    media: int = 1
    """M: joint embeddings; 0 for text only."""

    def __post_init__(self) -> None:
        for name in ("rows", "row_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"StepShape.{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.target_tokens <= self.rows * self.row_tokens:
            raise ConfigError(
                f"StepShape.target_tokens must lie between 0 and the {self.rows * self.row_tokens} tokens, got "
                f"{self.target_tokens}."
            )
        if self.media < 0:
            raise ConfigError(f"StepShape.media must be at least 0, got {self.media}.")

    @classmethod
    def of(cls, batch: dict[str, Tensor]) -> "StepShape":
        """That of a micro-batch of `TrainingData`."""
        rows, row_tokens = batch["input_ids"].shape
        targets = int(batch["labels"][:, 1:].ne(-100).sum())
        embeddings = batch.get("joint_embedding")
        return cls(rows, row_tokens, targets, 0 if embeddings is None else len(embeddings))


def rehearse_step(
    model: Any,
    shape: StepShape,
    *,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    is_accumulating: bool = False,
) -> int:
    """Bytes that forward and backward of one micro-batch take beside the weights, at their fullest moment.

    Gradients are in it. A deep decoder is not run as a whole: each further layer adds the same.

    Args:
        model: a `BindLMForConditionalGeneration` on the meta device, prepared for its stage. It is used up.
        shape: of the micro-batch.
        bf16: whether under autocast.
        gradient_checkpointing: whether decoder layers are computed again in backward.
        is_accumulating: whether gradients of an earlier micro-batch are there already.
    """
    if gradient_checkpointing:
        # the name since transformers 5.2x, and the one before
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.train()
    model.set_lora_scope("always")  # which rows have a condition is in the data, and there are none
    decoder, layers = model.language_model.get_decoder(), find_decoder_layers(model.language_model)
    depths = _REHEARSED if len(layers) > max(_REHEARSED) else (len(layers),)
    peaks = []
    with FakeTensorMode():
        _materialize(model)
        for depth in depths:
            decoder.layers, decoder.config.num_hidden_layers = layers[:depth], depth
            peaks.append(_peak_of_step(model, shape, bf16, is_accumulating))
    if len(depths) == 1:
        return peaks[0]
    slope = (peaks[1] - peaks[0]) / (depths[1] - depths[0])
    return round(peaks[1] + slope * (len(layers) - depths[1]))


def _peak_of_step(model: Any, shape: StepShape, bf16: bool, is_accumulating: bool) -> int:
    live = LiveBytes()
    model.zero_grad()
    with live:
        touched = trained_in(model) if is_accumulating else []
        if is_accumulating:
            _make_gradients(model)
        with _Certain(), torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = _loss(model, shape, touched)
        if loss.requires_grad:
            loss.backward()
    return live.peak


def _loss(model: Any, shape: StepShape, touched: list[Owned]) -> Tensor:
    """Forward; nothing but what autograd keeps outlives it, as in the trainer."""
    ids = torch.zeros(shape.rows, shape.row_tokens, dtype=torch.long)
    positions = torch.zeros_like(ids)  # of packed rows: the mask is made, as for padded ones
    places = torch.zeros(shape.target_tokens, dtype=torch.long)
    given = {"input_ids": ids} if shape.media == 0 else _given(model, ids, shape.media)
    with head_only_at(model.language_model, places, touched), _gradients_from_the_head_on(model, touched):
        output = model.language_model(position_ids=positions, use_cache=False, **given)
    return summed_loss(output.logits, torch.zeros_like(places))


@contextmanager
def _gradients_from_the_head_on(model: Any, touched: list[Owned]) -> Iterator[None]:
    """All gradients stand once backward is through the head, as `answers.touch` has it in training.

    There its zeros become the gradients. Fake ones would be copied: autograd sees that Python holds them as well.
    """

    def hook(_head: nn.Module, args: tuple[Any, ...]) -> None:
        if not touched and args[0].requires_grad:
            args[0].register_hook(lambda _: _make_gradients(model))

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _make_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _given(model: Any, ids: Tensor, media: int) -> dict[str, Tensor]:
    """Text with the condition of each token, `(R, T, D_lm)` in fp32, as the model spreads it; each row has a medium.

    What has a place in the text stands among its embeddings; where, is in the ids, and there are none.
    """
    bridge = model.bridge
    joint_embedding = torch.zeros(media, bridge.config.input_dim)
    condition = bridge(joint_embedding.to(bridge.dtype))  # (M, N, D_lm)
    table = torch.cat([condition.new_zeros(1, condition.shape[-1]), condition.flatten(0, 1)]).float()
    spread = F.embedding(ids, table, padding_idx=0)
    if model.injection.placeholder_id is None:
        return {"input_ids": ids, "condition": spread}
    words = model.get_input_embeddings()(ids)
    return {"inputs_embeds": torch.where(ids[..., None] > 0, spread.to(words), words)}


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that tensors made inside the block have, for as long as anything holds them.

    Attributes:
        now: bytes that live.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What an operation takes and nobody here has made was there before: a view of a weight is not new.
        self._note((args, kwargs), is_new=False)
        made = function(*args, **(kwargs or {}))
        self._note(made, is_new=True)
        return made

    def _note(self, tensors: Any, *, is_new: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._alive:
                storage = tensor.untyped_storage()
                self._add(storage, storage.nbytes() if is_new else 0)

    def _add(self, storage: Any, size: int) -> None:
        address = storage._cdata

        def gone(_: Any) -> None:
            self.now -= size
            del self._alive[address]

        # torch keeps a storage's Python object as long as its C++ one, autograd's hold included.
        self._alive[address] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Certain(TorchFunctionMode):
    """Answers questions to tensors without data with yes: `if mask.all()` means that nothing is masked."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__bool__:
            return True
        return function(*args, **(kwargs or {}))


def _materialize(model: nn.Module) -> None:
    """Put fake tensors of the CPU in place of those of the meta device, which autocast passes over; ties stay."""
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return fakes[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)  # type: ignore[assignment]
