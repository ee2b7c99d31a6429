"""A language model in 8 or 4 bits under every injection: what holds in full precision holds here too.

Without bitsandbytes (the extra `quantized`) the whole file is reported as skipped.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, GPTNeoXConfig, PreTrainedModel

from bindlm.checkpoints import load_language_model
from bindlm.checkpoints.quantization import build_quantized, quantization_of
from bindlm.errors import CheckpointError, ConfigError
from bindlm.modeling import BindLMForConditionalGeneration
from bindlm.training.stage_recipe import TuningConfig
from bindlm.tuning.stages import prepare_stage

from .conditioned import step_by_step
from .tiny import (
    DECODERS,
    HIDDEN,
    NUM_LAYERS,
    VOCAB_SIZE,
    padded_batch,
    randomize_,
    tiny_language_model,
    tiny_model,
    tiny_tokenizer,
    token_batch,
    unit_rows,
)

pytest.importorskip("bitsandbytes")

FAMILIES = (*DECODERS, "gpt_neox")
WORDS = ("int8", "int4")
PLACE = VOCAB_SIZE - 1
QUERIES = {"kind": "visual_query", "embed_dim": 8, "num_blocks": 1, "num_heads": 2, "num_queries": 3}
KINDS: dict[str, dict[str, Any]] = {
    "additive": {"injection": {}},
    "value path": {"injection": {"kind": "zero_init_attention"}},
    "prompts and queries": {
        "injection": {"kind": "zero_init_attention", "num_layers": 2, "num_tokens": 3},
        "bridge": QUERIES,
    },
    "prefix": {"injection": {"kind": "prefix", "placeholder_id": PLACE}, "bridge": {"kind": "linear"}},
}
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
# What rows, steps and padding change is the order of sums. int8 rounds activations to 127 steps, and a value that is
# next to the border between two of them falls to the other side: seen up to 0.07 on logits of 5. A row that takes its
# neighbour's condition is off by more than 0.3.
CLOSE = {"int8": {"rtol": 0.0, "atol": 0.12}, "int4": {"rtol": 0.0, "atol": 2e-5}, None: {"rtol": 0.0, "atol": 2e-5}}
CASES = [
    pytest.param((family, kind, word), marks=pytest.mark.exhaustive if word == "int8" and family != "llama" else ())
    for family in FAMILIES
    for kind in KINDS
    for word in WORDS
]
CASES += [pytest.param(("gpt_neox", kind, None)) for kind in ("additive", "prefix")]  # the rest is tested elsewhere


def plain(family: str) -> PreTrainedModel:
    if family != "gpt_neox":
        return tiny_language_model(family)
    settings: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": NUM_LAYERS}
    settings |= {"vocab_size": VOCAB_SIZE, "num_attention_heads": 4, "initializer_range": 0.2, "pad_token_id": 0}
    config = GPTNeoXConfig(bos_token_id=1, eos_token_id=2, max_position_embeddings=256, **settings)
    torch.manual_seed(0)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config).eval()


def quantized(family: str, word: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = plain(family)
    return model if word is None else build_quantized(model.config, model.state_dict(), word, dtype=dtype)


def bound(family: str, kind: str, word: Any, **changes: Any) -> BindLMForConditionalGeneration:
    """A bound model of random weights, gates open."""
    model = tiny_model(gate=None, language_model=quantized(family, word), **{**KINDS[kind], **changes})
    generator = torch.Generator().manual_seed(9)
    for parameter in model.injection.parameters():
        randomize_(parameter, 0.7, generator)
    return model


@pytest.fixture(scope="module", params=CASES, ids=lambda case: " ".join(map(str, case)))
def case(request: pytest.FixtureRequest) -> tuple[BindLMForConditionalGeneration, str, str | None]:
    family, kind, word = request.param
    return bound(family, kind, word), kind, word


def text_for(kind: str, lengths: list[int]) -> dict[str, Tensor]:
    """Rows padded on the left, a placeholder in each where the injection has a place in the text."""
    texts = padded_batch(lengths)
    texts["input_ids"] = texts["input_ids"].clamp(max=PLACE - 1)
    if kind == "prefix":
        texts["input_ids"][:, -3] = PLACE
    return texts


def random_condition(kind: str) -> Tensor:
    tokens = 3 if kind == "prompts and queries" else 1
    return torch.randn(2, tokens, HIDDEN, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_shut_gates_are_the_quantised_model_bit_for_bit(case: Any) -> None:
    model, kind, _ = case
    ids = token_batch(2, 7).clamp(max=PLACE - 1)
    given = {} if kind == "prefix" else {"joint_embedding": unit_rows(2)}  # which has no gate, only a place
    before = {name: parameter.clone() for name, parameter in model.injection.named_parameters()}
    for parameter in model.injection.gate_parameters():
        parameter.zero_()
    logits = model(input_ids=ids, **given).logits
    model.injection.load_state_dict(before)
    model.injection.detach()
    expected = model.language_model(ids).logits
    model.injection.attach_to(model.language_model)
    assert torch.equal(logits, expected)


@torch.no_grad()
def test_word_by_word_and_padded_is_all_at_once_and_alone(case: Any) -> None:
    model, kind, word = case
    texts, condition = text_for(kind, [5, 9]), random_condition(kind)
    ids, mask = texts["input_ids"], texts["attention_mask"]
    full = model(**texts, condition=condition).logits
    alone = model(input_ids=ids[:1, -5:], condition=condition[:1]).logits
    torch.testing.assert_close(full[:1, -5:], alone, **CLOSE[word])
    other = model(input_ids=ids[:1, -5:], condition=condition[1:]).logits
    assert (alone - other).abs().max() > 0.3, "the condition must do something for this to say anything"
    steps = step_by_step(model, ids, mask, condition, (7, 8, 9))
    is_token = mask.bool()
    torch.testing.assert_close(steps[is_token], full[is_token], **CLOSE[word])


@torch.no_grad()
def test_beams_keep_their_rows_condition_with_a_cache_and_without(case: Any) -> None:
    model, kind, word = case
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": 2, "do_sample": False}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    texts, joint = text_for(kind, [6, 6]), unit_rows(2)
    made = [model.generate(**texts, joint_embedding=joint, use_cache=cached, **options) for cached in (True, False)]
    # what a beam of int8 reads next may differ by a rounding, and its text with it; the first step may not
    steps = 1 if word == "int8" else 3
    for one, two in list(zip(made[0].scores, made[1].scores, strict=True))[:steps]:
        torch.testing.assert_close(one, two, **CLOSE[word])
    if word != "int8":
        assert torch.equal(made[0].sequences, made[1].sequences)
    for row in range(2):
        alone = model.generate(
            input_ids=texts["input_ids"][row : row + 1], joint_embedding=joint[row : row + 1], **options
        )
        torch.testing.assert_close(made[0].scores[0][2 * row : 2 * row + 2], alone.scores[0], **CLOSE[word])


def test_gradients_reach_what_is_trained_and_point_where_they_did(case: Any) -> None:
    model, kind, word = case
    texts = text_for(kind, [7, 7])
    model.train().requires_grad_(False)
    trained = [*model.bridge.parameters(), *model.injection.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
        parameter.grad = None
    model(**texts, labels=texts["input_ids"], joint_embedding=unit_rows(2)).loss.backward()
    assert all(parameter.grad is None for parameter in model.language_model.parameters())
    assert all(bool(parameter.grad.isfinite().all()) and bool(parameter.grad.ne(0).any()) for parameter in trained)
    model.eval()
    if word == "int8":
        family = model.config.text_config.model_type
        exact = bound({"gemma3_text": "gemma3"}.get(family, family), kind, None).train()
        exact(**texts, labels=texts["input_ids"], joint_embedding=unit_rows(2)).loss.backward()
        expected = [*exact.bridge.parameters(), *exact.injection.parameters()]
        flat = [torch.cat([each.grad.flatten() for each in given]) for given in (trained, expected)]
        assert nn.functional.cosine_similarity(*flat, dim=0) > 0.9  # seen: 0.97 and more


@pytest.mark.parametrize("word", WORDS)
def test_adapters_train_on_a_quantised_base_and_two_steps_move_all(word: str) -> None:
    """LoRA by PEFT, biases and norms in fp32 on a base in bf16, set up by a stage and trained under autocast."""
    model = tiny_model(language_model=quantized("llama", word), reference="elsewhere").train()
    prepare_stage(model, "instruct", TuningConfig(frozen_dtype="bfloat16", biases=("o_proj", "down_proj")))
    assert model.language_model.lm_head.weight.dtype == torch.bfloat16
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    ids = token_batch(2, 6)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, joint_embedding=unit_rows(2)).loss
        loss.backward()
        optimizer.step()
    assert len(trained) == (2 * 7 + 2 + 2) * NUM_LAYERS + 1  # LoRA on seven linears, biases, norms
    assert {p.dtype for p in trained.values()} == {torch.float32}, "rounded on the way"
    assert [name for name, p in trained.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("word", [*WORDS, None])
@torch.no_grad()
def test_trained_bias_is_added_once(word: str | None) -> None:
    """And a layer that fails leaves its bias where it was."""
    model = tiny_model(language_model=quantized("llama", word))
    linear = model.language_model.model.layers[0].self_attn.q_proj
    values = torch.randn(2, 3, HIDDEN)
    before = linear(values)
    model.add_tuned(biases=["q_proj"])
    model.add_tuned(biases=["q_proj"])
    bias = model.tuned_parameters()[0]
    bias.copy_(torch.randn(bias.shape))
    torch.testing.assert_close(linear(values), before + bias, rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError):
        linear(torch.randn(2, 3, 5))
    assert linear.bias is bias


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_frozen_half_and_trained_fp32_answer_without_autocast(kind: str, word: str) -> None:
    model = tiny_model(language_model=quantized("llama", word, torch.bfloat16), gate=None, lora=LORA, **KINDS[kind])
    assert {p.dtype for p in [*model.bridge.parameters(), *model.injection.parameters()]} <= {torch.float32}
    texts = text_for(kind, [6, 6])
    output = model.generate(**texts, joint_embedding=unit_rows(2), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert output.shape == (2, 8)
    assert model(**texts, joint_embedding=unit_rows(2)).logits.dtype == torch.bfloat16


# --- saved and loaded ---


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("language_model")
    tiny_language_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("word", ["int4", pytest.param("int8", marks=pytest.mark.exhaustive)])
@torch.no_grad()
def test_folder_keeps_what_was_trained_a_reference_and_the_settings(reference: str, word: str, tmp_path: Path) -> None:
    language_model, _ = load_language_model(reference, dtype="float32", quantization=word)
    model = tiny_model(language_model=language_model, reference=reference, lora=LORA)
    model.config.quantization = word
    ids, joint = token_batch(2, 6), unit_rows(2)
    logits = model(input_ids=ids, joint_embedding=joint).logits
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 2**26
    again = BindLMForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.quantization == word
    assert quantization_of(again.language_model) is not None
    assert not any("quant" in name or "SCB" in name for name in again.saved_names())
    assert torch.equal(again(input_ids=ids, joint_embedding=joint).logits, logits)
    full = BindLMForConditionalGeneration.from_pretrained(tmp_path, quantization=False)
    assert full.config.quantization is None
    assert quantization_of(full.language_model) is None


@pytest.mark.parametrize("word", ["int8", pytest.param("int4", marks=pytest.mark.exhaustive)])
@torch.no_grad()
def test_language_model_in_the_models_own_file_is_quantised_from_there(word: str, tmp_path: Path) -> None:
    """As converted checkpoints have it; adapters, norms and biases come from the file too, in a dtype of their own."""
    model = tiny_model(gate=0.3, lora=LORA, tuned={"norms": True, "biases": ["o_proj", "down_proj"]})
    for parameter in model.tuned_parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    loaded = BindLMForConditionalGeneration.from_pretrained(
        tmp_path, quantization=word, dtype="bfloat16", trained_dtype="float32"
    )
    for name, parameter in loaded.named_parameters():
        if name.startswith(("bridge.", "injection.")) or "lora_" in name:
            assert torch.equal(parameter, model.get_parameter(name)), name
    for one, other in zip(loaded.tuned_parameters(), model.tuned_parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())
    ids, joint = token_batch(2, 6), unit_rows(2)
    exact = BindLMForConditionalGeneration.from_pretrained(tmp_path, quantization=word)
    difference = (
        exact(input_ids=ids, joint_embedding=joint).logits - model(input_ids=ids, joint_embedding=joint).logits
    )
    assert 0 < difference.abs().mean() < {"int8": 0.1, "int4": 1.5}[word]
    with pytest.raises(ConfigError, match="quantization=False to save it"):
        loaded.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


@torch.no_grad()
def test_language_model_that_is_stored_quantised_is_taken_as_it_is(tmp_path: Path) -> None:
    stored = quantized("llama", "int4")
    stored.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = load_language_model(tmp_path, dtype="float32")
    assert torch.equal(model(token_batch(1, 5)).logits, stored(token_batch(1, 5)).logits)
    assert tiny_model(language_model=model).config.quantization == quantization_of(stored)


@pytest.mark.parametrize("form", ["object", "dictionary"])
def test_any_quantisation_config_of_transformers_is_passed_through(reference: str, form: str) -> None:
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", llm_int8_skip_modules=["v_proj"])
    model, _ = load_language_model(
        reference, dtype="float32", quantization=asked if form == "object" else asked.to_dict()
    )
    attention = model.model.layers[0].self_attn
    assert type(attention.q_proj).__name__ == "Linear4bit"
    assert type(attention.v_proj) is nn.Linear
    assert attention.q_proj.weight.quant_type == "fp4"


# --- refused ---


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("int3", "must be int8, int4 or a quantisation config of transformers, got 'int3'"),
        (4, "must be int8, int4 or a quantisation config of transformers, got 4"),
        ({"bits": 4}, "no quantisation config of transformers: give quant_method"),
        ({"quant_method": "abacus"}, "no quantisation config of transformers"),
    ],
)
def test_what_is_no_quantisation_is_refused(reference: str, asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_language_model(reference, quantization=asked)


@pytest.mark.parametrize("asked", ["int4", {"quant_method": "hqq", "nbits": 4}])
def test_missing_package_is_named_with_what_to_install(
    reference: str, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bindlm.checkpoints import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    install = r"pip install 'bindlm\[quantized\]'" if asked == "int4" else "pip install 'hqq'"
    with pytest.raises(ConfigError, match=install):
        load_language_model(reference, quantization=asked)


def test_merging_into_rounded_weights_is_refused_and_changes_nothing() -> None:
    model = tiny_model(language_model=quantized("llama", "int8"), lora=LORA)
    before = list(model.state_dict())
    with pytest.raises(ConfigError, match="quantization=False, merge"):
        model.merge()
    assert list(model.state_dict()) == before
    assert model.injection.is_attached


def test_weights_that_do_not_fit_are_refused() -> None:
    model = plain("llama")
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1." not in name}
    with pytest.raises(CheckpointError, match=r"weights of the language model are missing, such as model\.layers\.1"):
        build_quantized(model.config, state, "int8", dtype=torch.float32)
