"""Gates that are multiplied once a call: the same numbers, less work in a step of one word."""

from unittest.mock import patch

import pytest
import torch

from bindlm.errors import ConfigError
from bindlm.injections import AdditiveInjection, PrefixConfig, find_decoder_layers

from ..tiny import HIDDEN, NUM_LAYERS, randomize_lora, tiny_language_model, tiny_model, token_batch, unit_rows


def opened(gate_bound: float | None) -> AdditiveInjection:
    """Gates of unlike size."""
    injection = AdditiveInjection(NUM_LAYERS, gate_bound)
    injection.gate.data = torch.linspace(-1.5, 1.0, NUM_LAYERS)
    return injection


@pytest.mark.parametrize("num_tokens", [1, 6], ids=["one condition a row", "one a token"])
@pytest.mark.parametrize("gate_bound", [None, 0.7])
@torch.no_grad()
def test_once_a_call_and_once_a_layer_are_bit_identical(gate_bound: float | None, num_tokens: int) -> None:
    language_model, ids = tiny_language_model(), token_batch(2, 6)
    condition = torch.randn(2, num_tokens, HIDDEN, generator=torch.Generator().manual_seed(1))
    injection = opened(gate_bound)
    injection.attach(find_decoder_layers(language_model))
    expected = language_model(ids, condition=condition).logits
    injection.detach()
    injection.attach_to(language_model)
    assert torch.equal(language_model(ids, condition=condition).logits, expected)


@torch.no_grad()
def test_one_condition_a_row_asks_no_layer_for_its_factor() -> None:
    language_model, injection = tiny_language_model(), opened(0.7)
    injection.attach_to(language_model)
    with patch.object(AdditiveInjection, "factor", side_effect=AssertionError):
        language_model(token_batch(2, 6), condition=torch.ones(2, 1, HIDDEN))


@pytest.mark.parametrize("gate_bound", [None, 0.7])
@torch.no_grad()
def test_made_once_an_answer_is_bit_identical(gate_bound: float | None) -> None:
    language_model, ids = tiny_language_model().bfloat16(), token_batch(2, 6)
    condition = torch.randn(2, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    injection = opened(gate_bound)
    injection.attach_to(language_model)
    made = injection.precompute(condition)
    assert made is not None
    assert made.shape == (2, NUM_LAYERS, 1, HIDDEN)
    assert injection.is_precomputed(made)
    assert not injection.is_precomputed(condition)
    assert torch.equal(language_model(ids, condition=made).logits, language_model(ids, condition=condition).logits)
    assert injection.precompute(None) is None


def test_an_answer_multiplies_the_gates_once_whatever_its_length_and_beams() -> None:
    model = tiny_model()
    options = {"joint_embedding": unit_rows(2), "max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 3}
    with patch.object(AdditiveInjection, "gated", autospec=True, side_effect=AdditiveInjection.gated) as gated:
        model.generate(token_batch(2, 6), **options)
    assert gated.call_count == 1


@torch.no_grad()
def test_layers_compiled_one_by_one_give_the_same_logits() -> None:
    """Dynamo only; a tuple of vectors would be a compilation for each layer."""
    language_model, injection, ids = tiny_language_model(), opened(0.7), token_batch(2, 6)
    injection.attach_to(language_model)
    made = injection.precompute(torch.randn(2, 1, HIDDEN, generator=torch.Generator().manual_seed(1)))
    expected = language_model(ids, condition=made).logits
    for layer in find_decoder_layers(language_model):
        layer.compile(backend="eager")
    assert injection.has_compiled_layers
    torch.testing.assert_close(language_model(ids, condition=made).logits, expected, rtol=0, atol=1e-5)


def test_training_holds_the_condition_once_not_once_a_layer() -> None:
    language_model, injection = tiny_language_model(), opened(None)
    injection.attach_to(language_model)
    with patch.object(AdditiveInjection, "gated", side_effect=AssertionError):
        language_model(token_batch(2, 6), condition=torch.ones(2, 1, HIDDEN)).logits.sum().backward()
    assert injection.gate.grad is not None
    with torch.no_grad(), patch.object(AdditiveInjection, "gated", side_effect=AssertionError):
        language_model(token_batch(2, 6), condition=torch.ones(2, 6, HIDDEN))


def test_decoder_with_a_prefix_is_refused_and_left_alone() -> None:
    language_model = tiny_language_model()
    prefix = PrefixConfig(placeholder_id=0, hidden_dim=HIDDEN).build()
    prefix.attach_to(language_model)
    with pytest.raises(ConfigError, match="has an injection already"):
        opened(None).attach_to(language_model)
    assert not any(layer._forward_pre_hooks for layer in find_decoder_layers(language_model))


@torch.no_grad()
def test_injection_goes_back_onto_a_merged_language_model() -> None:
    """For those who always ask about media: LoRA in the weights costs a step nothing."""
    model = tiny_model(lora={"r": 2, "target_modules": ["q_proj", "down_proj"]})
    randomize_lora(model, 3)
    ids, condition = token_batch(2, 6), model.condition_from(unit_rows(2))
    expected, blind = model(input_ids=ids, condition=condition).logits, model(input_ids=ids).logits
    language_model = model.merge()
    model.injection.attach_to(language_model)
    given = language_model(ids, condition=condition).logits
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert (given - blind).abs().max() > 0.1
