"""The visual cache against both of its formulas: the paper's Eq. (3)-(4), and the released one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.space import CacheWeighting, VisualCache, VisualCacheConfig
from bindlm.space.mix import mix_embeddings

from ..golden import golden
from ..tiny import unit_rows

KNN_CASES: dict[str, tuple[list[tuple[str, float]], dict[str, Any]]] = {
    "knn0": ([("audio", 1.0)], {"top_k": 10, "temperature": 20, "alpha": 0.5}),
    "knn1": ([("audio", 1.0)], {"top_k": 1, "temperature": 20, "alpha": 0.5}),
    "knn2": ([("audio", 1.0)], {"top_k": 4, "temperature": 5, "alpha": 0.8}),
    "knn3": ([("image", 0.7), ("audio", 0.2)], {"top_k": 10, "temperature": 100, "alpha": 1.0}),
    "knn4": ([("point", 1.0), ("text", 1.0)], {"top_k": 16, "temperature": 0, "alpha": 0.5}),
    "knn5": ([("image", 1.0)], {"top_k": 10, "temperature": 20, "alpha": 0.0}),
}


def cache_of(keys: Tensor, values: Tensor | None = None, **settings: Any) -> VisualCache:
    config = VisualCacheConfig(
        num_entries=keys.shape[0], dim=keys.shape[1], has_own_values=values is not None, **settings
    )
    cache = VisualCache(config)
    cache.keys.copy_(keys)
    if values is not None:
        assert cache.values is not None
        cache.values.copy_(values)
    return cache


def expected_enhancement(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, *, weighting: str, top_k: int, alpha: float, t: float
) -> np.ndarray:
    """Both formulas, a row at a time, in float64."""
    rows = []
    for row in query:
        similarity = keys @ row
        best = np.argsort(-similarity, kind="stable")[:top_k]
        if weighting == "cosine":
            rows.append(alpha * similarity[best] @ values[best] + (1 - alpha) * row)
            continue
        weights = np.exp(t * similarity[best] - (t * similarity[best]).max())
        retrieved = weights / weights.sum() @ values[best]
        blend = (1 - alpha) * row + alpha * retrieved / np.linalg.norm(retrieved)
        rows.append(blend / np.linalg.norm(blend))
    return np.stack(rows)


@pytest.mark.parametrize("case", KNN_CASES)
def test_enhancement_is_the_released_one(case: str) -> None:
    mix, settings = KNN_CASES[case]
    inputs = golden("imagebind_llm/inputs.safetensors")
    outputs = golden("imagebind_llm/outputs.safetensors")
    query = mix_embeddings([(inputs[f"embeds.{name}"], weight) for name, weight in mix])
    torch.testing.assert_close(query, outputs[f"{case}.query"], rtol=1e-6, atol=1e-7)
    cache = cache_of(inputs["cache"], values=inputs["cache"], **settings)
    similarity, entries = cache.search(query)
    assert torch.equal(entries, outputs[f"{case}.indices"])
    torch.testing.assert_close(similarity, outputs[f"{case}.sims"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cache.enhance(query), outputs[f"{case}.visual_feats"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighting", CacheWeighting)
@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("has_own_values", [False, True])
def test_enhancement_is_the_formula(weighting: CacheWeighting, alpha: float, has_own_values: bool) -> None:
    keys = unit_rows(40, seed=1) * torch.linspace(0.7, 1.0, 40)[:, None]  # keys need not be of one length
    values = unit_rows(40, seed=2) if has_own_values else None
    query = 0.8 * unit_rows(5, seed=3)
    cache = cache_of(keys, values, weighting=weighting, top_k=6, alpha=alpha, temperature=12.0)
    mixed_in = unit_rows(40, seed=2 if has_own_values else 1)
    expected = expected_enhancement(
        *(tensor.double().numpy() for tensor in (query, keys, mixed_in)),
        weighting=weighting.value,
        top_k=6,
        alpha=alpha,
        t=12.0,
    )
    np.testing.assert_allclose(cache.enhance(query).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_only_the_released_form_gives_unit_length() -> None:
    keys, query = unit_rows(30, seed=1), unit_rows(4, seed=2)
    released = cache_of(keys).enhance(query).norm(dim=-1)
    torch.testing.assert_close(released, torch.ones(4))
    assert (cache_of(keys, weighting="cosine").enhance(query).norm(dim=-1) - 1).abs().min() > 0.05


@pytest.mark.parametrize("rows", [1, 3])
def test_ties_go_to_the_lowest_entry(rows: int) -> None:
    """Exact ties, of one-hot keys: which entries an answer drew on must not depend on the sort or on the batch."""
    keys = torch.eye(4)[torch.arange(64) % 4]  # entries 1, 5, 9, … are the same key
    query = torch.eye(4)[1].expand(rows, 4)
    similarity, entries = cache_of(keys, top_k=6).search(query)
    assert entries.tolist() == [[1, 5, 9, 13, 17, 21]] * rows
    assert similarity.tolist() == [[1.0] * 6] * rows
    _, entries = cache_of(keys, top_k=20).search(query)
    assert entries.tolist() == [[*range(1, 64, 4), 0, 2, 3, 4]] * rows


def test_tie_at_the_edge_gives_the_same_mixture_every_time() -> None:
    keys = torch.cat([unit_rows(3, seed=5), unit_rows(1, seed=6).expand(20, -1)])
    values = unit_rows(23, seed=7)
    cache = cache_of(keys, values, top_k=5)
    query = unit_rows(1, seed=6)
    first = cache.enhance(query)
    assert all(torch.equal(cache.enhance(query), first) for _ in range(5))
    assert cache.search(query)[1].tolist() == [[3, 4, 5, 6, 7]]


def test_rows_do_not_mix() -> None:
    """The released lines mix retrieved vectors across a batch; these do not."""
    cache = cache_of(unit_rows(30, seed=1))
    query = unit_rows(4, seed=2)
    together = cache.enhance(query)
    for row in range(4):
        torch.testing.assert_close(cache.enhance(query[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-6)


def test_longer_key_wins_more_often_and_mixes_in_at_unit_length() -> None:
    keys = torch.tensor([[0.6, 0.8], [2.0, 0.0]])
    cache = cache_of(keys, top_k=1, alpha=1.0)
    query = torch.tensor([[0.55, 0.83]])
    assert cache.search(query)[1].tolist() == [[1]], "1.10 against 0.994"
    torch.testing.assert_close(cache.enhance(query), torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"alpha": -0.1}, "alpha must lie in"),
        ({"alpha": 1.1}, "alpha must lie in"),
        ({"top_k": 0}, "top_k must lie in 1..20"),
        ({"top_k": 21}, "top_k must lie in 1..20"),
        ({"num_entries": 0}, "needs entries"),
        ({"dim": 0}, "needs entries"),
        ({"weighting": "mean"}, "weighting must be one of cosine, softmax, got 'mean'"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        VisualCacheConfig(**{"num_entries": 20, "dim": 4, **settings})


def test_weighting_is_read_from_its_name() -> None:
    assert VisualCacheConfig(num_entries=10, dim=4, weighting="cosine").weighting is CacheWeighting.COSINE


def test_buffers_travel_with_the_model_and_do_not_train() -> None:
    cache = cache_of(unit_rows(20), values=unit_rows(20, seed=1))
    assert set(cache.state_dict()) == {"keys", "values"}
    assert set(cache_of(unit_rows(20)).state_dict()) == {"keys"}
    assert not list(cache.parameters())


# -- by sense -------------------------------------------------------------------------------------------------------


def test_a_sense_may_consult_the_cache_by_settings_of_its_own() -> None:
    keys = torch.tensor([[3.0, 0.0], [0.6, 0.8]])
    query = torch.tensor([[0.7, 0.7141428]])
    sizes = {"num_entries": 2, "dim": 2, "top_k": 1, "alpha": 1.0}
    cache = VisualCache(VisualCacheConfig(**sizes, by_sense={"point": {"similarity": "cosine", "alpha": 0.5}}))
    cache.keys.copy_(keys)

    shape = cache.for_senses(["point"])
    assert cache.search(query)[1].item() == 0, "the longer key wins"
    assert shape.search(query)[1].item() == 1, "the nearer one does"
    assert torch.allclose(shape.search(query)[0], torch.tensor([[0.7 * 0.6 + 0.7141428 * 0.8]]))
    assert shape.config.alpha == 0.5
    assert shape.keys is cache.keys, "a view copies nothing"


def test_senses_that_disagree_and_senses_unknown_meet_the_cache_as_it_is() -> None:
    own = {"point": {"alpha": 0.9}, "depth": {"alpha": 0.9}, "audio": {"alpha": 0.1}}
    cache = VisualCache(VisualCacheConfig(num_entries=1, dim=2, top_k=1, by_sense=own, modalities=("point", "audio")))
    assert cache.for_senses(None) is cache
    assert cache.for_senses(["point", "depth"]).config.alpha == 0.9
    assert cache.for_senses(["point", "audio"]) is cache
    assert cache.for_senses(["point", "image"]) is cache
    assert cache.for_senses(["depth"]) is None, "it pulls no depth"


@pytest.mark.parametrize(
    "settings", [{"by_sense": {"audio": {"modalities": ["audio"]}}}, {"by_sense": {"audio": {"alpha": 2.0}}},
                 {"by_sense": {"audio": 0.9}}, {"similarity": "euclidean"}]
)  # fmt: skip
def test_impossible_settings_of_a_sense_are_refused(settings) -> None:
    with pytest.raises(ConfigError):
        VisualCacheConfig(num_entries=4, dim=2, top_k=1, **settings)
