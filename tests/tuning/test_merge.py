"""What was trained of a language model, taken up into it: a plain transformers model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from bindlm.errors import ConfigError
from bindlm.training.stage_recipe import TuningConfig
from bindlm.tuning.stages import prepare_stage

from ..converted import loaded
from ..golden import golden
from ..released import TOLERANCE
from ..tiny import randomize_, randomize_lora, tiny_language_model, tiny_model, token_batch


def test_merged_release_is_a_plain_llama_that_transformers_saves_and_loads(tmp_path: Path) -> None:
    """It is blind, as the release is with all gates at zero."""
    inputs, outputs = golden("imagebind_llm/inputs.safetensors"), golden("imagebind_llm/outputs.safetensors")
    merged = loaded("imagebind_llm", "adapter", tmp_path).merge()
    assert type(merged) is LlamaForCausalLM
    with torch.no_grad():
        logits = merged(inputs["tokens"]).logits
    torch.testing.assert_close(logits, outputs["gate_zero.logits"], **TOLERANCE)
    merged.save_pretrained(tmp_path / "plain")
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        assert torch.equal(again(inputs["tokens"]).logits, logits)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@torch.no_grad()
def test_merged_model_says_what_the_bound_one_said(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind, language_model=tiny_language_model(kind))
    prepare_stage(model, "instruct", TuningConfig(lora={"r": 2}, lora_scope="always", biases=("q_proj", "o_proj")))
    randomize_lora(model, 5)
    for parameter in model.tuned_parameters():
        randomize_(parameter, 0.3, torch.Generator().manual_seed(parameter.numel()))
    model.eval()
    ids = token_batch(2, 6)
    expected = model(input_ids=ids).logits
    merged = model.merge()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in merged.modules())
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, merged(ids).logits)


@torch.no_grad()
def test_unloaded_adapters_leave_the_language_model_as_it_was() -> None:
    model = tiny_model(lora={"r": 2, "target_modules": ["q_proj", "v_proj"]}, lora_scope="always")
    ids = token_batch(2, 6)
    assert not torch.equal(model(input_ids=ids).logits, tiny_language_model()(ids).logits)
    model.unload_lora()
    assert model.config.lora is None
    assert model.lora_parameters() == []
    assert torch.equal(model(input_ids=ids).logits, tiny_language_model()(ids).logits)
    model.unload_lora()  # nothing to do


def test_biases_that_a_plain_model_cannot_keep_are_refused_and_nothing_changes() -> None:
    model = tiny_model("qwen3", lora={"r": 2, "target_modules": ["q_proj"]})
    model.add_tuned(biases=["gate_proj"])
    before = list(model.state_dict())
    with pytest.raises(ConfigError, match="no setting for biases on gate_proj"):
        model.merge()
    assert list(model.state_dict()) == before
    assert model.injection.is_attached
