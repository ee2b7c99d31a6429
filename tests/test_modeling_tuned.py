"""Norms and biases that were trained are the model's own: saved with it, and back in place when it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bindlm.configuration import BindLMConfig
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.stage_recipe import TuningConfig
from bindlm.tuning.stages import prepare_stage

from .tiny import NUM_LAYERS, tiny_config, tiny_language_model, tiny_model, tiny_tokenizer, token_batch, unit_rows

KINDS = ["llama", "qwen3", "gemma3"]
BIASES = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of plain decoders, by kind."""
    folders = {}
    for kind in KINDS:
        folders[kind] = str(tmp_path_factory.mktemp(kind))
        tiny_language_model(kind).save_pretrained(folders[kind])
        tiny_tokenizer().save_pretrained(folders[kind])
    return folders


def tuned_model(reference: str | None = None, kind: str = "llama", **tuning: Any) -> BindLMForConditionalGeneration:
    """As the second stage leaves it: LoRA, norms and biases are not what they were."""
    model = tiny_model(kind, language_model=tiny_language_model(kind), reference=reference)
    prepare_stage(model, "instruct", TuningConfig(lora=tuning.pop("lora", {"r": 2}), **tuning))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in [*model.lora_parameters(), *model.tuned_parameters()]:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def saved_keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as stored:
        return set(stored.keys())


def logits_of(model: BindLMForConditionalGeneration) -> tuple[Tensor, Tensor]:
    """With media and without."""
    with torch.no_grad():
        return (
            model(input_ids=token_batch(2, 6), joint_embedding=unit_rows(2)).logits,
            model(input_ids=token_batch(2, 6)).logits,
        )


@pytest.mark.parametrize("scope", ["always", "conditioned"])
@pytest.mark.parametrize("by_reference", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_tuned_model_comes_back_as_it_was(
    tmp_path: Path, references: dict[str, str], kind: str, by_reference: bool, scope: str
) -> None:
    model = tuned_model(references[kind] if by_reference else None, kind, lora_scope=scope)
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.tuned == {"norms": True, "biases": BIASES}
    assert loaded.config.lora_scope == scope
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    for given, wanted in zip(logits_of(loaded), logits_of(model), strict=True):
        assert torch.equal(given, wanted)
    plain = tiny_language_model(kind)(token_batch(2, 6)).logits
    assert (logits_of(loaded)[1] - plain).abs().max() > 0.1, "norms and biases are there for text alone too"
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_own_file_of_a_referring_model_holds_norms_biases_and_adapters_only(
    tmp_path: Path, references: dict[str, str]
) -> None:
    model = tuned_model(references["llama"])
    model.save_pretrained(tmp_path)
    keys = {key for key in saved_keys(tmp_path) if key.startswith("language_model.")}
    layer = "language_model.model.layers.{}."
    expected = {"language_model.model.norm.weight"}
    for index in range(NUM_LAYERS):
        prefix = layer.format(index)
        expected |= {f"{prefix}{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
        for linear in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            place = f"{prefix}{'self_attn' if linear[0] in 'qkvo' else 'mlp'}.{linear}"
            expected |= {f"{place}.lora_{side}.default.weight" for side in "AB"}
            expected |= {f"{place}.base_layer.bias"} if linear in BIASES else set()
    assert keys == expected


@pytest.mark.parametrize("tuning", [{"norms": False}, {"biases": ()}, {"biases": ("v_proj",), "norms": False}])
def test_only_what_was_tuned_is_saved(tmp_path: Path, references: dict[str, str], tuning: dict[str, Any]) -> None:
    model = tuned_model(references["llama"], **tuning)
    model.save_pretrained(tmp_path)
    keys = saved_keys(tmp_path)
    assert any(key.endswith("layernorm.weight") for key in keys) == tuning.get("norms", True)
    count = len(tuning.get("biases", BIASES)) * NUM_LAYERS
    assert sum(key.endswith(".bias") and key.startswith("language_model.") for key in keys) == count
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded)[0], logits_of(model)[0])


def test_norms_and_biases_without_lora_come_back(tmp_path: Path, references: dict[str, str]) -> None:
    model = tiny_model(language_model=tiny_language_model(), reference=references["llama"])
    model.add_tuned(norms=True, biases=["k_proj"])
    with torch.no_grad():
        for parameter in model.tuned_parameters():
            parameter += 0.3
    model.save_pretrained(tmp_path)
    assert sum(key.endswith("k_proj.bias") for key in saved_keys(tmp_path)) == NUM_LAYERS
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded)[1], logits_of(model)[1])
    assert (logits_of(loaded)[1] - tiny_language_model()(token_batch(2, 6)).logits).abs().max() > 0.1


def test_rounded_base_loses_nothing_that_was_trained(tmp_path: Path, references: dict[str, str]) -> None:
    """The next stage loads in fp32: what the reference holds, and every trained number as it was."""
    model = tuned_model(references["llama"], frozen_dtype="bfloat16")
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    for name in model.saved_names():
        assert loaded[name].dtype == model.state_dict()[name].dtype != torch.bfloat16
        assert torch.equal(loaded[name], model.state_dict()[name]), name
    name = "language_model.model.layers.0.mlp.up_proj.base_layer.weight"
    assert torch.equal(loaded[name], tiny_language_model().model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "auto"])
def test_tuned_model_loads_in_bfloat16(tmp_path: Path, references: dict[str, str], dtype: Any) -> None:
    tuned_model(references["llama"]).save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    expected = torch.float32 if dtype == "auto" else dtype
    assert {p.dtype for p in [*loaded.tuned_parameters(), *loaded.lora_parameters()]} == {expected}
    assert logits_of(loaded)[0].dtype == expected


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_reference", [True, False])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("language_model.model.norm.weight"), "1 missing: language_model.model.norm.weight"),
        (lambda state: state.pop(next(key for key in state if key.endswith("q_proj.base_layer.bias"))), "1 missing"),
        (lambda state: state.update({"language_model.model.norm.bias": torch.zeros(32)}), "1 not expected"),
        (lambda state: state.update({"language_model.model.norm.weight": torch.zeros(31)}), "1 of another shape"),
    ],
)
def test_file_that_does_not_fit_is_refused(
    tmp_path: Path, references: dict[str, str], by_reference: bool, change: Any, complaint: str
) -> None:
    tuned_model(references["llama"] if by_reference else None).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=complaint):
        BindLMForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tuned": {"norm": True}}, "BindLMConfig.tuned must be"),
        ({"tuned": {"norms": 1}}, "BindLMConfig.tuned must be"),
        ({"tuned": {"biases": "q_proj"}}, "BindLMConfig.tuned must be"),
        ({"tuned": {"biases": [3]}}, "BindLMConfig.tuned must be"),
        ({"lora_scope": "never"}, 'lora_scope must be "conditioned" or "always", got \'never\''),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        tiny_config(**changes)


def test_biases_on_layers_that_are_not_there_leave_the_decoder_alone() -> None:
    language_model = tiny_language_model()
    keys = list(language_model.state_dict())
    lora = {"r": 2, "target_modules": ["q_proj"]}
    for changes in ({"tuned": {"biases": ["nose"]}}, {"tuned": {"biases": ["q_proj"]}, "lora": {"rank": 2}}):
        with pytest.raises(ConfigError, match="no linear layers nose|LoRA settings"):
            BindLMForConditionalGeneration(
                tiny_config(language_model.config, **{"lora": lora, **changes}), language_model
            )
        assert list(language_model.state_dict()) == keys
        assert not any(module._forward_pre_hooks for module in language_model.modules())
    model = tiny_model(language_model=language_model)
    with pytest.raises(ConfigError, match="no linear layers nose"):
        model.add_tuned(norms=True, biases=["q_proj", "nose"])
    assert model.config.tuned is None
    assert model.tuned_parameters() == []
    assert list(language_model.state_dict()) == keys


# -- what was saved before there was any of this ---------------------------------------------------------------------


def test_folder_without_these_settings_loads_as_before(tmp_path: Path, references: dict[str, str]) -> None:
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    model = tiny_model(language_model=tiny_language_model(), reference=references["llama"], lora=lora)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    assert settings.pop("lora_scope") == "conditioned"
    assert settings.pop("tuned") is None
    path.write_text(json.dumps(settings))
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.lora_scope == "conditioned"
    assert loaded.config.tuned is None
    for given, wanted in zip(logits_of(loaded), logits_of(model), strict=True):
        assert torch.equal(given, wanted)
    assert torch.equal(logits_of(loaded)[1], tiny_language_model()(token_batch(2, 6)).logits)


def test_nothing_tuned_is_none() -> None:
    assert BindLMConfig(tuned={"norms": False, "biases": []}).tuned is None
    assert BindLMConfig(tuned={"norms": True}).tuned == {"norms": True, "biases": []}
    assert BindLMConfig(tuned={"biases": ("q_proj",)}).tuned == {"norms": False, "biases": ["q_proj"]}
