"""The small parts of a language model that instruction tuning trains beside LoRA: norms, and biases it never had.

ImageBind-LLM (arXiv 2309.03905), section 3.2.2. The release puts biases, zero at first, on `wq`, `wo`, `w1`, `w2` and
`w3` of LLaMA, which are `q_proj`, `o_proj`, `gate_proj`, `down_proj` and `up_proj` here, and on no other linear.

Parts are found by what they are, never by a piece of a parameter's name: "norm" and "bias" turn up in other names too.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bindlm.checkpoints.quantization import quantization_of
from bindlm.errors import ConfigError
from bindlm.injections import find_decoder_layers

__all__ = [
    "add_biases",
    "check_bias_names",
    "check_biases_have_a_switch",
    "declare_biases",
    "find_biases",
    "find_linears",
    "find_norms",
]


def find_norms(language_model: nn.Module) -> dict[str, nn.Module]:
    """Norms of the decoder, those inside attention (Qwen3, Gemma3) and the last one included.

    A norm is a module without children that has a weight and a term against division by zero: every model of
    transformers brings a class of its own, and torch's LayerNorm and RMSNorm are such as well.

    Returns:
        Modules by their name in `language_model`, in its order.
    """
    decoder = getattr(language_model, "get_decoder", lambda: language_model)() or language_model
    inside = {id(module) for module in decoder.modules()}
    return {
        name: module for name, module in language_model.named_modules() if id(module) in inside and _is_norm(module)
    }


def find_linears(language_model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers inside the decoder layers: not the head, and under LoRA the layer that is wrapped.

    Returns:
        Layers by their name in `language_model` (for one that LoRA wraps, the wrapper's), in its order.
    """
    inside = {id(module) for module in find_decoder_layers(language_model).modules()}
    found: dict[str, nn.Linear] = {}
    wrapper = None
    for name, module in language_model.named_modules():  # what a module holds comes right after it
        if id(module) not in inside or (wrapper is not None and name.startswith(f"{wrapper}.")):
            continue
        if isinstance(module, LoraLayer):
            wrapper = name
            module = module.get_base_layer()
        if isinstance(module, nn.Linear):
            found[name] = module
    return found


def check_bias_names(language_model: nn.Module, names: Iterable[str]) -> None:
    """See that each name is that of a linear layer in the decoder layers.

    Raises:
        ConfigError: one is not; the message lists those there are.
    """
    names = list(names)
    if not names:
        return
    present = {name.rpartition(".")[2]: None for name in find_linears(language_model)}
    unknown = [name for name in names if name not in present]
    if unknown:
        raise ConfigError(
            f"{type(language_model).__name__} has no linear layers {', '.join(unknown)} to put a bias on; it has "
            f"{', '.join(present)}."
        )


def add_biases(language_model: nn.Module, names: Sequence[str]) -> list[nn.Parameter]:
    """Give each linear layer of these names a bias of zeros, where it has none.

    Works before LoRA is put on and after. Zeros change nothing until they are trained.

    Args:
        names: what the layers are called inside their parent, such as "q_proj".

    Returns:
        The biases of all layers of these names, new or not.

    Raises:
        ConfigError: there is no layer of such a name; nothing is changed then.
    """
    check_bias_names(language_model, names)
    is_quantized = quantization_of(language_model) is not None
    for linear in _named(language_model, names):
        if _bias(linear) is None:
            weight = linear.weight
            dtype = weight.dtype if weight.is_floating_point() else torch.float32  # quantised weights are whole
            linear.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=dtype, device=weight.device))
        if is_quantized and not any(hook is _hide_bias for hook in linear._forward_pre_hooks.values()):
            linear.register_forward_pre_hook(_hide_bias)
            linear.register_forward_hook(_add_bias, always_call=True)
    return find_biases(language_model, names)


def _hide_bias(linear: nn.Module, args: tuple[Any, ...]) -> None:
    """A quantised layer would round its bias to the dtype of what it is given, for good: a trained one is added after.

    What stands in the instance's own dictionary is found before the parameter of the same name.
    """
    linear.__dict__["bias"] = None


def _add_bias(linear: nn.Module, args: tuple[Any, ...], output: Tensor | None) -> Tensor | None:
    linear.__dict__.pop("bias", None)
    if output is None:  # the layer has failed
        return None
    return output + getattr(linear, "bias").to(output.dtype)  # noqa: B009 - a Tensor for all that mypy knows


_SWITCHES = {
    "attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
}
"""Settings by which transformers' decoders of the Llama kind have biases, and the layers that then have one."""


def check_biases_have_a_switch(language_model: nn.Module, names: Iterable[str]) -> None:
    """See that a plain transformers model of this kind could have biases on these layers.

    Raises:
        ConfigError: its configuration has no setting for them, so they would be lost when it is saved and loaded.
    """
    config: Any = language_model.config
    covered = {name for switch, layers in _SWITCHES.items() if hasattr(config, switch) for name in layers}
    if lost := [name for name in names if name not in covered]:
        raise ConfigError(
            f"{type(language_model).__name__} has no setting for biases on {', '.join(lost)}, so a plain model cannot "
            "keep them: keep the bound model, or tune without these biases."
        )


def declare_biases(language_model: nn.Module, names: Sequence[str]) -> None:
    """Set the switches of these layers' biases, and give the other layers of a switch biases of zeros."""
    for switch, layers in _SWITCHES.items():
        if any(name in layers for name in names):
            add_biases(language_model, layers)
            setattr(language_model.config, switch, True)


def find_biases(language_model: nn.Module, names: Sequence[str] | None = None) -> list[nn.Parameter]:
    """Biases of the linear layers of these names, or of all, that have one; of decoder layers only."""
    biases = [_bias(linear) for linear in _named(language_model, names)]
    return [bias for bias in biases if bias is not None]


def _bias(linear: nn.Linear) -> nn.Parameter | None:
    return linear.bias


def _named(language_model: nn.Module, names: Sequence[str] | None) -> list[nn.Linear]:
    if names is not None and not names:
        return []
    linears = find_linears(language_model)
    return [linear for name, linear in linears.items() if names is None or name.rpartition(".")[2] in names]


def _is_norm(module: nn.Module) -> bool:
    has_weight = isinstance(getattr(module, "weight", None), nn.Parameter)
    has_epsilon = any(hasattr(module, name) for name in ("eps", "variance_epsilon"))
    return has_weight and has_epsilon and next(module.children(), None) is None
