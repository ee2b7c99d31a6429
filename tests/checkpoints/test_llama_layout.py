"""LLaMA's two layouts: names there and back, rows of rotary pairs, and what of an adapter belongs where."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bindlm.checkpoints.adapter_layout import bind_network_state, visual_query_state, zero_init_state
from bindlm.checkpoints.llama_layout import (
    convert_llama_tensors,
    to_half_split,
    to_interleaved,
    to_meta_name,
    to_transformers_name,
)
from bindlm.errors import CheckpointError

from ..golden import GOLDEN, golden


def manifest(name: str) -> dict[str, Any]:
    path = GOLDEN / "manifests" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"../shared/golden/manifests/{name}.json is not beside this checkout")
    keys: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["keys"]
    return keys


@pytest.mark.parametrize(
    ("meta", "ours"),
    [
        ("tok_embeddings.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("layers.31.attention.wo.bias", "model.layers.31.self_attn.o_proj.bias"),
        ("layers.0.feed_forward.w3.weight", "model.layers.0.mlp.up_proj.weight"),
        ("layers.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("layers.7.attention.lora_wq_l2.weight", "model.layers.7.self_attn.q_proj.lora_B.default.weight"),
        ("layers.7.feed_forward.lora_w2_l1.weight", "model.layers.7.mlp.down_proj.lora_A.default.weight"),
    ],
)
def test_names_there_and_back(meta: str, ours: str) -> None:
    assert to_transformers_name(meta) == ours
    assert to_meta_name(ours) == meta


@pytest.mark.parametrize(
    ("meta", "ours"),
    [
        ("layers.2.attention.wk_bias", "model.layers.2.self_attn.k_proj.bias"),
        ("layers.2.feed_forward.w1_scale", "model.layers.2.mlp.gate_proj.scale"),
        ("layers.2.attention.gate", None),
        ("layers.2.attention.new_gate", None),
        ("rope.freqs", None),
        ("image_bind_proj.weight", None),
        ("layers.2.feed_forward.wq.weight", None),
        ("layers.2.attention.lora_w1_l1.weight", None),
    ],
)
def test_names_of_the_chat_files_and_of_what_is_no_part_of_a_llama(meta: str, ours: str | None) -> None:
    assert to_transformers_name(meta) == ours


def test_unknown_transformers_names_have_no_meta_name() -> None:
    for name in ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.experts.0", "vision.weight"):
        assert to_meta_name(name) is None


def test_whole_published_llama_has_its_place() -> None:
    names = [to_transformers_name(name) for name in manifest("llama_7b_base")]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32))
    assert set(names) == set(model.state_dict())
    assert len(names) == 291


def test_each_tensor_of_the_published_adapters_belongs_to_one_part() -> None:
    for name, blocks in (("imagebind_llm_7b_finetune", 3), ("imagebind_llm_7b_legacy_bridge", 3)):
        keys = {key: torch.empty(0) for key in manifest(name)}
        rest = {key for key in keys if to_transformers_name(key.removeprefix("llama.")) is None}
        own = {key for key in rest if not key.endswith("gate") and key != "prefix_query.weight"}
        assert len(bind_network_state(keys, blocks)) == len(own)
    keys = {key: torch.empty(0) for key in manifest("llama_adapter_v2_multimodal_7b_lora_bias")}
    rest = {key for key in keys if to_transformers_name(key.removeprefix("llama.")) is None}
    own = {key for key in rest if "attention." not in key and key != "adapter_query.weight"}
    assert len(visual_query_state(keys)) == len(own)


def test_rows_there_and_back() -> None:
    rows = torch.arange(16.0)
    expected = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert to_half_split(rows, 2).tolist() == expected
    assert torch.equal(to_interleaved(to_half_split(rows, 2), 2), rows)
    matrix = torch.randn(16, 3)
    assert torch.equal(to_half_split(matrix, 2), matrix[expected])
    assert torch.equal(to_interleaved(to_half_split(matrix, 4), 4), matrix)


def rotate_interleaved(values: Tensor, angles: Tensor) -> Tensor:
    """Meta's rope, from its definition: neighbours are the two parts of a complex number."""
    pairs = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def rotate_half_split(values: Tensor, angles: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def test_scores_do_not_depend_on_the_layout() -> None:
    """Weights, bias and LoRA of queries, weights of keys: the products of rotated rows are the same."""
    generator = torch.Generator().manual_seed(0)
    heads, width, dim, length = 2, 8, 6, 5
    shapes = {
        "layers.0.attention.wq.weight": (heads * width, dim),
        "layers.0.attention.wq.bias": (heads * width,),
        "layers.0.attention.lora_wq_l1.weight": (3, dim),
        "layers.0.attention.lora_wq_l2.weight": (heads * width, 3),
        "layers.0.attention.wk.weight": (heads * width, dim),
    }
    meta = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ours = dict(convert_llama_tensors({f"llma.{name}": value for name, value in meta.items()}, num_heads=heads))
    text = torch.randn(length, dim, generator=generator)
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(width // 2) / (width // 2))

    def scores(state: dict[str, Tensor], names: list[str], rotate: Any) -> Tensor:
        weight, bias, down, up, key = (state[name] for name in names)
        query = (text @ weight.T + bias + text @ down.T @ up.T).unflatten(-1, (heads, width)).transpose(0, 1)
        keys = (text @ key.T).unflatten(-1, (heads, width)).transpose(0, 1)
        return rotate(query, angles) @ rotate(keys, angles).mT

    expected = scores(meta, list(meta), rotate_interleaved)
    given = scores(ours, [to_transformers_name(name) or "" for name in meta], rotate_half_split)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(ours["model.layers.0.self_attn.q_proj.lora_A.default.weight"], list(meta.values())[2])


def test_fewer_key_heads_are_permuted_by_themselves() -> None:
    state = {"layers.0.attention.wk.weight": torch.arange(8.0)[:, None]}
    given = dict(convert_llama_tensors(state, num_heads=4, num_key_value_heads=1))
    assert given["model.layers.0.self_attn.k_proj.weight"].flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_tensors_come_one_by_one() -> None:
    """A 7B file passes through without ever being held."""
    asked = []

    def tensors() -> Any:
        for name in ("norm.weight", "rope.freqs", "output.weight"):
            asked.append(name)
            yield name, torch.ones(4)

    converted = convert_llama_tensors(tensors(), num_heads=2)
    assert next(converted)[0] == "model.norm.weight"
    assert asked == ["norm.weight"]
    assert [name for name, _ in converted] == ["lm_head.weight"]


def test_wrong_number_of_heads_is_refused() -> None:
    with pytest.raises(CheckpointError, match="12 rows, which are not 5 heads of an even width"):
        dict(convert_llama_tensors({"layers.0.attention.wq.weight": torch.zeros(12, 4)}, num_heads=5))


def test_prompts_and_gates_are_dealt_out_to_the_top_layers() -> None:
    adapter = golden("llama_adapter_v1/adapter.safetensors")
    state = zero_init_state(adapter, 4, 3)
    assert torch.equal(state["adapter_prompt"][1], adapter["adapter_query.weight"][5:10])
    assert torch.equal(state["gate"][0], adapter["layers.1.attention.gate"].flatten())
    assert set(state) == {"adapter_prompt", "gate"}
    state = zero_init_state(golden("llama_adapter_v2/adapter_lora_bias.safetensors"), 4, 3)
    assert state["new_gate"].shape == (3,)


def test_adapters_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has no prompts"):
        zero_init_state({"a": torch.zeros(1)}, 4, 4)
    with pytest.raises(CheckpointError, match="4 prompt rows, expected a multiple of 3"):
        zero_init_state({"prefix_query.weight": torch.zeros(4, 2)}, 4, 3)
    with pytest.raises(CheckpointError, match=r"no tensor layers.0.attention.gate; it has prefix_query.weight"):
        zero_init_state({"prefix_query.weight": torch.zeros(4, 2)}, 4, 4)
    with pytest.raises(CheckpointError, match="no tensor image_bind_proj.weight; it has a, b, c, d and 1 more"):
        bind_network_state(dict.fromkeys("abcde", torch.zeros(1)))
