"""The encoder of a bound model: its own weights from the model's file, frozen towers from where they are published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bindlm.checkpoints import convert_pickled_state, load_state, resolve
from bindlm.checkpoints.mapped import open_mapped
from bindlm.checkpoints.state import check_shapes
from bindlm.configuration import BindLMConfig
from bindlm.encoders import JointEncoder, build_encoder, load_encoder
from bindlm.errors import ConfigError

WEIGHTS_FILE = "model.safetensors"
_PREFIX = "encoder."


def load_tower(encoder: JointEncoder, tower: str, path: Path) -> None:
    """Strictly load a frozen tower of an encoder from a file in its publisher's own keys.

    Raises:
        ConfigError: the encoder has no such tower.
        CheckpointError: the file is damaged or does not fit.
    """
    module = getattr(encoder, tower, None)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"BindLMConfig.encoder_weights names {tower!r}, which the encoder lacks.")
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if path.suffix != ".safetensors":
        path = convert_pickled_state(path)
    module.load_state_dict(load_state(path, expected=expected), assign=True)
    module.requires_grad_(False)


def load_published_encoder(
    settings: Mapping[str, Any], reference: str, *, local_files_only: bool = False, progress: bool = True
) -> JointEncoder:
    """A frozen encoder that a bound model takes whole from where it is published.

    Args:
        settings: `BindLMConfig.encoder`: `family` (None recognises it by the weights) and `modalities` (None loads
            all); published weights bring their sizes themselves.
        reference: a file or folder in the publisher's own layout, in the words of `bindlm.checkpoints.resolve`.
        local_files_only: never touch the network.
        progress: whether to say on stderr what is fetched.

    Raises:
        CheckpointError: the weights are missing, damaged, or of no known family.
        ConfigError: unknown family or sense.
    """
    encoder = load_encoder(
        resolve(reference, local_files_only=local_files_only, progress=progress),
        family=settings.get("family"),
        modalities=settings.get("modalities"),
        dtype=torch.float32,
    )
    encoder.fetch_with(local_files_only=local_files_only, progress=progress)
    return encoder.requires_grad_(False).eval()


def load_bound_encoder(folder: Path, *, local_files_only: bool = False, progress: bool = True) -> JointEncoder:
    """The encoder of a bound model alone: neither its language model nor its bridge is read.

    Args:
        folder: as `save_pretrained` writes it.
        local_files_only: never touch the network.
        progress: whether to say on stderr what is fetched.

    Raises:
        CheckpointError: a part is missing, damaged, or does not fit.
    """
    config = BindLMConfig.from_pretrained(folder)
    if isinstance(config.encoder_weights, str):
        return load_published_encoder(
            config.encoder, config.encoder_weights, local_files_only=local_files_only, progress=progress
        )
    with torch.device("meta"):
        encoder = build_encoder(**config.encoder)
    referenced = tuple(f"{tower}." for tower in config.encoder_weights)
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in encoder.state_dict().items()
        if not name.startswith(referenced)  # of an empty tuple: never
    }
    path = folder / WEIGHTS_FILE
    state = open_mapped(path)
    held = {name.removeprefix(_PREFIX): shape for name, shape in state.shapes.items() if name.startswith(_PREFIX)}
    check_shapes(path, held, expected)
    own = state.take([_PREFIX + name for name in expected], torch.float32)
    encoder.load_state_dict(
        {name.removeprefix(_PREFIX): tensor for name, tensor in own.items()}, strict=False, assign=True
    )
    for tower, reference in config.encoder_weights.items():
        load_tower(encoder, tower, resolve(reference, local_files_only=local_files_only, progress=progress))
    encoder.fetch_with(local_files_only=local_files_only, progress=progress)
    return encoder.requires_grad_(False).eval()
