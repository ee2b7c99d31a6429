"""The bind network against ImageBind-LLM (arXiv 2309.03905), Eq. (1), written out once more in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from bindlm.bridges import BindNetwork, BindNetworkConfig
from bindlm.bridges.bind_network import init_near_zero_residuals
from bindlm.errors import ConfigError

from ..golden import golden

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"input_bias": True},
    "mini": {"is_output_normalized": True, "hidden_dim": 20},
    "one block": {"num_blocks": 1, "norm_eps": 1e-2},
}


def network(**settings: Any) -> BindNetwork:
    """A small network whose every weight, norms included, is random."""
    torch.manual_seed(0)
    built = BindNetworkConfig(input_dim=10, output_dim=12, **settings).build()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return built


def equation_1(weights: dict[str, np.ndarray], embedding: np.ndarray, num_blocks: int, eps: float) -> np.ndarray:
    """Eq. (1) in numpy: `weights` by parameter name, `embedding` `(B, C_I)` -> `(B, C)`."""

    def rms_norm(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + eps) * scale

    x = embedding @ weights["input.weight"].T + weights.get("input.bias", 0.0)
    for block in range(num_blocks):
        w1, w2, w3 = (weights[f"blocks.{block}.w{i}.weight"].T for i in (1, 2, 3))
        x_hat = rms_norm(x, weights[f"blocks.{block}.norm.weight"])
        gated = x_hat @ w1
        x = x + (gated / (1 + np.exp(-gated)) * (x_hat @ w2)) @ w3
    return rms_norm(x, weights["output_norm.weight"]) if "output_norm.weight" in weights else x


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_network_computes_equation_1(settings: dict[str, Any]) -> None:
    bridge = network(**settings)
    weights = {name: value.double().numpy() for name, value in bridge.state_dict().items()}
    embedding = torch.nn.functional.normalize(torch.randn(5, 10), dim=-1)
    expected = equation_1(weights, embedding.double().numpy(), bridge.config.num_blocks, bridge.config.norm_eps)
    exact = bridge.double()(embedding.double())
    assert exact.shape == (5, 1, 12)
    np.testing.assert_allclose(exact[:, 0].detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    # fp32: at most 2e-6 was seen on values up to 8; swapping w1 and w2 moves the result by more than 0.5
    np.testing.assert_allclose(bridge.float()(embedding)[:, 0].detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_gated_and_linear_branch_are_not_exchangeable() -> None:
    """Holds the test above to account: silu sits on w1."""
    bridge = network()
    embedding = torch.randn(3, 10)
    before = bridge(embedding)
    with torch.no_grad():
        for block in bridge.blocks:
            block.w1.weight.data, block.w2.weight.data = block.w2.weight.data, block.w1.weight.data
    assert (bridge(embedding) - before).abs().max() > 0.1


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_parameters_are_counted_without_building(settings: dict[str, Any]) -> None:
    bridge = network(**settings)
    assert bridge.config.num_parameters == sum(parameter.numel() for parameter in bridge.parameters())


def test_released_7b_has_608_million_parameters() -> None:
    """604 M of them in the SwiGLU matrices, the rest in the first linear and the norms."""
    config = BindNetworkConfig(input_dim=1024, output_dim=4096, input_bias=True)
    assert config.hidden_dim == 16384
    assert config.num_parameters == 1024 * 4096 + 4096 + 3 * (4096 + 3 * 4096 * 16384) == 608_190_464


@pytest.mark.parametrize("shape", [(2, 9), (2, 11), (2, 1, 10), (10,)])
def test_wrong_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"takes joint embeddings \(B, 10\), got"):
        network()(torch.zeros(shape))


@pytest.mark.parametrize("field", ["input_dim", "output_dim", "hidden_dim", "num_blocks", "num_tokens"])
@pytest.mark.parametrize("value", [0, -3])
def test_impossible_sizes_are_refused(field: str, value: int) -> None:
    settings = {"input_dim": 4, "output_dim": 4, field: value}
    with pytest.raises(ConfigError, match=f"BindNetworkConfig.{field} must be at least 1, got {value}"):
        BindNetworkConfig(**settings)


def test_normalised_output_has_the_length_of_its_weight() -> None:
    bridge = network(is_output_normalized=True)
    with torch.no_grad():
        bridge.output_norm.weight.fill_(0.3)
    output = bridge(torch.randn(4, 10))
    torch.testing.assert_close(output.pow(2).mean(dim=-1).sqrt(), torch.full((4, 1), 0.3), rtol=1e-4, atol=0)


def test_near_zero_residuals_scale_each_way_out() -> None:
    bridge, start = network(), network()
    init_near_zero_residuals(bridge, scale=0.25)
    for (name, now), before in zip(bridge.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(now, before * 0.25 if ".w3." in name else before, rtol=0, atol=0, msg=name)


def test_several_tokens_are_first_layers_of_their_own_behind_which_the_blocks_are_shared() -> None:
    several = network(num_tokens=3, input_bias=True, is_output_normalized=True)
    embedding = torch.randn(4, 10)
    tokens = several(embedding)
    assert tokens.shape == (4, 3, 12)
    assert several.config.num_parameters == sum(parameter.numel() for parameter in several.parameters())
    for number in range(3):
        state = several.state_dict()
        for name in ("input.weight", "input.bias"):
            state[name] = state[name][number * 12 : (number + 1) * 12]
        one = network(input_bias=True, is_output_normalized=True)
        one.load_state_dict(state)
        torch.testing.assert_close(one(embedding)[:, 0], tokens[:, number], rtol=1e-5, atol=1e-5)


def test_rows_do_not_mix() -> None:
    bridge = network()
    embedding = torch.randn(4, 10)
    together = bridge(embedding)
    for row in range(4):
        torch.testing.assert_close(bridge(embedding[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["image_only", "mix_image_audio", "mix_audio_text_point", "knn0"])
def test_released_weights_give_the_released_condition(case: str) -> None:
    """The release's f1, f3, f2 are the paper's w1, w2, w3."""
    stored = golden("imagebind_llm/adapter.safetensors")
    outputs = golden("imagebind_llm/outputs.safetensors")
    released = BindNetworkConfig(input_dim=32, output_dim=64, input_bias=True).build()
    state = {"input.weight": "image_bind_proj.weight", "input.bias": "image_bind_proj.bias"}
    for block in range(3):
        state[f"blocks.{block}.norm.weight"] = f"image_bind_norm_{block + 1}.weight"
        for ours, theirs in {"w1": "f1", "w2": "f3", "w3": "f2"}.items():
            state[f"blocks.{block}.{ours}.weight"] = f"image_bind_{theirs}_{block + 1}.weight"
    released.load_state_dict({ours: stored[theirs] for ours, theirs in state.items()})
    given = outputs[f"{case}.visual_feats"]
    # the release computed in fp32 as well; 2e-6 is what the order of sums leaves
    torch.testing.assert_close(released(given), outputs[f"{case}.bind_out"], rtol=1e-5, atol=1e-5)
