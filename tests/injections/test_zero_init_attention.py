"""Zero-init attention on every decoder: what it adds, to which layers, and that it leaves no trace."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bindlm.errors import ConfigError
from bindlm.injections import (
    AdditiveInjection,
    ZeroInitAttention,
    ZeroInitAttentionConfig,
    build_injection,
    find_decoder_layers,
)

from ..conditioned import FAMILIES, NUM_HEADS, randomize, tiny_decoder
from ..tiny import HIDDEN, NUM_LAYERS, padded_batch, tiny_text_config, token_batch

FORMS: dict[str, dict[str, Any]] = {
    "value path": {"num_tokens": 1, "num_layers": NUM_LAYERS},
    "visual queries": {"num_tokens": 4, "num_layers": NUM_LAYERS - 1, "has_new_gate": True},
    "text only": {"num_tokens": 4, "num_layers": NUM_LAYERS - 1, "needs_condition": False},
}
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def injection_of(form: str = "value path", *, is_open: bool = True, **changes: Any) -> ZeroInitAttention:
    """An injection for the tiny decoders; open ones have random gates of size 1."""
    sizes = {"num_heads": NUM_HEADS, "hidden_dim": HIDDEN}
    injection = ZeroInitAttentionConfig(**{**sizes, **FORMS[form], **changes}).build()
    randomize(injection, 1.0)
    if not is_open:
        nn.init.zeros_(injection.gate)
    return injection


def random_condition(rows: int, tokens: int = 1, seed: int = 5) -> Tensor:
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def condition_for(injection: ZeroInitAttention, rows: int) -> Tensor | None:
    config = injection.config
    return random_condition(rows, config.num_tokens) if config.needs_condition else None


class WrittenOut(nn.Module):
    """Attention of a Llama layer with its prompt, from the equation: no hook, no keyword, no interface."""

    def __init__(self, attention: Any, prompt: Tensor, gate: Tensor) -> None:
        super().__init__()
        self.attention, self.prompt, self.gate = attention, prompt, gate

    def forward(self, hidden_states: Tensor, position_embeddings: Any, **kwargs: Any) -> Any:
        a, groups = self.attention, self.attention.num_key_value_groups

        def heads(values: Tensor) -> Tensor:
            split = values.unflatten(-1, (-1, a.head_dim)).transpose(1, 2)
            return split.repeat_interleave(NUM_HEADS // split.shape[1], dim=1)

        def rotated(values: Tensor) -> Tensor:
            cos, sin = (table[:, None] for table in position_embeddings)
            first, second = values.chunk(2, dim=-1)
            return values * cos + torch.cat([-second, first], dim=-1) * sin

        query, key = rotated(heads(a.q_proj(hidden_states))), rotated(heads(a.k_proj(hidden_states)))
        length = hidden_states.shape[1]
        causal = torch.full((length, length), -torch.inf).triu(1)
        text = (query @ key.mT * a.head_dim**-0.5 + causal).softmax(-1) @ heads(a.v_proj(hidden_states))
        scores = (query @ heads(a.k_proj(self.prompt)).mT * a.head_dim**-0.5).softmax(-1)
        read = self.gate[:, None, None].tanh() * (scores @ heads(a.v_proj(self.prompt)))
        assert groups == 2, "grouped queries are to be tested too"
        return a.o_proj((text + read).transpose(1, 2).flatten(-2)), None


@pytest.mark.parametrize("num_tokens", [1, 4])
@torch.no_grad()
def test_heads_add_what_the_equation_says(num_tokens: int) -> None:
    injection = injection_of(num_tokens=num_tokens, num_layers=2)
    model, written = tiny_decoder(), tiny_decoder()
    condition = random_condition(3, num_tokens)
    injection.attach_to(model)
    for index, layer in enumerate(written.model.layers[1:]):
        layer.self_attn = WrittenOut(
            layer.self_attn, injection.adapter_prompt[index] + condition, injection.gate[index]
        )
    ids = token_batch(3, 7)
    given = model(ids, condition=condition).logits
    torch.testing.assert_close(given, written(ids).logits, **TOLERANCE)
    assert (given - tiny_decoder()(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_zero_gate_leaves_logits_bit_identical(family: str, form: str) -> None:
    plain, model, injection = tiny_decoder(family), tiny_decoder(family), injection_of(form, is_open=False)
    injection.attach_to(model)
    for batch in ({"input_ids": token_batch(3, 11)}, padded_batch([4, 11, 7])):
        expected = plain(**batch).logits
        assert torch.equal(model(**batch, condition=condition_for(injection, 3)).logits, expected)
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_open_gate_changes_every_position_and_only_with_a_condition(family: str, form: str) -> None:
    model, injection = tiny_decoder(family), injection_of(form)
    ids = token_batch(2, 6)
    before = model(ids).logits
    injection.attach_to(model)
    after = model(ids, condition=condition_for(injection, 2)).logits
    assert ((after - before).abs().amax(dim=-1) > 1e-3).all()
    assert torch.equal(model(ids).logits, before) == injection.config.needs_condition
    injection.detach()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_detach_restores_the_model(family: str) -> None:
    model, injection = tiny_decoder(family), injection_of("visual queries")
    names = list(model.state_dict())
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    injection.attach_to(model)
    assert injection.is_attached
    assert list(model.state_dict()) == names
    assert set(injection.state_dict()) == {"adapter_prompt", "gate", "new_gate"}
    injection.detach()
    assert not injection.is_attached
    found = [module.config for module in model.modules() if hasattr(module, "config")]
    assert all(one is other for one, other in zip(found, configs, strict=True))
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in find_decoder_layers(model))


@torch.no_grad()
def test_all_zero_rows_have_no_condition() -> None:
    plain, ids = tiny_decoder()(token_batch(3, 6)).logits, token_batch(3, 6)
    for form in ("value path", "visual queries"):
        model, injection = tiny_decoder(), injection_of(form)
        injection.attach_to(model)
        condition = random_condition(3, injection.config.num_tokens)
        condition[1] = 0
        given = model(ids, condition=condition).logits
        torch.testing.assert_close(given[1], plain[1], rtol=0, atol=0)
        assert (given[0] - plain[0]).abs().max() > 0.1


@torch.no_grad()
def test_each_token_may_have_a_condition_of_its_own() -> None:
    """Packed samples: as each of them alone, and as the plain model where there is none."""
    model, injection = tiny_decoder(), injection_of()
    injection.attach_to(model)
    ids, condition = token_batch(2, 6), random_condition(2)
    ids[1] = ids[0]
    of_tokens = condition.expand(-1, 6, -1).clone()
    given = model(ids, condition=of_tokens).logits
    torch.testing.assert_close(given, model(ids, condition=condition).logits, **TOLERANCE)
    of_tokens[1, 3:] = 0
    changed = model(ids, condition=of_tokens).logits
    torch.testing.assert_close(changed[1, :3], given[1, :3], **TOLERANCE)
    assert (changed[1, 3:] - given[1, 3:]).abs().amin(dim=0).max() > 0.01


@torch.no_grad()
def test_prompts_of_the_top_layers_leave_lower_ones_alone() -> None:
    model, injection = tiny_decoder(), injection_of(num_layers=1)
    ids = token_batch(2, 6)
    before = model(ids, output_hidden_states=True).hidden_states
    injection.attach_to(model)
    after = model(ids, condition=random_condition(2), output_hidden_states=True).hidden_states
    assert all(torch.equal(one, other) for one, other in zip(before[:-1], after[:-1], strict=True))
    assert not torch.equal(before[-1], after[-1])


# flex attention is compiled first
@pytest.mark.parametrize("implementation", ["sdpa", pytest.param("flex_attention", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("form", ["value path", "visual queries"])
@torch.no_grad()
def test_attention_implementations_agree_with_eager(form: str, implementation: str) -> None:
    expected, model = tiny_decoder(attn_implementation="eager"), tiny_decoder(attn_implementation=implementation)
    ids = token_batch(2, 16)
    given = []
    for one in (expected, model):
        injection = injection_of(form)
        injection.attach_to(one)
        given.append(one(ids, condition=condition_for(injection, 2)).logits)
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(given[1], given[0], **TOLERANCE)


@torch.no_grad()
def test_implementation_may_change_under_an_attached_injection() -> None:
    """And one that reads its own name from the attention's configuration finds it there, as flash attention does."""
    model, injection = tiny_decoder(), injection_of("visual queries")
    injection.attach_to(model)
    ids, condition = token_batch(2, 6), random_condition(2)
    expected = model(ids, condition=condition).logits
    names = []

    def named(module: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(module.config._attn_implementation)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["named"] = named
    try:
        for implementation in ("eager", "named"):
            model.config._attn_implementation = implementation
            given = model(ids, condition=condition).logits
            torch.testing.assert_close(given, expected, **TOLERANCE)
    finally:
        model.config._attn_implementation = "sdpa"
        del ALL_ATTENTION_FUNCTIONS["named"]
    assert names == ["named"] * NUM_LAYERS


@torch.no_grad()
def test_two_models_of_one_configuration_share_nothing() -> None:
    model, injection = tiny_decoder(), injection_of()
    other = copy.deepcopy(model)
    assert other.config is not model.config
    other.config = model.config
    before = other(token_batch(2, 6)).logits
    injection.attach_to(model)
    assert torch.equal(other(token_batch(2, 6)).logits, before)


@torch.no_grad()
def test_copy_of_an_attached_model_is_on_its_own() -> None:
    whole = nn.ModuleDict({"model": tiny_decoder(), "injection": injection_of()})
    whole["injection"].attach_to(whole["model"])  # type: ignore[operator]
    made = copy.deepcopy(whole)
    ids, condition = token_batch(2, 6), random_condition(2)
    assert torch.equal(made["model"](ids, condition=condition).logits, whole["model"](ids, condition=condition).logits)
    made["injection"].gate.zero_()
    assert torch.equal(made["model"](ids, condition=condition).logits, tiny_decoder()(ids).logits)
    assert not torch.equal(whole["model"](ids, condition=condition).logits, tiny_decoder()(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_trained_in_fp32_on_a_half_precision_model(dtype: torch.dtype) -> None:
    for form in ("value path", "visual queries"):
        exact, half = tiny_decoder(), tiny_decoder().to(dtype)
        logits = []
        for model in (exact, half):
            injection = injection_of(form)
            injection.attach_to(model)
            logits.append(model(token_batch(2, 6), condition=random_condition(2)).logits)
        assert logits[1].dtype == dtype
        assert (logits[1].float() - logits[0]).abs().max() < 0.15  # 8 bits of bf16 on logits up to 5


def test_wrong_models_are_refused_and_left_alone() -> None:
    model = tiny_decoder()
    for changes, message in (
        ({"num_layers": 9}, "9 layers do not fit 3"),
        ({"num_heads": 2}, "do not fit layers of width 32 with 4 heads"),
        ({"hidden_dim": 16}, "Prompts of width 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            injection_of(**changes).attach_to(model)
    config = GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=2, vocab_size=64)
    with pytest.raises(ConfigError, match="no ModuleList `layers`"):
        injection_of().attach_to(AutoModelForCausalLM.from_config(config))
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)
    assert model.model.layers[0].self_attn.config is model.config


def test_one_injection_at_a_time() -> None:
    model, injection = tiny_decoder(), injection_of()
    injection.attach_to(model)
    with pytest.raises(ConfigError, match="attached already"):
        injection.attach_to(tiny_decoder())
    for other in (injection_of(), AdditiveInjection(NUM_LAYERS)):
        with pytest.raises(ConfigError, match="has an injection already"):
            other.attach_to(model)


@pytest.mark.parametrize(
    ("form", "shape"),
    [("value path", (2, HIDDEN)), ("value path", (2, 1, 9)), ("visual queries", (2, 3, HIDDEN))],
)
def test_wrong_conditions_are_refused(form: str, shape: tuple[int, ...]) -> None:
    model, injection = tiny_decoder(), injection_of(form)
    injection.attach_to(model)
    with pytest.raises(ConfigError, match=r"A condition must be \(B, 1"):
        model(token_batch(2, 6), condition=torch.zeros(shape))


def test_layer_that_keeps_keywords_to_itself_is_noticed() -> None:
    model, injection = tiny_decoder(), injection_of()
    injection.attach_to(model)
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def deaf(*args: Any, adapter_prompt: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    attention.forward = deaf
    with pytest.raises(ConfigError, match="does not hand keywords on to its attention"):
        model(token_batch(2, 6), condition=random_condition(2))


def test_precompute_gives_what_each_step_would_make() -> None:
    model = tiny_decoder()
    for form in FORMS:
        injection = injection_of(form)
        with pytest.raises(ConfigError, match="not attached"):
            injection.precompute(None)
        injection.attach_to(model)
        condition = condition_for(injection, 2)
        made = injection.precompute(condition, num_rows=2)
        assert made is not None
        parts = 1 if injection.config.num_tokens == 1 else 2
        assert made.shape == (2, injection.config.num_layers, parts, NUM_HEADS, injection.config.num_tokens, 8)
        with torch.no_grad():
            expected = model(token_batch(2, 6), condition=condition).logits
            assert torch.equal(model(token_batch(2, 6), condition=made).logits, expected)
        injection.detach()


def test_nothing_to_precompute_without_a_condition() -> None:
    model, injection = tiny_decoder(), injection_of()
    injection.attach_to(model)
    assert injection.precompute(None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 0}, "num_tokens must be a number from 1 up, got 0"),
        ({"num_layers": 1.5}, "num_layers must be a number from 1 up, got 1.5"),
        ({"gate_activation": "sigmoid"}, "gate_activation must be one of tanh, none, got 'sigmoid'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZeroInitAttentionConfig(**{"num_heads": 4, "hidden_dim": 32, "num_layers": 3, **settings})


def test_injections_are_built_by_name() -> None:
    config = tiny_text_config()
    assert isinstance(build_injection(config), AdditiveInjection)
    built = build_injection(config, "zero_init_attention", num_tokens=2)
    assert isinstance(built, ZeroInitAttention)
    assert (built.config.num_layers, built.config.num_heads, built.config.hidden_dim) == (NUM_LAYERS, 4, HIDDEN)
    assert build_injection(config, "prefix", placeholder_id=3).config.hidden_dim == HIDDEN
    with pytest.raises(ConfigError, match="no injection 'addtive'; known are additive, zero_init_attention, prefix"):
        build_injection(config, "addtive")
    with pytest.raises(ConfigError, match="do not fit the injection 'additive'"):
        build_injection(config, "additive", num_tokens=2)
