"""Unlike inputs take turns, like ones are mixed, and a weight keeps its meaning."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.space.mix import LEAST, TURNS, mix_embeddings, take_turns

EAST, NORTH, UP = torch.eye(3).split(1)
NEAR_EAST = torch.tensor([[0.9, 0.3, 0.0]])


def told(turns: list[list[tuple[Tensor, float]]]) -> list[list[tuple[list[float], float]]]:
    return [[(embedding[0].tolist(), weight) for embedding, weight in turn] for turn in turns]


def test_unlike_inputs_take_turns_the_weightiest_first() -> None:
    turns = take_turns([(EAST, 0.2), (NORTH, 0.5), (UP, 0.3)])
    assert told(turns) == told([[(NORTH, 1.0)], [(UP, 1.0)], [(EAST, 1.0)]])


def test_an_input_in_its_own_turn_is_bit_for_bit_what_it_is_alone() -> None:
    one, other = torch.tensor([[0.6, -0.2, 0.1]]), torch.tensor([[0.1, 0.7, 0.3]])
    first, second = take_turns([(one, 0.3), (other, 0.7)])
    assert torch.equal(mix_embeddings(first), mix_embeddings([(other, 1.0)]))
    assert torch.equal(mix_embeddings(second), mix_embeddings([(one, 1.0)]))


def test_like_inputs_are_mixed_in_one_turn_by_their_weights() -> None:
    turns = take_turns([(EAST, 1.0), (NORTH, 1.5), (NEAR_EAST, 3.0)])
    assert told(turns) == told([[(EAST, 0.25), (NEAR_EAST, 0.75)], [(NORTH, 1.0)]])


def test_what_is_alike_all_told_is_the_mixture_as_given() -> None:
    weighted = [(EAST, 0.3), (NEAR_EAST, 0.9)]
    assert told(take_turns(weighted)) == told([weighted])


def test_equal_weights_keep_the_order_given() -> None:
    assert told(take_turns([(NORTH, 0.5), (EAST, 0.5)])) == told([[(NORTH, 1.0)], [(EAST, 1.0)]])


@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_weight_zero_leaves_an_input_out(weight: float) -> None:
    turns = take_turns([(EAST, 0.5), (NORTH, 0.5), (UP, weight)])
    assert len(turns) == 2
    assert mix_embeddings(turns[0])[0, 2].item() == pytest.approx(2 * weight, abs=1e-12)
    (alone,) = take_turns([(EAST, 1.0), (UP, 0.0)])
    assert torch.equal(mix_embeddings(alone), mix_embeddings([(EAST, 1.0)]))


def test_a_light_input_has_no_turn_and_colours_the_first_as_in_the_release() -> None:
    just_below = LEAST * 0.99
    (turn,) = take_turns([(EAST, 1.0), (NORTH, just_below)])
    assert torch.equal(mix_embeddings(turn), mix_embeddings([(EAST, 1.0), (NORTH, just_below)]))
    assert len(take_turns([(EAST, 1.0), (NORTH, LEAST)])) == 2
    assert len(take_turns([(EAST, 1.0), (NORTH, just_below)], least=0.0)) == 2


def test_light_inputs_that_are_alike_count_together() -> None:
    assert len(take_turns([(NORTH, 1.0), (EAST, 0.06), (NEAR_EAST, 0.06)])) == 2


def test_inputs_are_compared_by_what_is_given_to_compare() -> None:
    weighted = [(EAST, 0.5), (NORTH, 0.5)]
    assert len(take_turns(weighted, compared=[UP, 2 * UP])) == 1
    assert len(take_turns([(EAST, 0.5), (EAST, 0.5)], compared=[UP, NORTH])) == 2


@given(weights=st.lists(st.floats(0, 10), min_size=1, max_size=5).filter(lambda w: sum(w) > 0), seed=st.integers(0, 9))
def test_every_input_with_a_weight_is_in_one_turn(weights: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    embeddings = torch.randn(len(weights), 6).split(1)
    turns = take_turns(list(zip(embeddings, weights, strict=True)))
    ids = [id(embedding) for turn in turns for embedding, _ in turn]
    assert len(ids) == len(set(ids))
    assert {id(e) for e, weight in zip(embeddings, weights, strict=True) if weight > 0} <= set(ids)
    if len(turns) > 1:
        assert all(math.isclose(sum(weight for _, weight in turn), 1.0) for turn in turns)


@pytest.mark.parametrize(
    ("weighted", "options", "complaint"),
    [
        ([], {}, "nothing to mix"),
        ([(EAST, 0.0)], {}, "sum to more than 0"),
        ([(EAST, -1.0), (NORTH, 2.0)], {}, "at least 0"),
        ([(torch.eye(3), 1.0)], {}, "of one row"),
        ([(EAST, 1.0), (NORTH, 1.0)], {"compared": [EAST]}, "1 embeddings to compare for 2 inputs"),
    ],
)
def test_what_cannot_be_planned_is_refused(weighted: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        take_turns(weighted, **options)


def test_one_mixture_cannot_be_told_in_turn() -> None:
    with pytest.raises(ConfigError, match="take_turns"):
        mix_embeddings([(EAST, 1.0)], form=TURNS)
