"""A new sense through a tower that is there already, with LoRA: LanguageBind's way.

LanguageBind (arXiv 2310.01852, section 3.1) starts each new sense from the weights of its picture tower, which stay as
they are, and trains low-rank matrices beside them (LoRA, arXiv 2106.09685) and the parts that have to change. The
matrices are PEFT's, and so are their names in the tower's file.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bindlm.checkpoints import resolve
from bindlm.encoders.base import JointEncoder
from bindlm.encoders.towers.base import Tower
from bindlm.encoders.towers.checks import check_choice, check_number, check_whole, fault
from bindlm.encoders.towers.vit import relative_disparity
from bindlm.encoders.towers.waveform import load_waveform
from bindlm.errors import ConfigError
from bindlm.media.audio import Audio
from bindlm.media.depth import load_depth
from bindlm.media.image import load_image
from bindlm.media.imu import load_imu
from bindlm.media.points import load_points
from bindlm.media.text import load_text
from bindlm.media.thermal import load_thermal

_ADAPTER = "default"
_WAVEFORM_RATE_HZ = 16_000
_SENSES = ("image", "audio", "depth", "thermal", "imu", "point", "text")
_AS_PICTURES = ("depth", "thermal")
"""Senses that a picture tower can be given, as three equal channels."""


@dataclass
class LoraTowerConfig:
    """A tower of a published encoder, and what of it is trained."""

    encoder: str = ""
    """The encoder, in the words of `bindlm.checkpoints.resolve`; it is loaded when the tower is built."""
    family: str | None = None
    """Its row in `ENCODER_FAMILIES`; None recognises it."""
    modality: str = "thermal"
    """The new sense."""
    base_modality: str = "image"
    """The sense of the encoder that it starts from; the same one, or "image" for depth and thermal pictures."""
    r: int = 8
    """Rank of the matrices."""
    lora_alpha: int = 16
    """They are scaled by `lora_alpha / r`."""
    lora_dropout: float = 0.0
    """On what goes into them, in training."""
    target_modules: list[str] | str = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])
    """Linear layers that get them: ends of names, a regular expression, or "all-linear" (see peft.LoraConfig)."""
    exclude_modules: str = r".*text_(model|tower|encoder)\..*"
    """Layers that get none, a regular expression of whole names: here the text tower that CLIP brings along."""
    trained_modules: list[str] = field(default_factory=list)
    """Modules that are trained and saved as a whole, such as the last projection; ends of names."""

    def __post_init__(self) -> None:
        check_choice(self, "modality", _SENSES)
        check_choice(self, "base_modality", _SENSES)
        check_whole(self, 1, "r", "lora_alpha")
        check_number(self, "lora_dropout", 0, 0.9)
        is_same = self.modality == self.base_modality
        if not is_same and not (self.base_modality == "image" and self.modality in _AS_PICTURES):
            raise fault(self, "base_modality", f"{self.modality!r}, or 'image' for {' and '.join(_AS_PICTURES)}")
        for name in ("target_modules", "trained_modules"):
            value = getattr(self, name)
            is_text = name == "target_modules" and isinstance(value, str)
            if not is_text and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
                raise fault(self, name, "a list of names")


class LoraTower(Tower):
    """One sense of a loaded encoder with LoRA beside its frozen weights.

    `state_dict` holds what is trained alone, under PEFT's names.

    Args:
        config: what is trained of which encoder.
        encoder: the encoder, where it is loaded already; it is changed in place. None loads `config.encoder`.
    """

    config: LoraTowerConfig

    def __init__(self, config: LoraTowerConfig, encoder: JointEncoder | None = None) -> None:
        super().__init__()
        self.config = config
        self.modality = config.modality
        encoder = _loaded(config) if encoder is None else encoder
        encoder.check_modality(config.base_modality)
        self.dim = encoder.dim
        self.base = _with_lora(config, encoder.requires_grad_(False).eval())
        self.register_load_state_dict_pre_hook(_to_own_names)
        self.register_load_state_dict_post_hook(_forget_frozen)

    @property
    def encoder(self) -> JointEncoder:
        """The encoder under PEFT's wrapper."""
        return self.base.base_model.model

    def train(self, mode: bool = True) -> "LoraTower":
        """Set the mode of what is trained; batch norms and dropout of the frozen rest stay as in evaluation."""
        super().train(mode)
        for name, module in self.base.named_modules():
            if "lora_" not in name and "modules_to_save" not in name:
                module.training = False
        return self

    def load(self, source: Any, *, allow_url: bool = False) -> Any:
        """One medium decoded: an array by sense, pixels `(H, W, 3)` for pictures, a waveform at 16 kHz."""
        sense = self.modality
        if sense == "audio":
            return load_waveform(source, _WAVEFORM_RATE_HZ, allow_url=allow_url)
        if sense == "text":
            return load_text(source)
        if sense == "imu":
            return load_imu(source, allow_url=allow_url)
        loaders: dict[str, Any] = {
            "image": load_image, "depth": load_depth, "thermal": load_thermal, "point": load_points,
        }  # fmt: skip
        return loaders[sense](source, allow_url=allow_url)

    def prepare(self, raw: Any) -> Tensor:
        """What the encoder's own preprocessing makes of it; depth and thermal pictures as grey ones if need be."""
        return self.encoder.preprocess(self.config.base_modality, self._as_source(raw))

    def embed(self, values: Tensor) -> Tensor:
        """Values of the encoder's sense -> `(B, D_joint)`."""
        return self.encoder.embed(self.config.base_modality, values)

    def _as_source(self, raw: Any) -> Any:
        if self.modality == "audio":
            return Audio(np.ascontiguousarray(raw, dtype=np.float32)[None], _WAVEFORM_RATE_HZ)
        if self.modality == self.config.base_modality:
            return raw
        bright = (relative_disparity(raw) + 1) / 4 if self.modality == "depth" else np.asarray(raw)
        grey = np.rint(np.clip(bright, 0, 1) * 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)  # (H, W, 3)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """LoRA matrices and modules trained as a whole, under the names of PEFT's own files."""
        prefix = kwargs.get("prefix", "")
        destination = kwargs.pop("destination", None)
        whole = super().state_dict(*args, **kwargs)
        start = f"{prefix}base."
        own = {
            start + _peft_name(name.removeprefix(start)): tensor
            for name, tensor in whole.items()
            if name.startswith(start) and _is_trained(name)
        }
        if destination is None:
            return own
        destination.update(own)
        return destination


def _loaded(config: LoraTowerConfig) -> JointEncoder:
    from bindlm.encoders.registry import load_encoder

    if not config.encoder:
        raise ConfigError("LoraTowerConfig.encoder names no encoder; give the path of a weight file, or a folder.")
    with torch.device("cpu"):
        return load_encoder(
            resolve(config.encoder), family=config.family, modalities=[config.base_modality], dtype=torch.float32
        )


def _with_lora(config: LoraTowerConfig, encoder: JointEncoder) -> Any:
    """The encoder in PEFT's wrapper, which makes the names that its files have."""
    from peft import LoraConfig, get_peft_model

    try:
        settings = LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.target_modules,
            exclude_modules=config.exclude_modules or None,
            modules_to_save=config.trained_modules or None,
        )
        return get_peft_model(encoder, settings, adapter_name=_ADAPTER)
    except ValueError as error:
        raise ConfigError(
            f"LoraTowerConfig.target_modules {config.target_modules!r} fit no linear layers of "
            f'{type(encoder).__name__}; name layers of the tower, or give "all-linear".'
        ) from error


def _is_trained(name: str) -> bool:
    return f".{_ADAPTER}." in name and (".lora_" in name or ".modules_to_save." in name)


def _peft_name(name: str) -> str:
    """As PEFT saves it: without the adapter's name."""
    return name.replace(f".modules_to_save.{_ADAPTER}.", ".").replace(f".{_ADAPTER}.", ".")


def _to_own_names(module: nn.Module, state: Any, prefix: str, *_: Any) -> None:
    """PEFT's names in a file to those of the layers, before they are matched."""
    assert isinstance(module, LoraTower)
    start = f"{prefix}base."
    own = {_peft_name(name): name for name in module.base.state_dict() if _is_trained(name)}
    for name, mine in own.items():
        if start + name in state:
            state[start + mine] = state.pop(start + name)


def _forget_frozen(module: nn.Module, incompatible: Any) -> None:
    """The frozen weights come from their publisher, so a file need not hold them."""
    incompatible.missing_keys[:] = [
        name for name in incompatible.missing_keys if ".base_model." not in f".{name}" or _is_trained(name)
    ]
