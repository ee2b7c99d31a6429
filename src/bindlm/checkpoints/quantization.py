"""Language models held in 8 or 4 bits: what a caller may ask for, and what transformers is then told.

Two words stand for what works on a CPU and on a GPU alike, both by bitsandbytes: "int8" (LLM.int8, arXiv 2208.07339)
and "int4" (NF4 of QLoRA, arXiv 2305.14314). Any other scheme of transformers is asked for by its own configuration.
"""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "QUANTIZATION_WORDS",
    "build_quantized",
    "check_quantization",
    "loading_options",
    "quantization_of",
    "quantized_base_state",
    "without_base",
]

QUANTIZATION_WORDS = ("int8", "int4")
"""What `quantization` may be in one word."""

_PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "quanto": "optimum.quanto",
    "hqq": "hqq",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
}
"""Scheme of transformers -> the module that computes it."""


def check_quantization(asked: Any) -> str | dict[str, Any] | None:
    """What was asked for as `config.json` can hold it: a word, the settings of transformers, or None for none.

    Args:
        asked: one of `QUANTIZATION_WORDS`, a `QuantizationConfigMixin` of transformers or its dictionary; None or
            False for none.

    Raises:
        ConfigError: it is none of these.
    """
    if asked is None or asked is False:
        return None
    if isinstance(asked, str):
        if asked not in QUANTIZATION_WORDS:
            known = ", ".join(QUANTIZATION_WORDS)
            raise ConfigError(f"quantization must be {known} or a quantisation config of transformers, got {asked!r}.")
        return asked
    if isinstance(asked, Mapping):
        return _settings(_from_settings(asked))
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if not isinstance(asked, QuantizationConfigMixin):
        known = ", ".join(QUANTIZATION_WORDS)
        raise ConfigError(f"quantization must be {known} or a quantisation config of transformers, got {asked!r}.")
    return _settings(asked)


def loading_options(
    asked: str | Mapping[str, Any], dtype: "torch.dtype | None", device: "torch.device | str | None"
) -> dict[str, Any]:
    """Keywords for `from_pretrained` of transformers.

    Args:
        asked: as `check_quantization` gives it.
        dtype: of what is not quantised, and of the arithmetic.
        device: where the weights go, straight from the file; None is the CPU.

    Raises:
        ConfigError: the package that computes this scheme is not installed.
    """
    config = _from_word(asked, dtype) if isinstance(asked, str) else _from_settings(asked)
    check_package(_settings(config))
    _leave_out_casts()
    return {"quantization_config": config, "device_map": {"": device if device is not None else "cpu"}}


def check_package(settings: Mapping[str, Any]) -> None:
    """See that what computes a scheme is installed.

    Args:
        settings: of a quantisation config, with `quant_method`.

    Raises:
        ConfigError: it is not; says what to install.
    """
    method = str(settings.get("quant_method"))
    module = _PACKAGES.get(method)
    if module is None or _is_installed(module):
        return
    extra = "bindlm[quantized]" if method == "bitsandbytes" else module.replace(".", "-")
    raise ConfigError(
        f"A language model quantised by {method} needs the package {module.replace('.', '-')}, which is not "
        f"installed: pip install '{extra}'."
    )


def quantization_of(language_model: Any) -> dict[str, Any] | None:
    """Settings that a language model was quantised with, as `config.json` can hold them; None for one that is not."""
    quantizer = getattr(language_model, "hf_quantizer", None)
    return None if quantizer is None else _settings(quantizer.quantization_config)


def quantized_base_state(state: Mapping[str, "Tensor"], prefix: str = "language_model.") -> dict[str, "Tensor"]:
    """The plain language model among the tensors of a bound model's file: without adapters, under its own names."""
    return {
        name.removeprefix(prefix).replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not any(part.startswith("lora_") for part in name.split("."))
    }


def without_base(
    state: Mapping[str, "Tensor"], names: set[str], kept: set[str], prefix: str = "language_model."
) -> tuple[dict[str, "Tensor"], set[str]]:
    """The rest of a file, and of the names that it must hold, once its language model has been quantised.

    Args:
        state: all of the file.
        names: what it must hold.
        kept: names of the language model's tensors that are the bound model's own.
        prefix: of the language model's names.
    """
    names = {name for name in names if name in kept or not name.startswith(prefix)}
    rest = {name: tensor for name, tensor in state.items() if name in names or not name.startswith(prefix)}
    return rest, names


def build_quantized(
    config: "PreTrainedConfig",
    state: Mapping[str, "Tensor"],
    asked: str | Mapping[str, Any],
    *,
    dtype: "torch.dtype",
    device: "torch.device | str | None" = None,
    attn_implementation: str | None = None,
) -> "PreTrainedModel":
    """A quantised decoder from plain weights at hand; one tensor at a time is held in full.

    Args:
        config: of the decoder.
        state: its weights by name, mapped from a file or in memory; more than it takes is passed over.
        asked: as `check_quantization` gives it.
        dtype: of what is not quantised.
        device: None is the CPU.
        attn_implementation: None is transformers' choice.

    Raises:
        ConfigError: the package that computes this scheme is not installed.
        CheckpointError: a weight is missing or of another shape, or the scheme does not take this decoder.
    """
    from copy import deepcopy

    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    options = loading_options(asked, dtype, device)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        with quiet_transformers():
            model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None, config=deepcopy(config), state_dict=dict(state), dtype=dtype, output_loading_info=True, **options
            )
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise CheckpointError(
            f"The language model cannot be quantised as {asked!r}: {type(config).__name__} or this device is not one "
            "that the scheme takes, or its weights do not fit; try without quantization"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{len(missing)} weights of the language model are missing, such as {missing[0]}")
    return model.eval()


def _from_word(word: str, dtype: "torch.dtype | None") -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if word == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    # arithmetic in the dtype of everything else: transformers' own choice is fp32 whatever that is
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.float32
    )


def _from_settings(settings: Mapping[str, Any]) -> Any:
    from transformers.quantizers.auto import AutoQuantizationConfig

    try:
        return AutoQuantizationConfig.from_dict(dict(settings))
    except (ValueError, TypeError, KeyError, ImportError) as error:
        if isinstance(settings.get("quant_method"), str):
            check_package(settings)  # its absence may be why
        raise ConfigError(
            f"quantization {dict(settings)} is no quantisation config of transformers: give quant_method and fields "
            "of its class, such as {'quant_method': 'bitsandbytes', 'load_in_4bit': True}."
        ) from error


def _settings(config: Any) -> dict[str, Any]:
    """A quantisation config as plain values; what transformers cannot take back is left out."""
    settings = dict(config.to_dict())
    method = settings.get("quant_method")
    settings["quant_method"] = str(getattr(method, "value", method))
    return {name: value for name, value in settings.items() if not name.startswith("_")}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _leave_out_casts() -> None:
    """bitsandbytes says at every layer of every step that int8 casts what it is given to half precision."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    if _is_no_cast not in logger.filters:
        logger.addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    return "will be cast" not in str(record.msg)
