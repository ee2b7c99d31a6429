"""Zero-init attention against the numbers of the released ImageBind-LLM, LLaMA-Adapter V1 and V2."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from bindlm.checkpoints.adapter_layout import bind_network_state, visual_query_state, zero_init_state
from bindlm.checkpoints.llama_layout import convert_llama_tensors
from bindlm.injections import ZeroInitAttention, ZeroInitAttentionConfig

from ..golden import golden
from ..released import (
    NUM_HEADS,
    TOLERANCE,
    assert_same_gradients,
    expected_greedy,
    golden_config,
    greedy,
    released_bind_network,
    released_llama,
    released_loss,
    released_visual_query,
    tune,
    tuned_names,
)

IMAGEBIND_CASES = {
    "image_only": "adapter",
    "mix_image_audio": "adapter",
    "mix_audio_text_point": "adapter",
    "pretrain_image_only": "adapter_pretrain",
    "legacy_bridge_image_only": "adapter_legacy_bridge",
    **{f"knn{number}": "adapter" for number in range(6)},
}
V1_FORMS = {"train_form": "tanh", "infer_form_raw_gate": "none"}
V2_CASES = {"bias": "adapter_bias", "lora_bias": "adapter_lora_bias", "pretrain": "adapter_pretrain"}


def injected(
    folder: str, adapter: dict[str, Tensor], *, attention: str = "sdpa", **settings: Any
) -> tuple[LlamaForCausalLM, ZeroInitAttention]:
    """The base model of a golden under an adapter's biases, LoRA and prompts."""
    model = released_llama(folder, attn_implementation=attention)
    tune(model, adapter)
    sizes = {"num_heads": NUM_HEADS, "hidden_dim": 64, "num_layers": 4, **settings}
    injection = ZeroInitAttentionConfig(**sizes).build()
    injection.load_state_dict(zero_init_state(adapter, 4, injection.config.num_layers))
    injection.attach_to(model)
    return model, injection


def imagebind_adapter(name: str) -> dict[str, Tensor]:
    """An adapter of the ImageBind-LLM golden; the legacy file has a bridge only, and goes with the finetuned rest."""
    adapter = golden(f"imagebind_llm/{name}.safetensors")
    if name != "adapter_legacy_bridge":
        return adapter
    whole = golden("imagebind_llm/adapter.safetensors")
    return {**{key: value for key, value in whole.items() if not key.startswith("image_bind_")}, **adapter}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("case", "name"), IMAGEBIND_CASES.items())
@torch.no_grad()
def test_imagebind_llm_logits_and_loss(case: str, name: str, attention: str) -> None:
    adapter = imagebind_adapter(name)
    inputs, outputs = golden("imagebind_llm/inputs.safetensors"), golden("imagebind_llm/outputs.safetensors")
    model, _ = injected("imagebind_llm", adapter, attention=attention)
    condition = released_bind_network(adapter)(outputs[f"{case}.visual_feats"])
    torch.testing.assert_close(condition, outputs[f"{case}.bind_out"], **TOLERANCE)
    logits = model(inputs["tokens"], condition=condition).logits
    torch.testing.assert_close(logits, outputs[f"{case}.logits"], **TOLERANCE)
    torch.testing.assert_close(released_loss(logits, inputs["labels"])[None], outputs[f"{case}.loss"], **TOLERANCE)


@torch.no_grad()
def test_imagebind_llm_hidden_states_of_every_layer() -> None:
    inputs, outputs = golden("imagebind_llm/inputs.safetensors"), golden("imagebind_llm/outputs.safetensors")
    model, _ = injected("imagebind_llm", imagebind_adapter("adapter"))
    model.model.norm = nn.Identity()  # transformers puts the last norm into the last hidden state
    condition = outputs["image_only.bind_out"]
    given = model(inputs["tokens"], condition=condition, output_hidden_states=True).hidden_states[1:]
    torch.testing.assert_close(torch.stack(given), outputs["image_only.hidden"], **TOLERANCE)


@pytest.mark.parametrize(("case", "name"), IMAGEBIND_CASES.items())
def test_imagebind_llm_greedy_tokens(case: str, name: str) -> None:
    """As one batch of prompts of unlike lengths, padded on the left, with keys and values made once."""
    adapter = imagebind_adapter(name)
    inputs, outputs = golden("imagebind_llm/inputs.safetensors"), golden("imagebind_llm/outputs.safetensors")
    model, injection = injected("imagebind_llm", adapter)
    expected = expected_greedy(outputs[f"{case}.greedy_ids"])
    condition = outputs[f"{case}.bind_out"]
    for given in (condition, injection.precompute(condition)):
        assert greedy(model, inputs["prompts"], 12, given) == expected


@torch.no_grad()
def test_imagebind_llm_at_gate_zero_is_the_tuned_llama() -> None:
    inputs, outputs = golden("imagebind_llm/inputs.safetensors"), golden("imagebind_llm/outputs.safetensors")
    model, injection = injected("imagebind_llm", imagebind_adapter("adapter"))
    injection.gate.zero_()
    logits = model(inputs["tokens"], condition=outputs["image_only.bind_out"]).logits
    torch.testing.assert_close(logits, outputs["gate_zero.logits"], **TOLERANCE)
    injection.detach()
    assert torch.equal(model(inputs["tokens"]).logits, logits)


@torch.no_grad()
def test_base_in_transformers_layout_is_the_base_in_metas() -> None:
    inputs, outputs = golden("imagebind_llm/inputs.safetensors"), golden("imagebind_llm/outputs.safetensors")
    logits = released_llama("imagebind_llm")(inputs["tokens"]).logits
    torch.testing.assert_close(logits, outputs["plain_llama.logits"], **TOLERANCE)


def test_imagebind_llm_gradients_of_the_finetune_phase() -> None:
    inputs = golden("imagebind_llm/inputs.safetensors")
    adapter = imagebind_adapter("adapter")
    model, _ = injected("imagebind_llm", adapter)
    embedding = golden("imagebind_llm/outputs.safetensors")["image_only.visual_feats"]
    condition = released_bind_network(adapter)(embedding).detach()
    trained = tuned_names(model)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    released_loss(model(inputs["tokens"], condition=condition).logits, inputs["labels"]).backward()
    stored = golden("imagebind_llm/grads_finetune.safetensors")
    expected = dict(convert_llama_tensors(stored, num_heads=NUM_HEADS))
    assert len(expected) == len(stored)
    assert_same_gradients({name: parameter.grad for name, parameter in trained.items()}, expected)


def test_imagebind_llm_gradients_of_the_pretrain_phase() -> None:
    inputs = golden("imagebind_llm/inputs.safetensors")
    adapter = imagebind_adapter("adapter_pretrain")
    model, injection = injected("imagebind_llm", adapter)
    model.requires_grad_(False)
    bridge = released_bind_network(adapter)
    condition = bridge(golden("imagebind_llm/outputs.safetensors")["pretrain_image_only.visual_feats"])
    released_loss(model(inputs["tokens"], condition=condition).logits, inputs["labels"]).backward()
    stored = golden("imagebind_llm/grads_pretrain.safetensors")
    assert_same_gradients(gradients(injection), zero_init_state(stored, 4, 4))
    assert_same_gradients(gradients(bridge), bind_network_state(stored))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def v1_injected(adapter: dict[str, Tensor], form: str) -> tuple[LlamaForCausalLM, ZeroInitAttention]:
    sizes = golden_config("llama_adapter_v1")["adapter"]
    return injected(
        "llama_adapter_v1",
        adapter,
        num_layers=sizes["adapter_layer"],
        num_tokens=sizes["adapter_len"],
        needs_condition=False,
        gate_activation=form,
    )


@pytest.mark.parametrize(("case", "form"), V1_FORMS.items())
@torch.no_grad()
def test_llama_adapter_v1_logits(case: str, form: str) -> None:
    inputs, outputs = golden("llama_adapter_v1/inputs.safetensors"), golden("llama_adapter_v1/outputs.safetensors")
    model, _ = v1_injected(golden("llama_adapter_v1/adapter.safetensors"), form)
    logits = model(inputs["tokens"]).logits
    torch.testing.assert_close(logits, outputs[f"{case}.logits"], **TOLERANCE)
    if f"{case}.loss" in outputs:
        loss = released_loss(logits, inputs["labels"])
        torch.testing.assert_close(loss[None], outputs[f"{case}.loss"], **TOLERANCE)


@torch.no_grad()
def test_llama_adapter_v1_with_gates_and_prompts_rounded_to_half() -> None:
    """The released training code rounds tanh(gate); the form without tanh takes that number as it is."""
    inputs, outputs = golden("llama_adapter_v1/inputs.safetensors"), golden("llama_adapter_v1/outputs.safetensors")
    model, injection = v1_injected(golden("llama_adapter_v1/adapter.safetensors"), "none")
    injection.gate.copy_(injection.gate.tanh().half())
    injection.adapter_prompt.copy_(injection.adapter_prompt.half())
    logits = model(inputs["tokens"]).logits
    torch.testing.assert_close(logits, outputs["train_form_half_rounded.logits"], **TOLERANCE)


@pytest.mark.parametrize("case", ["infer_form_raw_gate", "infer_form_tanh_gate", "gate_zero"])
@torch.no_grad()
def test_llama_adapter_v1_greedy_tokens(case: str) -> None:
    inputs, outputs = golden("llama_adapter_v1/inputs.safetensors"), golden("llama_adapter_v1/outputs.safetensors")
    form = "none" if case == "infer_form_raw_gate" else "tanh"
    model, injection = v1_injected(golden("llama_adapter_v1/adapter.safetensors"), form)
    if case == "gate_zero":
        injection.gate.zero_()
    expected = expected_greedy(outputs[f"{case}.greedy_ids"])
    assert greedy(model, inputs["prompts"], 12) == expected
    assert greedy(model, inputs["prompts"], 12, injection.precompute(None, num_rows=3)) == expected


def test_llama_adapter_v1_gradients() -> None:
    inputs = golden("llama_adapter_v1/inputs.safetensors")
    model, injection = v1_injected(golden("llama_adapter_v1/adapter.safetensors"), "tanh")
    released_loss(model.requires_grad_(False)(inputs["tokens"]).logits, inputs["labels"]).backward()
    stored = golden("llama_adapter_v1/grads.safetensors")
    assert_same_gradients(gradients(injection), zero_init_state(stored, 4, injection.config.num_layers))


@torch.no_grad()
def test_llama_adapter_v1_chat_scales_biases_and_norms_merge_into_the_base() -> None:
    """`W (x * s) + b` with s over the inputs is a plain linear layer of weight `W * s`."""
    inputs, outputs = golden("llama_adapter_v1/inputs.safetensors"), golden("llama_adapter_v1/outputs.safetensors")
    adapter = golden("llama_adapter_v1/adapter_chat_scale_bias_norm.safetensors")
    state = dict(convert_llama_tensors(adapter, num_heads=NUM_HEADS))
    assert len(state) == len(adapter)
    base = released_llama("llama_adapter_v1")
    model = LlamaForCausalLM(
        base.config.__class__(**{**base.config.to_dict(), "attention_bias": True, "mlp_bias": True})
    )
    weights = base.state_dict()
    for name, value in state.items():
        owner, _, kind = name.rpartition(".")
        weights[name if kind != "scale" else f"{owner}.weight"] = (
            weights[f"{owner}.weight"] * value if kind == "scale" else value
        )
    model.load_state_dict(weights)
    logits = model.eval()(inputs["tokens"]).logits
    torch.testing.assert_close(logits, outputs["chat_scale_bias_norm.logits"], **TOLERANCE)
    loss = released_loss(logits, inputs["labels"])[None]
    torch.testing.assert_close(loss, outputs["chat_scale_bias_norm.loss"], **TOLERANCE)


def v2_injected(adapter: dict[str, Tensor]) -> tuple[LlamaForCausalLM, ZeroInitAttention]:
    sizes = golden_config("llama_adapter_v2")["adapter"]
    has_new_gate = any(name.endswith("new_gate") for name in adapter)
    return injected(
        "llama_adapter_v2",
        adapter,
        num_layers=sizes["query_layer"],
        num_tokens=sizes["query_len"],
        has_new_gate=has_new_gate,
    )


@pytest.mark.parametrize(("case", "name"), V2_CASES.items())
@torch.no_grad()
def test_llama_adapter_v2_logits_and_loss(case: str, name: str) -> None:
    adapter = golden(f"llama_adapter_v2/{name}.safetensors")
    inputs, outputs = golden("llama_adapter_v2/inputs.safetensors"), golden("llama_adapter_v2/outputs.safetensors")
    model, _ = v2_injected(adapter)
    condition = released_visual_query(adapter)(inputs["clip_feats"])
    torch.testing.assert_close(condition, outputs[f"{case}.visual_query"], **TOLERANCE)
    logits = model(inputs["tokens"], condition=condition).logits
    torch.testing.assert_close(logits, outputs[f"{case}.logits"], **TOLERANCE)
    torch.testing.assert_close(released_loss(logits, inputs["labels"])[None], outputs[f"{case}.loss"], **TOLERANCE)


@pytest.mark.parametrize(("case", "name"), V2_CASES.items())
@torch.no_grad()
def test_llama_adapter_v2_greedy_tokens(case: str, name: str) -> None:
    inputs, outputs = golden("llama_adapter_v2/inputs.safetensors"), golden("llama_adapter_v2/outputs.safetensors")
    model, injection = v2_injected(golden(f"llama_adapter_v2/{name}.safetensors"))
    condition = outputs[f"{case}.visual_query"]
    for given in (condition, injection.precompute(condition)):
        assert greedy(model, inputs["prompts"], 12, given) == expected_greedy(outputs[f"{case}.greedy_ids"])


def test_llama_adapter_v2_gradients_of_the_pretrain_phase() -> None:
    adapter = golden("llama_adapter_v2/adapter_pretrain.safetensors")
    inputs = golden("llama_adapter_v2/inputs.safetensors")
    model, injection = v2_injected(adapter)
    bridge = released_visual_query(adapter)
    condition = bridge(inputs["clip_feats"])
    logits = model.requires_grad_(False)(inputs["tokens"], condition=condition).logits
    released_loss(logits, inputs["labels"]).backward()
    stored = golden("llama_adapter_v2/grads_pretrain.safetensors")
    assert_same_gradients(gradients(injection), zero_init_state(stored, 4, 3))
    assert_same_gradients(gradients(bridge), visual_query_state(stored, num_blocks=2))


@pytest.mark.parametrize("case", ["bias", "lora_bias"])
def test_llama_adapter_v2_gradients_of_the_finetune_phase(case: str) -> None:
    """The released rule trains norms and biases, and leaves LoRA as it is."""
    inputs = golden("llama_adapter_v2/inputs.safetensors")
    model, _ = v2_injected(golden(f"llama_adapter_v2/adapter_{case}.safetensors"))
    trained = {name: p.requires_grad_(True) for name, p in tuned_names(model).items() if "lora_" not in name}
    condition = golden("llama_adapter_v2/outputs.safetensors")[f"{case}.visual_query"]
    released_loss(model(inputs["tokens"], condition=condition).logits, inputs["labels"]).backward()
    stored = golden(f"llama_adapter_v2/grads_{case}.safetensors")
    expected = dict(convert_llama_tensors(stored, num_heads=NUM_HEADS))
    assert_same_gradients({name: parameter.grad for name, parameter in trained.items()}, expected)
