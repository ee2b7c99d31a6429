"""What a stage of training trains, set up on a model.

ImageBind-LLM (arXiv 2309.03905), section 3.2, and its release:

- pretrain: bridge and injection, that is gates and, where there are any, prompts; the language model is frozen.
  LLaMA-Adapter does the same, and V1 knows no other stage.
- instruct and quality: LoRA of rank 16 on every linear of the decoder layers, scale 1, no dropout; norms; biases.
  Bridge, gates and prompts are frozen. LLaMA-Adapter V2 (arXiv 2304.15010) trains no LoRA, though some files of it
  have one: `train_lora` says which. PandaGPT (arXiv 2305.16355) has one phase, LoRA and the bridge: instruct with
  `train_bridge`, and neither norms nor biases.

The release starts the second matrix of LoRA at zero and the first as torch starts a linear layer; PEFT does the same
(Kaiming with a = sqrt(5) is that start).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from bindlm.errors import ConfigError
from bindlm.tuning.bias_norm import check_bias_names, find_biases, find_linears, find_norms

__all__ = ["STAGES", "BoundModel", "Tuning", "lora_settings", "prepare_stage"]

STAGES = ("pretrain", "instruct", "quality")
RANK = 16
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Tuning(Protocol):
    """What `prepare_stage` reads; `bindlm.training.stage_recipe.TuningConfig` is one."""

    @property
    def lora(self) -> dict[str, Any] | None:
        """Fields of `peft.LoraConfig` that differ from the stage's."""

    @property
    def lora_scope(self) -> str:
        """ "always" or "conditioned"."""

    @property
    def norms(self) -> bool:
        """Whether norms train."""

    @property
    def train_lora(self) -> bool:
        """Whether adapters are put in, where there are none, and train."""

    @property
    def biases(self) -> Sequence[str]:
        """Linear layers whose bias trains."""

    @property
    def train_bridge(self) -> bool:
        """Whether bridge and gates go on learning after pretraining."""

    @property
    def frozen_dtype(self) -> str:
        """Of the frozen language model: "float32" or "bfloat16"."""

    @property
    def trained_dtype(self) -> str:
        """Of all that this project trains: "float32" or "bfloat16"."""


class BoundModel(Protocol):
    """What is needed of a `BindLMForConditionalGeneration`."""

    @property
    def config(self) -> Any:
        """A `BindLMConfig`."""

    @property
    def language_model(self) -> nn.Module:
        """The decoder."""

    @property
    def bridge(self) -> nn.Module:
        """The bind network."""

    @property
    def injection(self) -> nn.Module:
        """The gates."""

    def add_lora(self, settings: dict[str, Any], *, scope: str) -> list[nn.Parameter]:
        """Put adapters in."""

    def set_lora_scope(self, scope: str) -> None:
        """Say when they are on."""

    def lora_parameters(self) -> list[nn.Parameter]:
        """Their weights."""

    def add_tuned(self, *, norms: bool, biases: Sequence[str]) -> None:
        """Make norms and biases the model's own."""

    def tuned_parameters(self) -> list[nn.Parameter]:
        """Norms and biases that are."""

    def requires_grad_(self, requires_grad: bool) -> Any:
        """As of `nn.Module`."""


def prepare_stage(model: BoundModel, stage: str, tuning: Tuning) -> None:
    """Set up adapters, biases, what requires gradients, and precision for a stage.

    A model that an earlier stage left goes on with the adapters, norms and biases it has.

    Precision: `frozen_dtype` is that of what the language model brought along and nothing trains. `trained_dtype` is
    that of bridge, gates, adapters, trained norms and biases, be they frozen in this stage: rounding them would undo a
    part of the stage that made them. The encoder and the cache stay as they are. Where the two differ, run the model
    under `torch.autocast`.

    Args:
        stage: one of `STAGES`.
        tuning: what deviates from the stage's rule.

    Raises:
        ConfigError: an unknown stage, or settings that do not fit the model; it is unchanged then.
    """
    if stage not in STAGES:
        raise ConfigError(f"There is no stage {str(stage)!r}; expected one of {', '.join(STAGES)}.")
    frozen, trained = _dtype(tuning, "frozen_dtype"), _dtype(tuning, "trained_dtype")
    if stage == "pretrain":
        learning = [*model.bridge.parameters(), *model.injection.parameters()]
    else:
        learning = _set_up_language_model(model, tuning)
        if tuning.train_bridge:
            learning += [*model.bridge.parameters(), *model.injection.parameters()]
    model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    _set_precision(model, frozen, trained)


def lora_settings(language_model: nn.Module, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fields of `peft.LoraConfig` for the rule of instruct and quality, with some of them changed.

    Args:
        changes: fields that differ. A rank without `lora_alpha` keeps the scale at 1.
    """
    changes = dict(changes or {})
    settings = {"r": RANK, "lora_dropout": 0.0, **changes}
    settings.setdefault("lora_alpha", settings["r"])
    if "target_modules" not in settings:
        settings["target_modules"] = _target_modules(language_model)
    return settings


def _target_modules(language_model: nn.Module) -> list[str]:
    """Names by which PEFT finds each linear of the decoder layers and nothing else: short ones where these will do."""
    linears = find_linears(language_model)
    short = sorted({name.rpartition(".")[2] for name in linears})
    matched = [name for name, _ in language_model.named_modules() if name.rpartition(".")[2] in short]
    return short if set(matched) == set(linears) else list(linears)


def _set_up_language_model(model: BoundModel, tuning: Tuning) -> list[nn.Parameter]:
    """Adapters, norms and biases of instruct and quality; gives what of them trains."""
    language_model = model.language_model
    check_bias_names(language_model, tuning.biases)
    norms = [parameter for norm in find_norms(language_model).values() for parameter in norm.parameters()]
    if tuning.norms and not norms:
        raise ConfigError(
            f"{type(language_model).__name__} has no norms with weights to train; set tuning.norms to false."
        )
    if not tuning.train_lora:
        model.set_lora_scope(tuning.lora_scope)
    elif model.config.lora is None:
        model.add_lora(lora_settings(language_model, tuning.lora), scope=tuning.lora_scope)
    else:
        _check_same_lora(model.config.lora, tuning.lora or {})
        model.set_lora_scope(tuning.lora_scope)
    model.add_tuned(norms=tuning.norms, biases=tuning.biases)
    adapters = model.lora_parameters() if tuning.train_lora else []
    return [*adapters, *(norms if tuning.norms else ()), *find_biases(language_model, tuning.biases)]


def _check_same_lora(present: dict[str, Any], wanted: dict[str, Any]) -> None:
    """A later stage cannot have other adapters than the ones that are there."""
    different = {name: value for name, value in wanted.items() if _plain(present.get(name)) != _plain(value)}
    if different:
        raise ConfigError(
            f"The model has LoRA adapters with {present} already, and tuning.lora asks for {different}. Leave tuning."
            "lora out to go on with these, or start from a model without adapters."
        )


def _plain(value: Any) -> Any:
    """A setting to compare: the order of names does not matter."""
    return sorted(value) if isinstance(value, (list, tuple, set)) else value


def _dtype(tuning: Tuning, field: str) -> torch.dtype:
    name = getattr(tuning, field)
    if name not in _DTYPES:
        raise ConfigError(f"tuning.{field} must be {' or '.join(_DTYPES)}, got {name!r}.")
    return _DTYPES[name]


def _set_precision(model: BoundModel, frozen: torch.dtype, trained: torch.dtype) -> None:
    own = [*model.lora_parameters(), *model.tuned_parameters(), *model.bridge.parameters()]
    own += model.injection.parameters()
    _cast(own, trained)
    kept = {id(parameter) for parameter in own}
    _cast((parameter for parameter in model.language_model.parameters() if id(parameter) not in kept), frozen)


def _cast(parameters: Any, dtype: torch.dtype) -> None:
    # Parameters only, never module.to(dtype): that would round the rotary frequencies, which are buffers in fp32. Not
    # quantised weights, which are whole numbers.
    for parameter in parameters:
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
