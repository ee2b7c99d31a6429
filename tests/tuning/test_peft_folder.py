"""Adapters that PEFT saved load into a bound model, and those of a bound model load into PEFT."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.tuning.peft_folder import CONFIG_FILE, WEIGHTS_FILES

from ..converted import loaded
from ..golden import golden
from ..tiny import randomize_, randomize_lora, tiny_language_model, tiny_model, token_batch, unit_rows

LORA: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "some layers": {"layers_to_transform": [1]},
    "ranks of their own": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}},
    "by a pattern": {"target_modules": r".*\.(q|k)_proj"},
    "with dropout": {"lora_dropout": 0.1},
}


def saved_by_peft(folder: Path, kind: str = "llama", **changes: Any) -> Tensor:
    """Writes a random adapter of a tiny decoder; gives PEFT's own logits with it."""
    model = get_peft_model(tiny_language_model(kind), LoraConfig(task_type="CAUSAL_LM", **{**LORA, **changes}))
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            randomize_(parameter, 0.3, generator)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(token_batch(2, 6)).logits


def text_logits(model: BindLMForConditionalGeneration) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_batch(2, 6)).logits


@pytest.mark.parametrize("form", FORMS)
def test_adapter_of_peft_says_the_same_here(form: str, tmp_path: Path) -> None:
    expected = saved_by_peft(tmp_path / "adapter", **FORMS[form])
    model = tiny_model()
    plain = text_logits(model)
    parameters = model.load_lora(tmp_path / "adapter")
    assert not any(parameter.requires_grad for parameter in parameters)
    torch.testing.assert_close(text_logits(model), expected, rtol=1e-5, atol=1e-5)
    assert (expected - plain).abs().max() > 0.1
    model.save_pretrained(tmp_path / "bound")
    again = BindLMForConditionalGeneration.from_pretrained(tmp_path / "bound")
    assert torch.equal(text_logits(again), text_logits(model))
    model.save_lora(tmp_path / "again")
    state, wanted = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "adapter"))
    assert set(state) == set(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())
    model.unload_lora()
    assert torch.equal(text_logits(model), plain)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_merged_adapter_is_what_peft_merges(kind: str, tmp_path: Path) -> None:
    saved_by_peft(tmp_path, kind)
    model = tiny_model(kind)
    model.load_lora(tmp_path)
    merged = model.merge()
    wanted = PeftModel.from_pretrained(tiny_language_model(kind), str(tmp_path)).merge_and_unload()
    with torch.no_grad():
        given, expected = merged(token_batch(2, 6)).logits, wanted(token_batch(2, 6)).logits
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_adapter_may_be_on_for_media_only(tmp_path: Path) -> None:
    saved_by_peft(tmp_path)
    model, always = tiny_model(), tiny_model()
    plain = text_logits(model)
    model.load_lora(tmp_path, scope="conditioned")
    always.load_lora(tmp_path)
    assert torch.equal(text_logits(model), plain)
    given = {"input_ids": token_batch(2, 6), "joint_embedding": unit_rows(2)}
    with torch.no_grad():
        assert torch.equal(model(**given).logits, always(**given).logits)


@pytest.mark.parametrize("lora", [LORA, {**LORA, "lora_dropout": 0.05, "use_rslora": True}])
def test_adapter_of_a_bound_model_loads_into_peft(lora: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(lora=lora, lora_scope="always")
    randomize_lora(model, 3)
    model.save_lora(tmp_path)
    peft = PeftModel.from_pretrained(tiny_language_model(), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(token_batch(2, 6)).logits, text_logits(model), rtol=1e-5, atol=1e-5)


def test_lora_of_a_release_goes_to_peft_and_back(tmp_path: Path) -> None:
    model = loaded("pandagpt", "delta", tmp_path)
    model.save_lora(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (8, 8, "LORA")
    ids = golden("pandagpt/inputs.safetensors")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.unload_lora()
        plain = deepcopy(model.language_model)  # the Vicuna it was made for
        assert not hasattr(plain, "peft_config")
        assert (plain(ids).logits - expected).abs().max() > 0.01
        peft = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(peft(ids).logits, expected, rtol=1e-5, atol=1e-5)
        model.load_lora(tmp_path / "adapter")
        assert torch.equal(model(input_ids=ids).logits, expected)


# -- what is refused, and changes nothing ----------------------------------------------------------------------------


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def changed_state(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)

    return apply


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (lambda folder: (folder / CONFIG_FILE).unlink(), "no adapter that PEFT saved"),
    "damaged settings": (lambda folder: (folder / CONFIG_FILE).write_text("{"), "no adapter that PEFT saved"),
    "another kind": (changed_config(peft_type="IA3"), "of type IA3; bindlm takes LORA"),
    "more than LoRA": (changed_config(use_dora=True, bias="all"), "more than plain LoRA .*use_dora=True"),
    "norms beside it": (changed_config(modules_to_save=["norm"]), "more than plain LoRA .*modules_to_save"),
    "a changed base": (changed_config(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    "other layers": (changed_config(target_modules=["nose"]), "made for another language model"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILES[0]).unlink(), "adapter_model.safetensors is missing"),
    "too few": (changed_state(lambda state: state.popitem()), "1 missing"),
    "too many": (changed_state(lambda state: state.update({"nose": torch.zeros(2)})), "1 not expected: nose"),
    "another rank": (changed_config(r=3), "of another shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was(case: str, tmp_path: Path) -> None:
    saved_by_peft(tmp_path)
    change, complaint = REFUSED[case]
    change(tmp_path)
    model = tiny_model()
    before = list(model.state_dict())
    plain = text_logits(model)
    with pytest.raises(CheckpointError, match=complaint):
        model.load_lora(tmp_path)
    assert list(model.state_dict()) == before
    assert model.config.lora is None
    assert torch.equal(text_logits(model), plain)


def test_second_adapter_and_no_adapter_are_refused(tmp_path: Path) -> None:
    saved_by_peft(tmp_path)
    model = tiny_model()
    with pytest.raises(ConfigError, match="no LoRA adapters to save"):
        model.save_lora(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.load_lora(tmp_path)
    expected = text_logits(model)
    with pytest.raises(ConfigError, match="has LoRA adapters already"):
        model.load_lora(tmp_path)
    assert torch.equal(text_logits(model), expected)
