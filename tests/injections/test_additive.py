"""ImageBind-LLM (arXiv 2309.03905), Eq. (2), on every decoder: what it adds, where, and that it leaves no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config

from bindlm.errors import ConfigError
from bindlm.injections import AdditiveInjection, find_decoder_layers

from ..tiny import (
    DECODERS,
    HIDDEN,
    NUM_LAYERS,
    padded_batch,
    tiny_language_model,
    tiny_model,
    tiny_text_config,
    token_batch,
    unit_rows,
)

GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
}


class Shifted(nn.Module):
    """A decoder layer behind an addition: Eq. (2) without a hook and without a keyword."""

    def __init__(self, layer: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.shift = shift

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        return self.layer(hidden_states + self.shift, **kwargs)


def random_condition(rows: int, seed: int = 5) -> Tensor:
    return torch.randn(rows, 1, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_zero_gate_leaves_logits_bit_identical(kind: str) -> None:
    plain, bound = tiny_language_model(kind), tiny_model(kind, gate=None)
    for batch in ({"input_ids": token_batch(3, 11)}, padded_batch([4, 11, 7])):
        expected = plain(**batch).logits
        assert torch.equal(bound(**batch, joint_embedding=unit_rows(3)).logits, expected)
        assert torch.equal(bound(**batch).logits, expected)


@pytest.mark.parametrize("settings", GENERATION.values(), ids=GENERATION)
@pytest.mark.parametrize("kind", DECODERS)
def test_zero_gate_generates_what_the_plain_model_does(kind: str, settings: dict[str, Any]) -> None:
    plain, bound = tiny_language_model(kind), tiny_model(kind, gate=None)
    options = {**padded_batch([4, 9]), **settings, "max_new_tokens": 7}
    torch.manual_seed(1)
    expected = plain.generate(**options)
    torch.manual_seed(1)
    assert torch.equal(bound.generate(**options, joint_embedding=unit_rows(2)), expected)


@pytest.mark.parametrize("gate_bound", [None, 0.4])
@torch.no_grad()
def test_logits_are_those_of_equation_2_run_by_hand(gate_bound: float | None) -> None:
    bound = tiny_model("llama", gate=0.8, injection={"gate_bound": gate_bound})
    plain = tiny_language_model("llama")
    ids, condition = token_batch(2, 7), random_condition(2)

    decoder = plain.model
    hidden = decoder.embed_tokens(ids)
    positions = torch.arange(7)[None]
    causal = torch.full((7, 7), -torch.inf).triu(1)[None, None]
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    for gate, layer in zip(bound.injection.gate.tolist(), decoder.layers, strict=True):
        factor = gate if gate_bound is None else gate_bound * float(torch.tanh(torch.tensor(gate / gate_bound)))
        hidden = layer(hidden + condition * factor, attention_mask=causal, position_embeddings=rotary)
    expected = plain.lm_head(decoder.norm(hidden))

    logits = bound(input_ids=ids, condition=condition).logits
    # logits reach 4; another kernel of attention leaves 2e-6
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert (logits - plain(ids).logits).abs().max() > 0.3, "the condition must do something for this to say anything"


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_every_layer_adds_its_gate_times_the_condition(kind: str) -> None:
    bound, plain = tiny_model(kind), tiny_language_model(kind)
    batch, condition = padded_batch([5, 12, 9]), random_condition(3)
    logits = bound(**batch, condition=condition).logits
    before = plain(**batch).logits
    layers = find_decoder_layers(plain)
    for index, gate in enumerate(bound.injection.gate.tolist()):
        layers[index] = Shifted(layers[index], condition * gate)
    torch.testing.assert_close(logits, plain(**batch).logits, rtol=1e-6, atol=1e-6)
    assert (logits - before).abs().max() > 0.1


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_rows_without_condition_are_the_plain_model(kind: str) -> None:
    bound, plain = tiny_model(kind), tiny_language_model(kind)
    batch, condition = padded_batch([9, 4, 9, 7]), random_condition(4)
    condition[[0, 2]] = 0
    logits, expected = bound(**batch, condition=condition).logits, plain(**batch).logits
    # Mixtral sorts tokens by expert, so what a row is multiplied with depends on its neighbours' routes
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if kind == "mixtral" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(logits[[0, 2]], expected[[0, 2]], **tolerance)
    assert (logits[[1, 3]] - expected[[1, 3]]).abs().amax(dim=(1, 2)).min() > 0.1


@torch.no_grad()
def test_detach_gives_back_the_very_same_model() -> None:
    language_model = tiny_language_model()
    keys = list(language_model.state_dict())
    expected = language_model(token_batch(2, 6)).logits
    bound = tiny_model(language_model=language_model)
    bound.injection.detach()
    assert bound.language_model is language_model
    assert list(language_model.state_dict()) == keys
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in language_model.modules())
    assert torch.equal(language_model(token_batch(2, 6)).logits, expected)
    with pytest.raises(ConfigError, match="not attached"):
        bound(input_ids=token_batch(2, 6), joint_embedding=unit_rows(2))
    bound.injection.attach(find_decoder_layers(language_model))
    assert not torch.equal(bound(input_ids=token_batch(2, 6), joint_embedding=unit_rows(2)).logits, expected)


@torch.no_grad()
def test_two_models_share_no_state() -> None:
    first, second = tiny_model(seed=0), tiny_model(seed=20)
    ids, joint = token_batch(2, 6), unit_rows(2)
    alone = [model(input_ids=ids, joint_embedding=joint).logits for model in (first, second)]
    plain = [model(input_ids=ids).logits for model in (first, second)]
    for _ in range(2):  # in turns, conditioned and not
        assert torch.equal(first(input_ids=ids, joint_embedding=joint).logits, alone[0])
        assert torch.equal(second(input_ids=ids).logits, plain[1])
        assert torch.equal(second(input_ids=ids, joint_embedding=joint).logits, alone[1])
        assert torch.equal(first(input_ids=ids).logits, plain[0])


@torch.no_grad()
def test_one_language_model_cannot_be_bound_twice() -> None:
    """The first injection would swallow the condition of the second, which would then answer blind."""
    bound = tiny_model()
    expected = bound(input_ids=token_batch(1, 5), joint_embedding=unit_rows(1)).logits
    with pytest.raises(ConfigError, match="has an injection already"):
        tiny_model(language_model=bound.language_model)
    assert torch.equal(bound(input_ids=token_batch(1, 5), joint_embedding=unit_rows(1)).logits, expected)


def test_attaching_twice_or_to_other_layers_touches_nothing() -> None:
    layers = find_decoder_layers(tiny_language_model())
    with pytest.raises(ConfigError, match="4 gates cannot serve 3 decoder layers"):
        AdditiveInjection(NUM_LAYERS + 1).attach(layers)
    assert not any(layer._forward_pre_hooks for layer in layers)
    injection = AdditiveInjection(NUM_LAYERS)
    injection.attach(layers)
    with pytest.raises(ConfigError, match="attached already"):
        injection.attach(layers)
    assert [len(layer._forward_pre_hooks) for layer in layers] == [1] * NUM_LAYERS


def test_decoder_of_another_shape_is_refused() -> None:
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=20))
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no ModuleList `layers` of 2 decoder layers"):
        find_decoder_layers(gpt2)


def test_bounded_gate_has_the_papers_slope_at_zero_and_saturates() -> None:
    injection = AdditiveInjection(3, gate_bound=0.5)
    injection.gate.data = torch.tensor([0.0, 1e-4, 1e3])
    assert injection.factor(0).item() == 0.0
    assert injection.factor(1).item() == pytest.approx(1e-4, rel=1e-6)
    assert injection.factor(2).item() == 0.5
    injection.factor(0).backward()
    assert injection.gate.grad is not None
    assert injection.gate.grad.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("gate_bound", [0.0, -1.0, float("nan")])
def test_impossible_bound_is_refused(gate_bound: float) -> None:
    with pytest.raises(ConfigError, match="gate_bound must be above 0"):
        AdditiveInjection(2, gate_bound=gate_bound)


@torch.no_grad()
def test_condition_keeps_the_language_models_dtype() -> None:
    """fp32 bridge and gates before a bf16 decoder, as training keeps them."""
    bound = tiny_model(language_model=tiny_language_model().bfloat16())
    logits = bound(input_ids=token_batch(2, 6), joint_embedding=unit_rows(2)).logits
    assert logits.dtype == torch.bfloat16
    exact = tiny_model()(input_ids=token_batch(2, 6), joint_embedding=unit_rows(2)).logits
    assert (logits.float() - exact).abs().max() < 0.1  # bf16 has 8 bits; the condition moves logits by up to 0.6


@torch.no_grad()
def test_decoder_called_without_condition_is_untouched() -> None:
    bound, plain = tiny_model(), tiny_language_model()
    assert torch.equal(bound.language_model(token_batch(2, 8)).logits, plain(token_batch(2, 8)).logits)


def test_hooks_read_layers_called_by_keyword() -> None:
    injection = AdditiveInjection(1)
    injection.gate.data.fill_(2.0)
    config = tiny_text_config(num_hidden_layers=1)
    layer = AutoModelForCausalLM.from_config(config).model.layers[0]
    rotary = (torch.ones(1, 4, 8), torch.zeros(1, 4, 8))
    hidden, condition = torch.randn(1, 4, HIDDEN), random_condition(1)
    expected = layer(hidden + 2 * condition, position_embeddings=rotary)
    injection.attach([layer])
    assert torch.equal(layer(hidden_states=hidden, condition=condition, position_embeddings=rotary), expected)
    assert torch.equal(layer(hidden, condition=condition, position_embeddings=rotary), expected)
