"""Mixtures against the released formula: w' = w / (sum w + 1e-6), f = sum w' e / |e|, not normalised again."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bindlm.errors import ConfigError
from bindlm.space.mix import MixForm, arithmetic, mix_embeddings, share_weights

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


# --- the paper's form, unit length, several inputs of a sense ---


def test_the_papers_coefficients_are_taken_as_they_are() -> None:
    one, other = unit_rows(3, seed=1), unit_rows(3, seed=2)
    mixed = mix_embeddings([(2.0 * one, 0.7), (other, 0.9)], form="paper")
    torch.testing.assert_close(mixed, 0.7 * one + 0.9 * other, rtol=1e-6, atol=1e-6)


def test_both_forms_agree_where_weights_sum_to_one() -> None:
    pairs = [(unit_rows(3, seed=1), 0.25), (unit_rows(3, seed=2), 0.75)]
    released, paper = (mix_embeddings(pairs, form=form) for form in MixForm)
    torch.testing.assert_close(released, paper, rtol=0, atol=2e-6)  # the release's 1e-6 beside 1
    assert not torch.equal(released, paper)


@pytest.mark.parametrize("form", MixForm)
def test_a_mixture_may_be_brought_to_unit_length(form: MixForm) -> None:
    pairs = [(unit_rows(3, seed=1), 0.5), (unit_rows(3, seed=2), 2.0)]
    mixed = mix_embeddings(pairs, form=form, normalize=True)
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(mixed, torch.nn.functional.normalize(mix_embeddings(pairs), dim=-1))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="form must be one of released, paper, got 'sum'"):
        mix_embeddings([(unit_rows(1), 1.0)], form="sum")


def test_inputs_of_a_sense_share_its_weight() -> None:
    assert share_weights({"image": 2, "audio": 1}, {"image": 0.6}) == {"image": [0.3, 0.3], "audio": [1.0]}
    assert share_weights({"image": 4, "audio": 0}) == {"image": [0.25] * 4}
    with pytest.raises(ConfigError, match="names audio, but only image was given"):
        share_weights({"image": 1, "audio": 0}, {"audio": 1.0})


def test_arithmetic_adds_and_takes_away_at_unit_length() -> None:
    east, north = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    both = torch.tensor([[1.0, 1.0]])
    torch.testing.assert_close(
        arithmetic([(both, math.sqrt(2)), (north, -1.0)]), torch.tensor([[1.0, 0.0]]), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        arithmetic([(east, 1.0), (north, -0.5)], normalize=False), torch.tensor([[1.0, -0.5]]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("weights", [[0.0, 0.0], [math.nan, 1.0], [math.inf, -1.0], [1.0, -math.inf]])
def test_arithmetic_with_impossible_weights_is_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="Weights must be finite and not all 0"):
        arithmetic([(unit_rows(1, seed=number), weight) for number, weight in enumerate(weights)])


def test_what_cancels_out_has_no_direction() -> None:
    with pytest.raises(ConfigError, match="cancel out"):
        arithmetic([(unit_rows(2), 1.0), (3.0 * unit_rows(2), -1.0)])
    with pytest.raises(ConfigError, match="cancel out"):
        mix_embeddings([(unit_rows(2), 1.0), (-unit_rows(2), 1.0)], normalize=True)
    assert arithmetic([(unit_rows(2), 1.0), (unit_rows(2), -1.0)], normalize=False).abs().max() < 1e-6
