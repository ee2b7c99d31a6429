"""The tiny models of the goldens, built here from the released key names: LLaMA, its adapters, bridges, injections."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bindlm.bridges import BindNetwork, BindNetworkConfig, LinearConfig, VisualQueryBridge, VisualQueryConfig
from bindlm.checkpoints.adapter_layout import bind_network_state, linear_state, visual_query_state
from bindlm.checkpoints.llama_layout import convert_llama_tensors
from bindlm.tuning.bias_norm import add_biases
from bindlm.tuning.lora import inject_lora

from .conditioned import conditioned
from .golden import GOLDEN, golden

TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
"""Both sides compute in fp32; up to 1e-5 on logits that reach 8 was seen, from sums in another order."""
BIASES = ["q_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
LINEARS = [*BIASES, "k_proj", "v_proj"]
NUM_HEADS = 4


def golden_config(folder: str) -> dict[str, Any]:
    """A golden's `config.json`; skips the test where it is not to be had."""
    path = GOLDEN / folder / "config.json"
    if not path.is_file():
        pytest.skip(f"../shared/golden/{folder}/config.json is not beside this checkout")
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def released_llama(folder: str, **changes: Any) -> LlamaForCausalLM:
    """The base model of a golden, which is in Meta's layout, as transformers has it."""
    sizes = golden_config(folder)["llama"]
    config = LlamaConfig(
        hidden_size=sizes["dim"],
        intermediate_size=sizes["ffn_hidden"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        vocab_size=sizes["vocab_size"],
        rms_norm_eps=sizes["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": sizes["rope_theta"]},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **changes,
    )
    model = LlamaForCausalLM(config).eval()
    state = dict(convert_llama_tensors(golden(f"{folder}/llama.safetensors"), num_heads=NUM_HEADS))
    model.load_state_dict(state)
    return conditioned(model)


def tune(model: LlamaForCausalLM, adapter: dict[str, Tensor]) -> None:
    """Put an adapter's norms, biases and LoRA of rank 16, which is not scaled, on the base model."""
    state = dict(convert_llama_tensors(adapter, num_heads=NUM_HEADS))
    if any(name.endswith(".bias") for name in state):
        add_biases(model, BIASES)
    if any("lora_A" in name for name in state):
        inject_lora(model, {"r": 16, "lora_alpha": 16, "target_modules": LINEARS}, scope="always")
    wrapped = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    renamed = {}
    for name, value in state.items():
        owner, _, kind = name.rpartition(".")
        renamed[f"{owner}.base_layer.{kind}" if owner in wrapped else name] = value
    unknown = model.load_state_dict(renamed, strict=False).unexpected_keys
    assert not unknown, unknown


def tuned_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the finetune phase trains: norms, biases and LoRA, by the names of `convert_llama_tensors`."""
    return {
        name.replace(".base_layer", ""): parameter
        for name, parameter in model.named_parameters()
        if "norm" in name or name.endswith(".bias") or "lora_" in name
    }


def released_bind_network(adapter: dict[str, Tensor]) -> BindNetwork:
    """The bind network of a golden, of either form."""
    is_legacy = "image_bind_norm_1.bias" in adapter
    form = {"norm": "layer_norm", "norm_eps": 1e-5, "block_bias": True} if is_legacy else {}
    bridge = BindNetworkConfig(input_dim=32, output_dim=64, input_bias=True, **form).build()
    bridge.load_state_dict(bind_network_state(adapter))
    return bridge


def released_visual_query(adapter: dict[str, Tensor]) -> VisualQueryBridge:
    """The visual query bridge of the LLaMA-Adapter V2 golden."""
    config = VisualQueryConfig(input_dim=24, output_dim=64, embed_dim=48, num_blocks=2, num_heads=4, num_queries=5)
    bridge = config.build()
    bridge.load_state_dict(visual_query_state(adapter, num_blocks=2))
    return bridge


def released_linear(adapter: dict[str, Tensor]) -> nn.Module:
    """The linear bridge of the PandaGPT golden."""
    bridge = LinearConfig(input_dim=32, output_dim=64).build()
    bridge.load_state_dict(linear_state(adapter))
    return bridge


def released_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the next token, id 0 never a target."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=0)


def greedy(model: nn.Module, prompts: Tensor, num_tokens: int, condition: Tensor | None = None) -> list[list[int]]:
    """Greedy continuations of prompts padded with -1 on the right, as one batch padded on the left, cut before eos."""
    texts = [prompt[prompt >= 0].flip(0) for prompt in prompts]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1).flip(1)
    mask = (ids >= 0).long()
    given = {} if condition is None else {"condition": condition}
    made = model.generate(  # type: ignore[operator]
        ids.clamp(min=0), attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, **given
    )
    rows = made[:, ids.shape[1] :].tolist()
    return [row[: row.index(2)] if 2 in row else row for row in rows]


def expected_greedy(ids: Tensor) -> list[list[int]]:
    """A golden's continuations, which are padded with -1."""
    return [[token for token in row if token >= 0] for row in ids.tolist()]


def assert_same_gradients(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-4 of each tensor's largest entry; and all of them are there."""
    assert set(given) == set(expected)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            given[name], gradient, rtol=1e-4, atol=1e-4 * scale, msg=lambda text, n=name: n + text
        )
