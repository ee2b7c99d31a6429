"""Batches: pure functions of seed and step, every pair in its turn, hard ones together, nothing twice."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bindlm.binding.anchor import AnchorBank
from bindlm.binding.batches import Batches, BatchPlan, nearest_others, row_keys
from bindlm.binding.pairs import AnchorSide, PairTable
from bindlm.binding.recipe import AnchorColumn, Masking, ObjectiveRecipe

from .binding_case import unit_rows

ROWS = 12


class Numbers:
    """Values that tell which medium they are of, and what its generator gives first."""

    def plain(self, media):
        return torch.tensor(media, dtype=torch.float64)

    def changed(self, media, randoms):
        return torch.tensor([[n, r.random()] for n, r in zip(media, randoms, strict=True)], dtype=torch.float64)


def table() -> PairTable:
    """Twelve pairs of twelve media, with six pictures and, for half of them, a text."""
    numbers = np.arange(ROWS)
    images = AnchorSide(AnchorColumn("image"), [f"{n}.png" for n in range(6)], numbers // 2)
    texts = AnchorSide(AnchorColumn("text"), ["a", "b"], np.where(numbers < 6, numbers % 2, -1))
    names = [f"{n}.wav" for n in numbers]
    return PairTable(
        "audio", names, numbers, [images, texts], ["x", "y", "z"], numbers % 3, names, np.zeros(ROWS, np.int8)
    )


def batches(**options) -> Batches:
    banks = [AnchorBank(unit_rows(n, seed=n)[:, None].numpy(), {}, "") for n in (6, 2)]
    settings = {"batch_size": 4, "seed": 3, "num_steps": 9, **options}
    objective = settings.pop("objective", ObjectiveRecipe())
    return Batches(table(), np.arange(ROWS), banks, Numbers(), objective, **settings)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@given(rows=st.integers(2, 40), size=st.integers(2, 50), seed=st.integers(0, 9), hard=st.integers(0, 3))
def test_batches_have_different_rows_and_an_epoch_no_row_twice(rows, size, seed, hard):
    neighbours = (np.arange(rows)[:, None] + np.arange(1, rows)[None, : 4 * max(hard, 1)]) % rows
    plan = BatchPlan(rows, size, seed, neighbours if hard else None, hard)
    drawn = []
    for step in range(plan.steps_per_epoch):
        batch = plan.rows(step)
        assert len(set(batch.tolist())) == len(batch) == plan.batch_size
        drawn += batch[: plan.num_drawn].tolist()
    assert len(set(drawn)) == len(drawn) > rows - plan.num_drawn


def test_another_epoch_has_another_order_and_another_seed_too():
    one, other = BatchPlan(50, 10, 0), BatchPlan(50, 10, 1)
    assert not np.array_equal(one.rows(0), one.rows(5))
    assert not np.array_equal(one.rows(0), other.rows(0))
    np.testing.assert_array_equal(one.rows(7), BatchPlan(50, 10, 0).rows(7))


@pytest.mark.parametrize("objective", [ObjectiveRecipe(), ObjectiveRecipe(hard_negatives=1, extra_negatives=3)])
def test_a_batch_is_a_function_of_its_number_alone(objective):
    one, other = batches(objective=objective), batches(objective=objective)
    wanted = [one[step] for step in range(9)]
    assert all(same(other[step], wanted[step]) for step in (8, 2, 5, 0))
    assert not same(wanted[0], wanted[1])


def test_the_shares_of_processes_are_the_batch_of_one():
    whole, shared = batches(), batches(num_processes=2)
    for step in range(3):
        parts = [shared[2 * step], shared[2 * step + 1]]
        for name, values in whole[step].items():
            assert torch.equal(torch.cat([part[name] for part in parts]), values), name


def test_a_batch_holds_each_rows_own_anchors():
    item, loader = batches()[0], batches()
    for row, medium in enumerate(item["values"][:, 0].long().tolist()):
        torch.testing.assert_close(item["anchors"][row, 0], unit_rows(6, seed=6)[medium // 2])
        assert item["is_present"][row].tolist() == [True, medium < 6]
        assert item["keys"][row].tolist() == loader.keys[medium].tolist()


def test_further_negatives_are_of_rows_outside_the_batch():
    for step in range(9):
        item = batches(objective=ObjectiveRecipe(extra_negatives=5))[step]
        assert item["negatives"].shape == (5, 2, 16)
        assert not set(item["negative_keys"][:, 0, 0].tolist()) & set(item["keys"][:, 0, 0].tolist())


@pytest.mark.parametrize(("masking", "wanted"), [("none", [-1, -1, -1]), ("same", [7, 3, -1]), ("label", [7, 3, 1])])
def test_keys_say_what_two_rows_may_share(masking, wanted):
    assert row_keys(table(), Masking(masking))[7, 0].tolist() == wanted


def test_the_nearest_others_are_nearest_and_others():
    centres, keys = unit_rows(30), torch.arange(30)[:, None] // 2
    found = nearest_others(centres, keys, 5)
    scores = centres @ centres.T
    for row in range(30):
        allowed = [n for n in range(30) if n // 2 != row // 2]
        assert found[row].tolist() == sorted(allowed, key=lambda n: -float(scores[row, n]))[:5]


def test_hard_rows_come_with_the_rows_that_they_are_near_to():
    loader = batches(objective=ObjectiveRecipe(hard_negatives=1))
    near = nearest_others(loader._centres(), torch.from_numpy(loader.keys[:, 0]), 4)
    drawn = loader.plan.rows(0)
    assert len(drawn) == 4
    for row in drawn[:2]:
        assert set(near[row]) & set(drawn[2:])
