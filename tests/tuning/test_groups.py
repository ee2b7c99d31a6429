"""What the optimizer decays: the release's rule, and the gates' own group."""

import json
from typing import Any

import pytest
import torch

from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.tuning.groups import is_decayed, optimizer_groups

from ..golden import GOLDEN, golden
from ..tiny import tiny_model

LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


def trained_model(**changes: Any) -> BindLMForConditionalGeneration:
    """A model in which everything but the encoder and the plain language model trains."""
    model = tiny_model(lora=LORA, tuned={"norms": True, "biases": ["q_proj"]}, **changes)
    model.requires_grad_(False)
    for part in (model.bridge, model.injection):
        part.requires_grad_(True)
    for parameter in [*model.lora_parameters(), *model.tuned_parameters()]:
        parameter.requires_grad_(True)
    return model


def names_by_group(model: BindLMForConditionalGeneration, **settings: Any) -> dict[str, list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer_groups(model, learning_rate=1e-3, weight_decay=0.05, **settings)
    return {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}


@pytest.mark.parametrize(
    ("phase", "file", "count"), [("pretrain", "adapter_pretrain", 15), ("finetune", "adapter", 22)]
)
def test_rule_is_the_releases(phase: str, file: str, count: int) -> None:
    """Against the lists the release made; its gates have four axes, so its own shapes are looked up."""
    path = GOLDEN / "imagebind_llm" / "training_rules.json"
    if not path.is_file():
        pytest.skip("../shared/golden is not beside this checkout")
    lists = json.loads(path.read_text())["weight_decay_groups"][phase]
    tensors = golden(f"imagebind_llm/{file}.safetensors")
    compared = 0
    for wanted in ("decay", "no_decay"):
        for name in lists[wanted]:
            tensor = tensors[name.replace(".N.", ".0.")]
            assert is_decayed(name, tensor.ndim) == (wanted == "decay"), name
            compared += 1
    assert compared >= count


def test_matrices_are_decayed_and_the_rest_is_not() -> None:
    groups = names_by_group(trained_model())
    assert list(groups) == ["decayed", "undecayed", "gates"]
    assert groups["gates"] == ["injection.gate"]
    assert sum(".lora_" in name for name in groups["decayed"]) == 2 * 2 * 3
    assert {"bridge.input.weight", "bridge.blocks.0.w1.weight"} <= set(groups["decayed"])
    assert {"bridge.blocks.0.norm.weight", "language_model.model.norm.weight"} <= set(groups["undecayed"])
    assert sum(name.endswith(".bias") for name in groups["undecayed"]) == 3
    assert not any(name.endswith((".bias", "norm.weight")) for name in groups["decayed"])


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one() -> None:
    model = trained_model()
    model.bridge.blocks[0].requires_grad_(False)
    listed = [name for names in names_by_group(model).values() for name in names]
    assert sorted(listed) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert len(listed) == len(set(listed)) > 20


def test_rates_and_decays_are_as_asked() -> None:
    def settings(**given: Any) -> dict[str, tuple[float, float]]:
        groups = optimizer_groups(trained_model(), learning_rate=1e-3, weight_decay=0.05, **given)
        return {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}

    assert settings() == {"decayed": (1e-3, 0.05), "undecayed": (1e-3, 0.0), "gates": (1e-3, 0.0)}
    assert settings(gate_learning_rate=1e-2)["gates"] == (1e-2, 0.0)
    assert settings(gate_learning_rate=0.0)["gates"] == (0.0, 0.0)
    assert settings(gate_weight_decay=True)["gates"] == (1e-3, 0.05)


def test_order_is_that_of_the_model_made_anew() -> None:
    assert names_by_group(trained_model()) == names_by_group(trained_model(seed=5))
    optimizer, other = (
        torch.optim.AdamW(optimizer_groups(trained_model(), learning_rate=1e-3, weight_decay=0.05)) for _ in range(2)
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    for group in other.param_groups:
        assert all(other.state[parameter]["exp_avg"].shape == parameter.shape for parameter in group["params"])


def test_empty_groups_are_left_out_and_nothing_at_all_is_refused() -> None:
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="Nothing in this model trains"):
        optimizer_groups(model, learning_rate=1e-3, weight_decay=0.0)
    model.injection.requires_grad_(True)
    assert list(names_by_group(model)) == ["gates"]


def test_gates_are_found_by_kind_inside_a_wrapper_too() -> None:
    model = trained_model()
    wrapped = torch.nn.ModuleDict({"inner": model})
    model.bridge.gate = torch.nn.Parameter(torch.zeros(3))  # sounds like one, and is none
    groups = {group["name"]: group for group in optimizer_groups(wrapped, learning_rate=1e-3, weight_decay=0.05)}
    assert [id(parameter) for parameter in groups["gates"]["params"]] == [id(model.injection.gate)]
