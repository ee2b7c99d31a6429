"""Mixtures against the released formula: w' = w / (sum w + 1e-6), f = sum w' e / |e|, not normalised again."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bindlm.errors import ConfigError
from bindlm.space.mix import mix_embeddings

from ..golden import golden
from ..tiny import unit_rows

GOLDEN_MIXES: dict[str, list[tuple[str, float]]] = {
    "image_only": [("image", 1.0)],
    "mix_image_audio": [("image", 0.7), ("audio", 0.2)],
    "mix_audio_text_point": [("audio", 1.0), ("text", 0.5), ("point", 0.25)],
}


@pytest.mark.parametrize("case", GOLDEN_MIXES)
def test_mixture_is_the_released_one(case: str) -> None:
    inputs = golden("imagebind_llm/inputs.safetensors")
    expected = golden("imagebind_llm/outputs.safetensors")[f"{case}.visual_feats"]
    mixed = mix_embeddings([(inputs[f"embeds.{name}"], weight) for name, weight in GOLDEN_MIXES[case]])
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-7)


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_mixture_is_the_formula(weights: list[float], seed: int) -> None:
    embeddings = [3.0 * (index + 1) * unit_rows(2, 5, seed + index) for index in range(len(weights))]
    mixed = mix_embeddings(list(zip(embeddings, weights, strict=True)))
    expected = np.zeros((2, 5))
    for embedding, weight in zip(embeddings, weights, strict=True):
        exact = embedding.double().numpy()
        expected += weight / (sum(weights) + 1e-6) * exact / np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_unlike_things_mix_to_something_shorter() -> None:
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    mixed = mix_embeddings([(east, 1.0), (north, 1.0)])
    assert mixed.norm().item() == pytest.approx(math.sqrt(0.5), rel=1e-5)


def test_rescaling_all_weights_changes_nothing_to_speak_of() -> None:
    one, other = unit_rows(3, seed=1), unit_rows(3, seed=2)
    small, large = (mix_embeddings([(one, scale), (other, 3 * scale)]) for scale in (1.0, 50.0))
    torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)  # 1e-6 beside a sum of 4


def test_weight_zero_leaves_its_medium_out() -> None:
    one, other = unit_rows(3, seed=1), unit_rows(3, seed=2)
    torch.testing.assert_close(mix_embeddings([(one, 1.0), (other, 0.0)]), one, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, -0.001)])
def test_impossible_weights_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="at least 0 and sum to more than 0"):
        mix_embeddings([(unit_rows(1), weight) for weight in weights])


@pytest.mark.parametrize("embeddings", [[], [unit_rows(1), unit_rows(2)], [unit_rows(1, 4), unit_rows(1, 5)]])
def test_unequal_or_missing_embeddings_are_refused(embeddings: list[Any]) -> None:
    with pytest.raises(ConfigError, match="one shape|nothing to mix"):
        mix_embeddings([(embedding, 1.0) for embedding in embeddings])


def test_gradient_reaches_what_is_mixed() -> None:
    embedding = unit_rows(2).requires_grad_()
    mix_embeddings([(embedding, 1.0), (unit_rows(2, seed=4), 2.0)]).square().sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().max() > 0
