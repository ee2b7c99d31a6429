"""How much memory a stage of training takes, before anything of it is loaded.

    estimate_memory(config, "pretrain", TuningConfig(), StepShape(rows=8, row_tokens=512, target_tokens=800))

Weights are counted on the meta device; what a step adds is found in a rehearsal on fake tensors (`rehearsal`).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn

from bindlm.checkpoints.notice import human_size
from bindlm.configuration import BindLMConfig
from bindlm.encoders import JointEncoder
from bindlm.errors import ConfigError
from bindlm.injections import find_decoder_layers
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.rehearsal import StepShape, rehearse_step
from bindlm.tuning.stages import Tuning, prepare_stage

__all__ = ["MemoryEstimate", "StepShape", "estimate_memory", "meta_model"]

RUNTIME_BYTES = {"cpu": 100_000_000, "cuda": 700_000_000}
"""What is there beside tensors. CPU: threads and code paged in by the first step, measured by
benchmarks/training_memory.py. CUDA: the context and cuBLAS's workspaces."""

HEAP_SHARE = {"cpu": 0.25, "cuda": 0.0}
"""What an allocator cannot give to anybody, as a share of a step's activations with nothing computed again. glibc
leaves holes where forward's temporaries lay between what backward needs, of checkpointed layers as well: measured by
the same benchmark."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device at the fullest moment of training."""

    num_trained: int
    """Numbers that train, over all devices."""
    num_frozen: int
    """Numbers that do not; without the encoder where its features are given."""
    frozen: int
    """Weights that do not train."""
    trained: int
    """Weights that do."""
    gradients: int
    """Their gradients."""
    optimizer: int
    """AdamW's two moments, in the precision of the weights."""
    gathered: int
    """FSDP: layers that are whole while they run; 0 on one device."""
    activations: int
    """What forward and backward add to these at their fullest moment: kept for backward, logits, temporaries."""
    runtime: int
    """Context of the device, threads, and what its allocator holds and cannot use."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        parts = (self.frozen, self.trained, self.gradients, self.optimizer, self.gathered, self.activations)
        return sum(parts) + self.runtime

    def as_json(self) -> dict[str, int]:
        """The fields and `total`."""
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        names = {
            "frozen": f"frozen weights ({self.num_frozen:,})",
            "trained": f"trained weights ({self.num_trained:,})",
            "gradients": "gradients",
            "optimizer": "optimizer (AdamW, two moments)",
            "gathered": "layers gathered by FSDP",
            "activations": "activations of a micro-batch",
            "runtime": "runtime",
            "total": "in all, on each device",
        }
        sizes = {name: human_size(getattr(self, name)) for name in names if name != "gathered" or self.gathered}
        return "\n".join(f"{names[name]:<40} {size:>10}" for name, size in sizes.items())


def estimate_memory(
    config: BindLMConfig,
    stage: str,
    tuning: Tuning,
    shape: StepShape,
    *,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    accumulation: int = 1,
    num_processes: int = 1,
    is_sharded: bool = False,
    holds_encoder: bool = False,
    device: str = "cpu",
    encoder: JointEncoder | None = None,
) -> MemoryEstimate:
    """Memory of a stage on each device.

    Args:
        config: of the bound model.
        stage: pretrain, instruct or quality.
        tuning: as `prepare_stage` takes it.
        shape: of the largest micro-batch.
        bf16: whether products are made in bfloat16 (autocast).
        gradient_checkpointing: whether decoder layers are computed again in backward.
        accumulation: micro-batches a step; with more than one, gradients stand while the next is computed.
        num_processes: devices.
        is_sharded: FSDP2 splits weights, gradients and moments over them; else each has all (DDP), with a second copy
            of the gradients in DDP's buckets.
        holds_encoder: whether the encoder's weights count too. With features given it never runs, and on a CPU its
            mapped file stays on the disk.
        device: "cpu" or "cuda".
        encoder: on the meta device, where `config` names published weights, which bring their sizes themselves.

    Raises:
        ConfigError: an impossible setting, or a stage that does not fit the model.
    """
    if device not in RUNTIME_BYTES:
        raise ConfigError(f"device must be one of {', '.join(RUNTIME_BYTES)}, got {device!r}.")
    if accumulation < 1 or num_processes < 1:
        raise ConfigError(f"accumulation and num_processes must be at least 1, got {accumulation}, {num_processes}.")
    model = meta_model(config, stage, tuning, encoder)
    parameters = _distinct(model.parameters() if holds_encoder else _without_encoder(model))
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    split = num_processes if is_sharded else 1
    gathered = 0
    if num_processes > 1:
        gathered = _gathered_bytes(model) if is_sharded else num_bytes(trained)  # else DDP's buckets
    step = partial(rehearse_step, shape=shape, bf16=bf16, is_accumulating=accumulation > 1)
    fullest = step(model, gradient_checkpointing=gradient_checkpointing)
    has_holes = HEAP_SHARE[device] > 0
    kept = step(meta_model(config, stage, tuning)) if gradient_checkpointing and has_holes else fullest
    # AdamW's update of a tensor makes two of its size on a CPU; on CUDA it is one fused kernel.
    largest = max((num_bytes([parameter]) for parameter in trained), default=0)
    updating = 2 * largest if device == "cpu" else 0
    return MemoryEstimate(
        num_trained=sum(parameter.numel() for parameter in trained),
        num_frozen=sum(parameter.numel() for parameter in frozen),
        frozen=num_bytes(frozen) // split,
        trained=num_bytes(trained) // split,
        gradients=num_bytes(trained) // split,
        optimizer=2 * num_bytes(trained) // split,
        gathered=gathered,
        activations=max(fullest - num_bytes(trained), updating),
        runtime=RUNTIME_BYTES[device] + round(HEAP_SHARE[device] * max(kept - num_bytes(trained), 0)),
    )


def meta_model(
    config: BindLMConfig, stage: str, tuning: Tuning, encoder: JointEncoder | None = None
) -> BindLMForConditionalGeneration:
    """A model prepared for a stage, without a byte of weights."""
    config = BindLMConfig.from_dict(config.to_dict())  # preparing writes into it
    with torch.device("meta"):
        model = BindLMForConditionalGeneration(config, encoder=encoder)
        prepare_stage(model, stage, tuning)
    return model


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Size of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _distinct(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())


def _without_encoder(model: BindLMForConditionalGeneration) -> list[nn.Parameter]:
    encoder = {id(parameter) for parameter in model.encoder.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in encoder]


def _gathered_bytes(model: BindLMForConditionalGeneration) -> int:
    """FSDP2: two layers whole (one runs, the next is fetched), the gradient of one, and all that is in no layer."""
    layers = [_distinct(layer.parameters()) for layer in find_decoder_layers(model.language_model)]
    inside = {id(parameter) for layer in layers for parameter in layer}
    outside = [parameter for parameter in _distinct(_without_encoder(model)) if id(parameter) not in inside]
    largest = max(layers, key=num_bytes)

    def gradient(parameters: list[nn.Parameter]) -> int:
        return num_bytes([parameter for parameter in parameters if parameter.requires_grad])

    return 2 * num_bytes(largest) + gradient(largest) + num_bytes(outside) + gradient(outside)
