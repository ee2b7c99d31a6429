"""Norms and linears are found by kind, and biases of zeros are put where there were none."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoXConfig, OlmoConfig, Qwen2Config, StableLmConfig

from bindlm.errors import ConfigError
from bindlm.tuning.bias_norm import add_biases, find_biases, find_linears, find_norms

from ..tiny import DECODERS, NUM_LAYERS, tiny_language_model, token_batch

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RELEASED = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def with_lora(language_model: nn.Module) -> nn.Module:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"])
    inject_adapter_in_model(config, language_model, adapter_name="default")
    return language_model


# -- norms -----------------------------------------------------------------------------------------------------------

INSIDE = {
    "llama": ["input_layernorm", "post_attention_layernorm"],
    "mixtral": ["input_layernorm", "post_attention_layernorm"],
    "qwen3": ["self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"],
    "gemma3": [
        "self_attn.q_norm",
        "self_attn.k_norm",
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ],
}


@pytest.mark.parametrize("kind", DECODERS)
def test_norms_are_all_there_are(kind: str) -> None:
    norms = find_norms(tiny_language_model(kind))
    expected = {f"model.layers.{layer}.{name}" for layer in range(NUM_LAYERS) for name in INSIDE[kind]}
    assert set(norms) == expected | {"model.norm"}
    assert all([name for name, _ in norm.named_parameters()] == ["weight"] for norm in norms.values())
    assert list(find_norms(with_lora(tiny_language_model("llama")))) == list(find_norms(tiny_language_model("llama")))


def test_layer_norms_with_a_bias_are_norms_and_norms_without_weights_have_nothing_to_train() -> None:
    stable = AutoModelForCausalLM.from_config(StableLmConfig(**SMALL, num_key_value_heads=4))
    norms = find_norms(stable)
    assert {type(norm) for norm in norms.values()} == {nn.LayerNorm}
    assert len(norms) == 2 * 2 + 1
    assert {name for norm in norms.values() for name, _ in norm.named_parameters()} == {"weight", "bias"}
    assert len(find_norms(AutoModelForCausalLM.from_config(GPTNeoXConfig(**SMALL)))) == 2 * 2 + 1
    assert find_norms(AutoModelForCausalLM.from_config(OlmoConfig(**SMALL))) == {}


def test_what_only_sounds_like_a_norm_is_none() -> None:
    language_model = tiny_language_model()
    language_model.model.layers[0].mlp.norm_bias = nn.Linear(4, 4)
    language_model.model.layers[0].mlp.normalizer = nn.Embedding(4, 4)
    assert list(find_norms(language_model)) == list(find_norms(tiny_language_model()))


# -- linears ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_linears_are_those_of_decoder_layers_and_not_the_head(is_wrapped: bool) -> None:
    language_model = tiny_language_model()
    if is_wrapped:
        with_lora(language_model)
    linears = find_linears(language_model)
    assert len(linears) == NUM_LAYERS * len(LINEARS)
    assert {name.rpartition(".")[2] for name in linears} == set(LINEARS)
    assert {type(linear) for linear in linears.values()} == {nn.Linear}
    assert language_model.lm_head not in linears.values()
    assert list(linears) == list(find_linears(tiny_language_model()))


# -- biases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", ["none", "before", "after"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@torch.no_grad()
def test_biases_of_zeros_change_nothing_and_others_do(kind: str, lora: str) -> None:
    language_model, ids = tiny_language_model(kind), token_batch(2, 6)
    expected = language_model(ids).logits
    if lora == "before":
        with_lora(language_model)
    biases = add_biases(language_model, RELEASED)
    if lora == "after":
        with_lora(language_model)
    assert len(biases) == NUM_LAYERS * len(RELEASED)
    assert torch.equal(language_model(ids).logits, expected)
    names = [name for name, _ in language_model.named_parameters() if name.endswith(".bias")]
    assert {part for name in names for part in name.split(".") if part in LINEARS} == set(RELEASED)
    for bias in biases:
        bias.fill_(0.5)
        assert not torch.allclose(language_model(ids).logits, expected, atol=1e-4)
        bias.zero_()
    assert torch.equal(language_model(ids).logits, expected)


@torch.no_grad()
def test_bias_is_what_the_layer_adds() -> None:
    language_model = tiny_language_model()
    layer, hidden = language_model.model.layers[1].mlp.down_proj, torch.randn(2, 3, 48)
    before = layer(hidden)
    add_biases(language_model, ["down_proj"])
    layer.bias.copy_(torch.arange(32.0))
    torch.testing.assert_close(layer(hidden), before + torch.arange(32.0), rtol=0, atol=1e-5)


def test_biases_that_are_there_are_kept() -> None:
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(Qwen2Config(**SMALL, num_key_value_heads=2))
    own = language_model.model.layers[0].self_attn.q_proj.bias
    with torch.no_grad():
        own.fill_(0.25)
    count = len(find_biases(language_model))
    assert count == 2 * 3, "Qwen2 has them on queries, keys and values"
    found = add_biases(language_model, ["q_proj", "o_proj"])
    assert language_model.model.layers[0].self_attn.q_proj.bias is own
    assert own.detach().unique().tolist() == [0.25]
    assert len(found) == 2 * 2
    assert len(find_biases(language_model)) == count + 2
    assert [id(bias) for bias in add_biases(language_model, ["q_proj", "o_proj"])] == [id(bias) for bias in found]


def test_biases_have_the_dtype_of_their_layer() -> None:
    language_model = tiny_language_model().bfloat16()
    assert {bias.dtype for bias in add_biases(language_model, ["q_proj"])} == {torch.bfloat16}
    assert add_biases(language_model, []) == []


def test_unknown_layers_are_refused_before_anything_is_touched() -> None:
    language_model = tiny_language_model()
    keys = list(language_model.state_dict())
    with pytest.raises(
        ConfigError, match="LlamaForCausalLM has no linear layers lm_head, c_attn .* it has q_proj, k_pro"
    ):
        add_biases(language_model, ["q_proj", "lm_head", "c_attn"])
    assert list(language_model.state_dict()) == keys
    with pytest.raises(ConfigError, match="no linear layers down_proj"):
        add_biases(tiny_language_model("mixtral"), RELEASED[-1:])  # its experts are no linear layers
