"""Linear, two-layer and visual query bridges: what they compute, their published sizes, what they refuse."""

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bindlm.bridges import (
    BRIDGES,
    BindNetworkConfig,
    LinearConfig,
    MLPConfig,
    VisualQueryConfig,
    build_bridge,
)
from bindlm.errors import ConfigError
from bindlm.injections import ZeroInitAttentionConfig

from ..golden import GOLDEN, golden
from ..released import TOLERANCE, released_bind_network, released_visual_query

SMALL: dict[str, dict[str, Any]] = {
    "bind_network": {"norm": "layer_norm", "block_bias": True, "input_bias": True},
    "linear": {},
    "mlp": {"hidden_dim": 9},
    "visual_query": {"embed_dim": 8, "num_blocks": 2, "num_heads": 2, "num_queries": 3},
    "none": {},
}


def small(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return build_bridge(kind, input_dim=10, output_dim=12, **SMALL[kind])


def sizes_in(manifest: str, *prefixes: str) -> int:
    """Parameters of a published file under these names; skips the test where the list is not to be had."""
    path = GOLDEN / "manifests" / f"{manifest}.json"
    if not path.is_file():
        pytest.skip(f"../shared/golden/manifests/{manifest}.json is not beside this checkout")
    keys = json.loads(path.read_text(encoding="utf-8"))["keys"]
    return sum(math.prod(shape_of(entry)) for name, entry in keys.items() if name.startswith(prefixes))


def shape_of(entry: Any) -> list[int]:
    return entry["shape"] if isinstance(entry, dict) else entry


@pytest.mark.parametrize("kind", [kind for kind in BRIDGES if kind != "none"])
def test_parameters_are_counted_without_building(kind: str) -> None:
    bridge = small(kind)
    assert bridge.config.num_parameters == sum(parameter.numel() for parameter in bridge.parameters())


@pytest.mark.parametrize(
    ("config", "manifest", "prefixes"),
    [
        (BindNetworkConfig.imagebind_llm(), "imagebind_llm_7b_finetune", ("image_bind_",)),
        (BindNetworkConfig.imagebind_llm(), "imagebind_llm_7b_pretrain", ("image_bind_",)),
        (BindNetworkConfig.imagebind_llm_legacy(), "imagebind_llm_7b_legacy_bridge", ("image_bind_",)),
        (LinearConfig.pandagpt(), "pandagpt_7b_delta", ("llama_proj.",)),
        (LinearConfig.pandagpt(5120), "pandagpt_13b_delta", ("llama_proj.",)),
        (
            VisualQueryConfig.llama_adapter_v2_7b(),
            "llama_adapter_v2_multimodal_7b_pretrain",
            ("visual_", "clip_proj"),
        ),
    ],
)
def test_published_bridges_have_the_published_number_of_parameters(
    config: Any, manifest: str, prefixes: tuple[str, ...]
) -> None:
    assert config.num_parameters == sizes_in(manifest, *prefixes)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in config.build().parameters()) == config.num_parameters


@pytest.mark.parametrize(
    ("config", "manifest", "prompts", "unused_layers"),
    [
        (ZeroInitAttentionConfig.imagebind_llm_7b(), "imagebind_llm_7b_pretrain", "prefix_query", 0),
        (ZeroInitAttentionConfig.llama_adapter_v1_7b(), "llama_adapter_v1_7b", "adapter_query", 2),
        (
            ZeroInitAttentionConfig.llama_adapter_v2_7b(),
            "llama_adapter_v2_multimodal_7b_pretrain",
            "adapter_query",
            1,
        ),
    ],
)
def test_published_injections_have_the_published_number_of_parameters(
    config: ZeroInitAttentionConfig, manifest: str, prompts: str, unused_layers: int
) -> None:
    """Files have a gate for each layer; those of layers without a prompt were never read."""
    gates = config.num_layers * config.num_heads
    assert config.num_parameters - gates == sizes_in(manifest, prompts)
    assert config.num_layers + unused_layers == 32
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in config.build().parameters()) == config.num_parameters


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LinearConfig.llava_v1(), 4_198_400),
        (LinearConfig.llava_v1(5120), 5_248_000),
        (MLPConfig.llava_v1_5(), 20_979_712),
        (MLPConfig.llava_v1_5(5120), 31_467_520),
    ],
)
def test_llava_bridges_have_the_published_number_of_parameters(config: Any, count: int) -> None:
    assert config.num_parameters == count


@torch.no_grad()
def test_linear_bridge_is_one_matrix() -> None:
    bridge = small("linear")
    features = torch.randn(3, 10)
    expected = features @ bridge.linear.weight.T + bridge.linear.bias
    torch.testing.assert_close(bridge(features), expected[:, None], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bridge(features[:, None].expand(-1, 4, -1))[:, 2], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        bridge.sum_of([features, 2 * features])[:, 0],
        3 * features @ bridge.linear.weight.T + 2 * bridge.linear.bias,
        rtol=1e-5,
        atol=1e-5,
    )


@torch.no_grad()
def test_two_layer_bridge_has_an_exact_gelu_between() -> None:
    bridge = small("mlp")
    features = torch.randn(2, 5, 10)
    inner = features @ bridge.wide.weight.T + bridge.wide.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    expected = inner @ bridge.narrow.weight.T + bridge.narrow.bias
    torch.testing.assert_close(bridge(features), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_two_layer_bridge_is_llavas() -> None:
    """Against the projector of transformers, which published LLaVA v1.5 weights load into."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=10, num_attention_heads=2),
        text_config=LlamaConfig(hidden_size=12, num_attention_heads=2),
        vision_feature_layer=-2,
    )
    theirs = LlavaMultiModalProjector(config)
    ours = MLPConfig(input_dim=10, output_dim=12).build()
    state = theirs.state_dict()
    ours.load_state_dict(
        {
            f"{name}.{kind}": state[f"{linear}.{kind}"]
            for name, linear in (("wide", "linear_1"), ("narrow", "linear_2"))
            for kind in ("weight", "bias")
        }
    )
    features = torch.randn(2, 7, 10)
    torch.testing.assert_close(ours(features), theirs(features), rtol=1e-6, atol=1e-6)


def multihead(block: Any, tokens: Tensor) -> Tensor:
    """A block's attention by torch's own module."""
    reference = nn.MultiheadAttention(8, block.num_heads, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.projection.weight,
            "out_proj.bias": block.projection.bias,
        }
    )
    return reference(tokens, tokens, tokens, need_weights=False)[0]


@torch.no_grad()
def test_visual_queries_gather_patches_through_pre_norm_blocks() -> None:
    bridge = small("visual_query")
    features = torch.randn(2, 6, 10)
    tokens = torch.cat([bridge.query.expand(2, -1, -1), bridge.input_norm(bridge.input(features))], dim=1)
    for block in bridge.blocks:
        tokens = tokens + multihead(block, F.layer_norm(tokens, (8,), eps=1e-5))
        tokens = tokens + block.narrow(F.gelu(block.wide(F.layer_norm(tokens, (8,), eps=1e-5))))
    expected = F.layer_norm(bridge.output(tokens[:, :3]), (12,), eps=1e-5)
    given = bridge(features)
    assert given.shape == (2, 3, 12)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_patches_have_no_order_but_each_counts() -> None:
    bridge = small("visual_query")
    features = torch.randn(1, 6, 10)
    expected = bridge(features)
    torch.testing.assert_close(bridge(features.flip(1)), expected, rtol=1e-5, atol=1e-5)
    for patch in range(6):
        changed = features.clone()
        changed[0, patch] += 1
        assert (bridge(changed) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["adapter_bias", "adapter_lora_bias", "adapter_pretrain"])
@torch.no_grad()
def test_released_visual_queries(name: str) -> None:
    """Exact to fp32's rounding: an eps of 1e-6 in the norms, as timm's blocks have today, would not pass."""
    inputs, outputs = golden("llama_adapter_v2/inputs.safetensors"), golden("llama_adapter_v2/outputs.safetensors")
    bridge = released_visual_query(golden(f"llama_adapter_v2/{name}.safetensors"))
    expected = outputs[f"{name.removeprefix('adapter_')}.visual_query"]
    torch.testing.assert_close(bridge(inputs["clip_feats"]), expected, **TOLERANCE)


@torch.no_grad()
def test_released_older_bind_network() -> None:
    """LayerNorm, and biases on every layer."""
    outputs = golden("imagebind_llm/outputs.safetensors")
    bridge = released_bind_network(golden("imagebind_llm/adapter_legacy_bridge.safetensors"))
    assert any(name.endswith("w3.bias") for name in bridge.state_dict())
    given = bridge(outputs["legacy_bridge_image_only.visual_feats"])
    torch.testing.assert_close(given, outputs["legacy_bridge_image_only.bind_out"], **TOLERANCE)


@pytest.mark.parametrize("kind", ["linear", "mlp", "visual_query"])
@pytest.mark.parametrize("shape", [(10,), (2, 9), (2, 3, 11), (1, 2, 3, 10)])
def test_wrong_shapes_are_refused(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"takes features \(B, 10\) or \(B, N, 10\), got"):
        small(kind)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("linear", {"input_dim": 0}, "LinearConfig.input_dim must be a number from 1 up, got 0"),
        ("mlp", {"hidden_dim": -1}, "MLPConfig.hidden_dim must be a number from 1 up, got -1"),
        ("visual_query", {"num_heads": 7}, "embed_dim must be a multiple of num_heads, got 768 and 7"),
        ("visual_query", {"mlp_ratio": 0.0}, "mlp_ratio must be above 0"),
        ("bind_network", {"norm": "batch_norm"}, "norm must be one of rms_norm, layer_norm, got 'batch_norm'"),
        ("linear", {"depth": 2}, "do not fit the bridge 'linear'"),
        ("qformer", {}, "no bridge 'qformer'; known are bind_network, linear, mlp, visual_query"),
    ],
)
def test_impossible_settings_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_bridge(kind, **{"input_dim": 4, "output_dim": 4, **settings})
