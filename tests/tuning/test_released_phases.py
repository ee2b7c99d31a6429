"""Which tensors each phase of a release trains: by name, those of its files and no other, and all of them move."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bindlm.checkpoints.adapter_layout import bind_network_state, linear_state, visual_query_state, zero_init_state
from bindlm.checkpoints.llama_layout import convert_llama_tensors
from bindlm.errors import ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.stage_recipe import TuningConfig
from bindlm.tuning.stages import prepare_stage

from ..converted import loaded
from ..golden import golden
from ..released import NUM_HEADS, golden_config

PANDAGPT = TuningConfig(train_bridge=True, norms=False, biases=())
"""Its one phase: LoRA on the attention, and the linear bridge."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("converted")


def trained(model: BindLMForConditionalGeneration) -> set[str]:
    """Names of all that requires gradients, without LoRA's wrappers."""
    return {name.replace(".base_layer", "") for name, each in model.named_parameters() if each.requires_grad}


def of_language_model(adapter: dict[str, Tensor]) -> set[str]:
    names = dict(convert_llama_tensors(adapter, num_heads=NUM_HEADS))
    return {f"language_model.{name}" for name in names}


def of_parts(bridge: dict[str, Tensor], injection: dict[str, Tensor]) -> set[str]:
    return {f"bridge.{name}" for name in bridge} | {f"injection.{name}" for name in injection}


def finetuned(adapter: dict[str, Tensor], words: str = "norm|bias|lora") -> set[str]:
    """ImageBind-LLM's rule: tensors of the LLaMA with one of these words in their names."""
    chosen = {name: t for name, t in adapter.items() if name.startswith("llama.") and re.search(words, name)}
    return of_language_model(chosen)


def test_phases_of_imagebind_llm(root: Path) -> None:
    model, adapter = loaded("imagebind_llm", "adapter", root), golden("imagebind_llm/adapter.safetensors")
    prepare_stage(model, "pretrain", TuningConfig())
    assert trained(model) == of_parts(bind_network_state(adapter), zero_init_state(adapter, 4, 4))
    prepare_stage(model, "instruct", TuningConfig())
    assert trained(model) == finetuned(adapter)


def test_imagebind_llm_gets_in_its_second_phase_what_its_file_then_holds(root: Path) -> None:
    """Biases and LoRA do not exist before it."""
    model, adapter = loaded("imagebind_llm", "adapter_pretrain", root), golden("imagebind_llm/adapter.safetensors")
    assert model.config.lora is None
    prepare_stage(model, "instruct", TuningConfig())
    assert trained(model) == finetuned(adapter)
    held = {name: tuple(each.shape) for name, each in model.named_parameters() if each.requires_grad}
    finished = dict(loaded("imagebind_llm", "adapter", root).named_parameters())
    assert held == {name: tuple(finished[name].shape) for name in held}


def test_phases_of_llama_adapter_v1(root: Path) -> None:
    model, adapter = loaded("llama_adapter_v1", "adapter", root), golden("llama_adapter_v1/adapter.safetensors")
    prepare_stage(model, "pretrain", TuningConfig())
    assert trained(model) == of_parts({}, zero_init_state(adapter, 4, 3))


@pytest.mark.parametrize("case", ["bias", "lora_bias", "pretrain"])
def test_phases_of_llama_adapter_v2(case: str, root: Path) -> None:
    """The goldens list them by name; the gate of a layer without prompts, which has no gradient, is no part here."""
    listed = golden_config("llama_adapter_v2")["greedy"][case]
    adapter = golden(f"llama_adapter_v2/adapter_{case}.safetensors")
    names = {re.sub(r"(?<=\.)\d+(?=\.)", "N", name): name for name in adapter}
    assert set(listed["trainable"]) <= set(names)
    chosen = {name: t for name, t in adapter.items() if re.sub(r"(?<=\.)\d+(?=\.)", "N", name) in listed["trainable"]}
    model = loaded("llama_adapter_v2", f"adapter_{case}", root)
    if case == "pretrain":
        prepare_stage(model, "pretrain", TuningConfig())
        expected = of_parts(visual_query_state(chosen, 2), zero_init_state(chosen, 4, 3))
        assert listed["trainable_without_gradient"] == ["llama.layers.0.attention.gate"]
    else:
        prepare_stage(model, "instruct", TuningConfig(train_lora=False))
        expected = of_language_model(chosen)
    assert trained(model) == expected
    assert (model.config.lora is not None) == (case == "lora_bias"), "neither put in nor taken out"


def test_phase_of_pandagpt(root: Path) -> None:
    """All of its delta, and nothing else."""
    model, delta = loaded("pandagpt", "delta", root), golden("pandagpt/delta.safetensors")
    prepare_stage(model, "instruct", PANDAGPT)
    adapters = {name.replace("llama_model.base_model.model.", "language_model.") for name in delta if "lora" in name}
    assert trained(model) == adapters | {f"bridge.{name}" for name in linear_state(delta)}
    inputs, before = golden("pandagpt/inputs.safetensors"), {n: p.clone() for n, p in model.named_parameters()}
    place = model.injection.placeholder_id
    assert place is not None
    ids = torch.cat([torch.full((2, 1), place), inputs["input_ids"]], dim=1)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, joint_embedding=inputs["image_features"], labels=ids).loss.backward()
        optimizer.step()
    moved = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert {name.replace(".base_layer", "") for name in moved} == trained(model)


@pytest.mark.parametrize("stage", ["instruct", "quality"])
def test_phase_without_lora_puts_none_in(stage: str, root: Path) -> None:
    model = loaded("imagebind_llm", "adapter_pretrain", root)
    prepare_stage(model, stage, TuningConfig(train_lora=False))
    adapter = golden("imagebind_llm/adapter.safetensors")
    assert trained(model) == finetuned(adapter, "norm|bias")
    assert model.lora_parameters() == []


def test_settings_of_lora_that_does_not_train_are_refused() -> None:
    settings: dict[str, Any] = {"lora": {"r": 4}, "train_lora": False}
    with pytest.raises(ConfigError, match="train_lora is false"):
        TuningConfig(**settings)
