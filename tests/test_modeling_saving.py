"""What a saved folder holds, that it comes back as it was, and what is said where it does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

import bindlm
import bindlm.modeling
import bindlm.processing
from bindlm.configuration import BindLMConfig
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.processing import BindLMImageProcessor, BindLMProcessor

from .tiny import (
    DIM,
    NUM_LAYERS,
    picture,
    tiny_language_model,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    token_batch,
    unit_rows,
)

LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
CACHE: dict[str, Any] = {"num_entries": 20, "dim": DIM, "top_k": 4}
BRIDGE = {"bridge.input.weight"} | {
    f"bridge.blocks.{block}.{part}.weight" for block in range(3) for part in ("norm", "w1", "w2", "w3")
}
ADAPTERS = {
    f"language_model.model.layers.{layer}.self_attn.{linear}.lora_{side}.default.weight"
    for layer in range(NUM_LAYERS)
    for linear in LORA["target_modules"]
    for side in "AB"
}


def save_language_model(folder: Path, **changes: Any) -> str:
    """A plain decoder with its tokenizer in a folder, as `language_model` refers to one."""
    language_model = tiny_language_model(**changes)
    language_model.generation_config.max_new_tokens = 4
    language_model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_language_model(tmp_path_factory.mktemp("language_model"))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tower") / "tower.safetensors"
    save_file(tiny_model().encoder.image_tower.state_dict(), path)
    return str(path)


def tiny_folder(folder: Path) -> Path:
    """A folder with a tiny processor."""
    tiny_processor().save_pretrained(folder)
    return folder


def referring_model(reference: str, tower: str | None = None, **changes: Any) -> BindLMForConditionalGeneration:
    """A bound model whose language model, and image tower if given, are kept by reference."""
    if tower is not None:
        changes["encoder_weights"] = {"image_tower": tower}
    language_model = AutoModelForCausalLM.from_pretrained(reference).eval()
    return tiny_model(language_model=language_model, reference=reference, **changes)


def saved_keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as stored:
        return set(stored.keys())


def assert_same_tensors(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(given) == list(expected)
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype, name
        assert torch.equal(given[name], tensor), name


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora and cache": {"lora": LORA, "cache": CACHE},
    "cache with values": {"cache": {**CACHE, "has_own_values": True, "weighting": "cosine"}},
    "biased, normalised, bounded": {
        "bridge": {"hidden_dim": 24, "input_bias": True, "is_output_normalized": True},
        "injection": {"gate_bound": 0.7},
    },
}


# -- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_reference", [True, False])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_every_tensor_comes_back_as_it_was(
    tmp_path: Path, reference: str, tower: str, changes: dict[str, Any], by_reference: bool
) -> None:
    model = referring_model(reference, tower, **changes) if by_reference else tiny_model(**changes)
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert not loaded.training
    ids, joint = token_batch(3, 6), unit_rows(3)
    assert torch.equal(
        loaded(input_ids=ids, joint_embedding=joint).logits, model(input_ids=ids, joint_embedding=joint).logits
    )
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "mixtral"])
@torch.no_grad()
def test_other_decoders_come_back_too(tmp_path: Path, kind: str) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert type(loaded.language_model) is type(model.language_model)
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    ids, joint = token_batch(2, 6), unit_rows(2)
    logits = [each(input_ids=ids, joint_embedding=joint).logits for each in (loaded, model)]
    # not to the bit: tensors of a mapped file lie at odd addresses, by which Mixtral's experts round otherwise
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_saved_keys_are_the_trained_ones(tmp_path: Path, reference: str, tower: str) -> None:
    model = referring_model(reference, tower, lora=LORA, cache=CACHE)
    model.save_pretrained(tmp_path)
    own = {"injection.gate", "cache.keys", "encoder.mean", "encoder.projection"}
    assert saved_keys(tmp_path) == BRIDGE | ADAPTERS | own == set(model.saved_names())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_no_path_of_this_machine_is_saved_but_the_reference(tmp_path: Path, reference: str) -> None:
    model = referring_model(reference)
    assert model.language_model.config.name_or_path == reference
    model.processor = BindLMProcessor.from_pretrained(tiny_folder(tmp_path / "processor"))
    model.save_pretrained(tmp_path / "bound")
    texts = [path.read_text() for path in (tmp_path / "bound").glob("*.json")]
    assert sum(text.count(reference) for text in texts) == 1
    assert not any(str(tmp_path) in text for text in texts)
    assert json.loads((tmp_path / "bound" / "config.json").read_text())["language_model"] == reference


def test_saved_keys_are_all_where_nothing_is_referred_to(tmp_path: Path) -> None:
    model = tiny_model(lora=LORA)
    model.save_pretrained(tmp_path)
    assert saved_keys(tmp_path) == set(model.state_dict())


def test_tower_without_a_reference_is_saved_though_the_language_model_is_not(tmp_path: Path, reference: str) -> None:
    referring_model(reference).save_pretrained(tmp_path)
    keys = saved_keys(tmp_path)
    assert not any(key.startswith("language_model.") for key in keys)
    assert "encoder.image_tower._fc.weight" in keys
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_tensors(loaded.encoder.state_dict(), referring_model(reference).encoder.state_dict())


@torch.no_grad()
def test_tied_head_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    language_model = tiny_language_model(tie_word_embeddings=True)
    model = tiny_model(language_model=language_model)
    model.save_pretrained(tmp_path)
    assert set(model.state_dict()) - saved_keys(tmp_path) == {"language_model.lm_head.weight"}
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert_same_tensors(loaded.state_dict(), model.state_dict())


def test_tied_head_of_a_referenced_model_stays_tied(tmp_path: Path) -> None:
    reference = save_language_model(tmp_path / "lm", tie_word_embeddings=True)
    referring_model(reference).save_pretrained(tmp_path / "bound")
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path / "bound")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_weights_given_are_saved_in_place_of_the_models_own(tmp_path: Path) -> None:
    """As a distributed trainer hands over what it gathered."""
    model = tiny_model()
    gathered = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(tmp_path, state_dict=gathered)
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, gathered[name]) for name, tensor in stored.items())
    model.save_pretrained(tmp_path / "other process", is_main_process=False)
    assert not (tmp_path / "other process").exists()


def test_processor_is_saved_with_the_model_and_loaded_by_load(tmp_path: Path) -> None:
    model = tiny_model(gate=1.0)
    model.processor = tiny_processor()
    model.save_pretrained(tmp_path)
    loaded = bindlm.load(tmp_path)
    assert loaded.name == str(tmp_path)
    assert loaded.ask("Hi", image=picture(1), max_new_tokens=6) == model.ask("Hi", image=picture(1), max_new_tokens=6)


def test_generation_settings_come_back(tmp_path: Path, reference: str) -> None:
    for model in (tiny_model(), referring_model(reference)):
        model.generation_config.repetition_penalty = 1.3
        model.generation_config.eos_token_id = [2, 7]
        model.save_pretrained(tmp_path)
        loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
        assert loaded.generation_config.repetition_penalty == 1.3
        assert loaded.generation_config.eos_token_id == [2, 7]
        assert loaded.language_model.generation_config is loaded.generation_config


def test_trained_bits_train_no_more_until_a_stage_says_so(tmp_path: Path) -> None:
    model = tiny_model(lora=LORA)
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded._lora.parameters())
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())


# -- dtypes --------------------------------------------------------------------------------------------------------


def assert_dtypes(model: BindLMForConditionalGeneration, dtype: torch.dtype) -> None:
    for name, tensor in model.state_dict().items():
        is_kept = name.startswith(("encoder.", "cache."))
        expected = torch.int64 if name.endswith("num_batches_tracked") else torch.float32 if is_kept else dtype
        assert tensor.dtype == expected, name
    rotary = model.language_model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32, "rounded frequencies turn late positions the wrong way"


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
@pytest.mark.parametrize("by_reference", [True, False])
@torch.no_grad()
def test_bf16_is_the_stored_model_rounded_once(
    tmp_path: Path, reference: str, tower: str, by_reference: bool, dtype: torch.dtype | str
) -> None:
    changes = {"lora": LORA, "cache": CACHE}
    model = referring_model(reference, tower, **changes) if by_reference else tiny_model(**changes)
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert_dtypes(loaded, torch.bfloat16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(loaded.state_dict()[name].dtype)), name
    plain = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.bfloat16)
    ids = token_batch(2, 40)
    assert torch.equal(loaded(input_ids=ids).logits, plain(ids).logits)
    assert loaded(input_ids=ids, joint_embedding=unit_rows(2)).logits.dtype == torch.bfloat16
    assert loaded.generate(ids, joint_embedding=unit_rows(2), max_new_tokens=3).shape == (2, 43)


@pytest.mark.parametrize("by_reference", [True, False])
def test_fp32_is_the_default_whatever_is_stored(tmp_path: Path, reference: str, by_reference: bool) -> None:
    """The mini ships bf16 weights; computed with, they are fp32."""
    model = referring_model(reference, lora=LORA, cache=CACHE) if by_reference else tiny_model(lora=LORA, cache=CACHE)
    half = {
        name: tensor.bfloat16() if tensor.numel() > 40 and tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(tmp_path, state_dict=half)
    assert load_file(tmp_path / "model.safetensors")["cache.keys"].dtype == torch.bfloat16
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert_dtypes(loaded, torch.float32)
    for name in model.saved_names():
        assert torch.equal(loaded.state_dict()[name], half[name].to(loaded.state_dict()[name].dtype)), name


@pytest.mark.parametrize("by_reference", [True, False])
def test_auto_is_what_the_language_model_is_stored_in(tmp_path: Path, by_reference: bool) -> None:
    language_model = tiny_language_model().bfloat16()
    changes: dict[str, Any] = {}
    if by_reference:
        language_model.save_pretrained(tmp_path / "lm")
        tiny_tokenizer().save_pretrained(tmp_path / "lm")
        changes["reference"] = str(tmp_path / "lm")
    tiny_model(language_model=language_model, **changes).save_pretrained(tmp_path / "bound")
    assert_dtypes(BindLMForConditionalGeneration.from_pretrained(tmp_path / "bound", dtype="auto"), torch.bfloat16)
    assert_dtypes(BindLMForConditionalGeneration.from_pretrained(tmp_path / "bound"), torch.float32)


@pytest.mark.parametrize("by_reference", [True, False])
@pytest.mark.parametrize("dtype", ["float99", torch.int8, "nn"])
def test_impossible_dtype_is_refused(tmp_path: Path, reference: str, by_reference: bool, dtype: Any) -> None:
    (referring_model(reference) if by_reference else tiny_model()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no floating-point type of torch"):
        BindLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)


@pytest.mark.parametrize("by_reference", [True, False])
def test_attention_can_be_chosen(tmp_path: Path, reference: str, by_reference: bool) -> None:
    (referring_model(reference) if by_reference else tiny_model()).save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.language_model.config._attn_implementation == "eager"
    default = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert default.language_model.config._attn_implementation == "sdpa"


# -- transformers' Auto classes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto_class", [AutoModelForImageTextToText, AutoModelForMultimodalLM])
def test_auto_classes_know_the_folder(tmp_path: Path, reference: str, auto_class: Any) -> None:
    model = referring_model(reference)
    model.processor = tiny_processor()
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is BindLMForConditionalGeneration
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert type(AutoConfig.from_pretrained(tmp_path)) is BindLMConfig
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is BindLMProcessor
    images = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(images) is BindLMImageProcessor
    assert images.to_dict() == model.processor.image_processor.to_dict()
    inputs = processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "image": picture()}]}])
    assert loaded.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, reference: str) -> Path:
    model = referring_model(reference, lora=LORA)
    model.processor = tiny_processor()
    model.save_pretrained(tmp_path / "bound")
    return tmp_path / "bound"


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a saved file."""
    state: dict[str, Any] = {**load_file(folder / "model.safetensors"), **changes}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"injection.gate": None}, "1 missing: injection.gate"),
        ({"bridge.blocks.0.w1.weight": None, "encoder.mean": None}, "2 missing: "),
        ({"bridge.blocks.9.w1.weight": torch.zeros(2)}, r"1 not expected: bridge.blocks.9.w1.weight"),
        ({"language_model.lm_head.weight": torch.zeros(2)}, "1 not expected: language_model.lm_head.weight"),
        ({"injection.gate": torch.zeros(5)}, r"injection.gate has \(5,\), expected \(3,\)"),
        ({next(iter(sorted(ADAPTERS))): torch.zeros(3, 32)}, r"has \(3, 32\), expected \(2, 32\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    edit_weights(folder, **changes)
    with pytest.raises(CheckpointError, match=complaint):
        BindLMForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_truncated_file_is_refused(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="truncated, damaged or no safetensors"):
        BindLMForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"no readable config.json|{name} is missing"):
        bindlm.load(folder)


def test_language_models_own_folder_is_not_taken_for_a_bound_model(reference: str) -> None:
    with pytest.raises(CheckpointError, match="a model of type 'llama', not one saved by bindlm"):
        bindlm.load(reference)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"architectures": []}'])
def test_damaged_configuration_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="no readable config.json"):
        bindlm.load(folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": 64}, "hidden_size 64"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2"),
        ({"vocab_size": 300}, "vocab_size 300"),
    ],
)
def test_language_model_of_another_size_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, int], field: str
) -> None:
    other = save_language_model(tmp_path / "other", **changes)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "language_model": other}))
    with pytest.raises(CheckpointError, match=f"other has {field}, but this model was trained on one with"):
        BindLMForConditionalGeneration.from_pretrained(folder)


def test_language_model_that_is_gone_is_refused(tmp_path: Path) -> None:
    reference = save_language_model(tmp_path / "lm")
    referring_model(reference).save_pretrained(tmp_path / "bound")
    shutil.rmtree(reference)
    with pytest.raises(CheckpointError):
        BindLMForConditionalGeneration.from_pretrained(tmp_path / "bound", local_files_only=True)


@pytest.mark.parametrize(
    ("weights", "error", "complaint"),
    [
        ({"image_tower": "{tower}"}, None, ""),
        ({"image_tower": "{tower}.part"}, CheckpointError, "truncated, damaged"),
        ({"audio_tower": "{tower}"}, ConfigError, "names 'audio_tower', which the encoder lacks"),
    ],
)
def test_tower_that_does_not_fit_is_refused(
    tmp_path: Path, tower: str, weights: dict[str, str], error: type[Exception] | None, complaint: str
) -> None:
    path = tmp_path / "tower.safetensors"
    shutil.copy(tower, path)
    (tmp_path / "tower.safetensors.part.safetensors").write_bytes(path.read_bytes()[:1000])
    named = {name: str(path) if value == "{tower}" else f"{path}.part.safetensors" for name, value in weights.items()}
    tiny_model(encoder_weights=named).save_pretrained(tmp_path / "bound")
    if error is None:
        BindLMForConditionalGeneration.from_pretrained(tmp_path / "bound")
        return
    with pytest.raises(error, match=complaint):
        BindLMForConditionalGeneration.from_pretrained(tmp_path / "bound")


def test_notice_is_shown_when_the_weights_are_loaded(tmp_path: Path) -> None:
    tiny_model(notice="For research only.").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="For research only."):
        BindLMForConditionalGeneration.from_pretrained(tmp_path)


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "mixtral"])
def test_configuration_survives_json(tmp_path: Path, kind: str) -> None:
    config = tiny_model(kind, lora=LORA, cache=CACHE, notice="Mind the gap.").config
    again = BindLMConfig.from_dict(json.loads(config.to_json_string()))
    assert type(again.text_config) is type(config.text_config)
    assert again.to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    stored = BindLMConfig.from_pretrained(tmp_path)
    for field in ("encoder", "encoder_weights", "bridge", "injection", "cache", "lora", "notice", "language_model"):
        assert getattr(stored, field) == getattr(config, field)
    assert stored.text_config.to_dict() == config.text_config.to_dict()
    assert stored.get_text_config().hidden_size == 32


def test_unknown_language_model_type_is_refused() -> None:
    settings = tiny_model().config.to_dict()
    settings["text_config"]["model_type"] = "lama"
    with pytest.raises(ConfigError, match="names model_type 'lama', which transformers lacks"):
        BindLMConfig.from_dict(settings)


def test_configurations_share_no_dictionaries() -> None:
    settings: dict[str, Any] = {"family": "mini", "size": "lite0"}
    one, other = BindLMConfig(encoder=settings), BindLMConfig(encoder=settings)
    one.encoder["size"] = "lite2"
    assert settings["size"] == other.encoder["size"] == "lite0"


@pytest.mark.parametrize("text_config", ["llama", 3])
def test_text_config_of_another_kind_is_refused(text_config: Any) -> None:
    with pytest.raises(ConfigError, match="text_config must be a configuration of transformers or a dictionary"):
        BindLMConfig(text_config=text_config)


def test_images_are_the_same_after_a_round_trip(tmp_path: Path) -> None:
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    image = picture(4)
    assert isinstance(image, Image.Image)
    again = BindLMProcessor.from_pretrained(tmp_path)
    assert torch.equal(again.image_processor(image)["pixel_values"], processor.image_processor(image)["pixel_values"])
