"""What holds for every query and every cache, in memory and on disk."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlm.space import StoredVisualCache, VisualCacheBase

from ..tiny import unit_rows
from .stored import DIM, half, in_memory, written

ROWS = 60
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        written(Path(place), unit_rows(ROWS, DIM, seed=1))
        yield Path(place)


@pytest.fixture(scope="module", params=["on disk", "in memory"])
def cache(request: pytest.FixtureRequest, folder: Path) -> VisualCacheBase:
    stored = StoredVisualCache.open(folder)
    return stored if request.param == "on disk" else in_memory(half(unit_rows(ROWS, DIM, seed=1)))


def configured(cache: VisualCacheBase, *, top_k: int = 10, alpha: float = 0.5, temperature: float = 20.0) -> None:
    cache.config.top_k, cache.config.alpha, cache.config.temperature = top_k, alpha, temperature


@settings(max_examples=25, deadline=None)
@given(seed=seeds, top_k=st.integers(1, ROWS))
def test_alpha_0_is_identity(cache: VisualCacheBase, seed: int, top_k: int) -> None:
    configured(cache, alpha=0.0, top_k=top_k)
    query = unit_rows(2, DIM, seed=seed)
    torch.testing.assert_close(cache.enhance(query), query, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_one_neighbour_at_alpha_1_is_the_nearest_entry(cache: VisualCacheBase, seed: int) -> None:
    configured(cache, alpha=1.0, top_k=1)
    query = unit_rows(1, DIM, seed=seed)
    vectors = half(unit_rows(ROWS, DIM, seed=1))
    torch.testing.assert_close(cache.enhance(query)[0], vectors[(vectors @ query[0]).argmax()], rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_a_high_temperature_leaves_the_nearest_entry_alone(cache: VisualCacheBase, seed: int) -> None:
    query = unit_rows(1, DIM, seed=seed)
    configured(cache, alpha=0.7, top_k=1)
    alone = cache.enhance(query)
    configured(cache, alpha=0.7, top_k=10, temperature=1e9)
    cosines = cache.search(query)[0][0]
    if cosines[0] - cosines[1] > 1e-6:
        torch.testing.assert_close(cache.enhance(query), alone, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(row=st.integers(0, ROWS - 1), alpha=st.floats(0, 1))
def test_a_query_that_is_an_entry_stays_where_it_is(cache: VisualCacheBase, row: int, alpha: float) -> None:
    configured(cache, alpha=alpha, top_k=10, temperature=1e4)
    query = half(unit_rows(ROWS, DIM, seed=1))[row : row + 1]
    torch.testing.assert_close(cache.enhance(query), query, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, top_k=st.integers(1, ROWS), temperature=st.floats(0, 1e4))
def test_shares_fall_and_sum_to_1(cache: VisualCacheBase, seed: int, top_k: int, temperature: float) -> None:
    configured(cache, top_k=top_k, temperature=temperature)
    (neighbours,) = cache.explain(unit_rows(1, DIM, seed=seed))
    weights = [each.weight for each in neighbours]
    assert sum(weights) == pytest.approx(1.0, abs=1e-4)
    assert all(first >= second for first, second in zip(weights, weights[1:]))
    assert len({each.entry for each in neighbours}) == top_k
