"""What the optimizer decays, and which learning rate the gates have.

Releases of ImageBind-LLM and LLaMA-Adapter: no decay for tensors of one axis and names that end in ".bias". Their
gates have four axes and are decayed, as their prompts are; whether ours are is a switch here.
"""

from typing import Any

from torch import nn

from bindlm.errors import ConfigError
from bindlm.injections import Injection

__all__ = ["is_decayed", "optimizer_groups"]


def is_decayed(name: str, num_axes: int) -> bool:
    """The release's rule for a tensor of this name and so many axes."""
    return num_axes > 1 and not name.endswith(".bias")


def optimizer_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    gate_learning_rate: float | None = None,
    gate_weight_decay: bool = False,
) -> list[dict[str, Any]]:
    """Parameter groups of all that requires gradients, for a torch optimizer.

    LoRA is decayed as any matrix is. The order of groups, and of parameters in them, is that of the model, so a saved
    optimizer fits the same model made anew.

    Args:
        model: a bound model, or what a trainer wrapped around one.
        learning_rate: peak.
        weight_decay: of what is decayed.
        gate_learning_rate: peak for the gates; None for `learning_rate`.
        gate_weight_decay: whether gates are decayed, as in the releases; a decayed gate tends to shut. Prompts of a
            zero-init attention are no gates, and are decayed as any matrix is.

    Returns:
        Dictionaries with `name` ("decayed", "undecayed", "gates"), `params`, `lr` and `weight_decay`; empty groups are
        left out.

    Raises:
        ConfigError: nothing requires gradients.
    """
    gates = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Injection)
        for parameter in module.gate_parameters()
    }
    members: dict[str, list[nn.Parameter]] = {"decayed": [], "undecayed": [], "gates": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = "decayed" if is_decayed(name, parameter.ndim) else "undecayed"
            members["gates" if id(parameter) in gates else decayed].append(parameter)
    if not any(members.values()):
        raise ConfigError("Nothing in this model trains: no parameter requires gradients. Call prepare_stage() first.")
    rates = dict.fromkeys(members, learning_rate)
    if gate_learning_rate is not None:
        rates["gates"] = gate_learning_rate
    decays = {"decayed": weight_decay, "undecayed": 0.0, "gates": weight_decay if gate_weight_decay else 0.0}
    return [
        {"name": name, "params": parameters, "lr": rates[name], "weight_decay": decays[name]}
        for name, parameters in members.items()
        if parameters
    ]
