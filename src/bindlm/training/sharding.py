"""FSDP2: every process keeps a slice of the model, and has a decoder layer whole only while it runs.

accelerate wraps models in FSDP2 on GPUs only (1.15 quietly uses DDP on the CPU), knows nothing of frozen towers, and
deadlocks where one process has a gradient that another lacks. So `torch.distributed.fsdp.fully_shard` is applied here,
the same on every device.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bindlm.errors import ConfigError
from bindlm.injections import find_decoder_layers
from bindlm.training.answers import Owned, touch

_SETTINGS = ("reshard_after_forward", "cpu_offload", "version")


def trained_in(module: nn.Module, without: nn.ModuleList | None = None) -> list[Owned]:
    """The trained parameters of a module, each once, less those of some layers."""
    left_out = {id(parameter) for parameter in without.parameters()} if without is not None else set()
    owned: list[Owned] = []
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in left_out:
                left_out.add(id(parameter))
                owned.append((part, name))
    return owned


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what `fully_shard` here cannot do.

    Raises:
        ConfigError: an unknown setting, or FSDP1.
    """
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown or settings.get("version", 2) != 2:
        raise ConfigError(
            f"fsdp_config takes {', '.join(_SETTINGS)}, and version 2 only; got {dict(settings)}. Decoder layers are "
            "wrapped without being named, and checkpoints are always whole."
        )


def shard(model: nn.Module, device: torch.device, settings: Mapping[str, Any]) -> list[Owned]:
    """Shard a bound model in place over all processes, layer by layer.

    The frozen encoder stays whole: with a feature store it does not run at all.

    Args:
        model: on the CPU or on `device`.
        device: of this process.
        settings: `reshard_after_forward` (True: a layer is given back after forward and fetched again in backward) and
            `cpu_offload`.

    Returns:
        Trained parameters outside the decoder layers, which the caller has to touch in each forward.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    layers = find_decoder_layers(getattr(model, "language_model", model))
    options: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy() if settings.get("cpu_offload") else OffloadPolicy(),
    }
    outside = trained_in(model, without=layers)
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, nn.Module):
        options["ignored_params"] = set(encoder.to(device).parameters())
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    # A frozen embedding leaves the first layer without an input that has a gradient where a batch has no condition;
    # FSDP then sends that layer's gradients last, in another order than the other processes.
    embeddings.register_forward_hook(_requiring_grad)
    for layer in layers:
        layer.register_forward_hook(partial(_touch_output, owned=trained_in(layer)))  # before FSDP's own hook
        fully_shard(layer, reshard_after_forward=bool(settings.get("reshard_after_forward", True)), **options)
    fully_shard(model, **options)
    if hasattr(model, "generate"):  # it calls the bridge before forward has put that together
        register_fsdp_forward_method(model, "generate")
    return outside


def _requiring_grad(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output


def _touch_output(_layer: nn.Module, _args: Any, output: Any, owned: list[Owned]) -> Any:
    if isinstance(output, tuple):
        return (touch(output[0], owned), *output[1:])
    return touch(output, owned)
