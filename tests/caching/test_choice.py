"""The rule that chooses a cache's index: what it gives, what it costs, and that it finds the neighbours."""

import faiss
import numpy as np
import pytest

from bindlm.caching.choice import IndexChoice, choose_index
from bindlm.caching.training import check_key, train_index
from bindlm.errors import ConfigError

GB = 1_000_000_000


def chosen(entries: int, dim: int = 1024, *, memory: int = 4 * GB, milliseconds: float = 3.0) -> IndexChoice:
    return choose_index(entries, dim, max_memory_bytes=memory, max_latency_ms=milliseconds)


def clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors around 200 centres, with a mean that is not zero: `(rows, dim)` fp32."""
    random = np.random.default_rng([1, seed])
    centres = np.random.default_rng(0).standard_normal((200, dim)) + 0.5
    vectors = centres[random.integers(0, 200, rows)] + 0.7 * random.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("entries", [1, 999, 5_000])
def test_small_cache_is_searched_exactly(entries: int) -> None:
    choice = chosen(entries)
    assert (choice.key, choice.search, choice.oversampling) == ("IDMap2,Flat", {}, 1)
    assert choice.resident_bytes == entries * (4 * 1024 + 8)


@pytest.mark.parametrize(
    ("entries", "dim", "key"),
    [
        (10_000, 1024, "PCA248,HNSW24,SQ8"),
        (100_000, 512, "PCA248,HNSW24,SQ8"),
        (3_000_000, 1024, "PCA248,HNSW24,SQ8"),
        (3_000_000, 128, "HNSW24,SQ8"),
    ],
)
def test_large_cache_is_a_graph(entries: int, dim: int, key: str) -> None:
    choice = chosen(entries, dim)
    assert choice.key == key
    assert choice.search["efSearch"] >= 10 * choice.oversampling  # or the walk would not see that many candidates
    assert choice.num_training <= entries
    check_key(choice.key)


def test_graph_that_does_not_fit_in_memory_makes_way_for_lists() -> None:
    graph = chosen(3_000_000)
    assert chosen(3_000_000, memory=graph.resident_bytes).key == graph.key
    assert "IVF" in chosen(3_000_000, memory=graph.resident_bytes - 1).key


@pytest.mark.parametrize(
    ("entries", "dim", "key"),
    [
        (10_000, 1024, "PCA256,IVF512,SQ8"),
        (100_000, 1024, "PCA256,IVF1024,SQ8"),
        (1_000_000, 768, "PCA256,IVF4096,SQ8"),
        (3_000_000, 1024, "PCA256,IVF8192,SQ8"),
        (3_000_000, 256, "IVF8192,SQ8"),
    ],
)
def test_cache_beyond_its_memory_is_short_codes_in_lists(entries: int, dim: int, key: str) -> None:
    choice = chosen(entries, dim, memory=4_000_000)
    assert choice.key == key
    assert choice.oversampling > 1
    check_key(choice.key)  # rows can be removed from it


@pytest.mark.parametrize("memory", [4 * GB, 1_000_000])
def test_every_size_has_an_index_whose_training_fits_in_it(memory: int) -> None:
    for entries in np.unique(np.geomspace(1, 5_000_000, 200).astype(int)).tolist():
        choice = chosen(entries, memory=memory)
        assert 0 <= choice.num_training <= entries
        if "nprobe" in choice.search:
            lists = int(choice.key.split("IVF")[1].split(",")[0])
            assert 1 <= choice.search["nprobe"] <= lists <= choice.num_training


def test_more_time_never_means_fewer_lists() -> None:
    small = {"memory": GB // 4}
    probes = [chosen(1_000_000, milliseconds=time, **small).search["nprobe"] for time in (3.0, 4.0, 6.0, 10.0)]
    assert probes == sorted(probes)
    assert probes[-1] > probes[0]


def test_few_lists_are_never_looked_into_and_what_that_takes_is_said() -> None:
    choice = chosen(3_000_000, memory=GB, milliseconds=3.0)
    assert choice.search["nprobe"] == 32
    assert "ms a query, for fewer lists" in choice.reason
    assert "for fewer lists" not in chosen(3_000_000, memory=GB, milliseconds=20.0).reason


def test_exact_search_is_chosen_where_time_and_memory_allow_it() -> None:
    assert chosen(100_000, milliseconds=100.0).key == "IDMap2,Flat"
    assert chosen(100_000, milliseconds=100.0, memory=100_000_000).key.startswith("PCA248,HNSW")
    assert chosen(100_000, milliseconds=100.0, memory=40_000_000).key.startswith("PCA256,IVF")


def test_too_little_time_is_refused_with_a_time_that_is_enough() -> None:
    with pytest.raises(ConfigError, match=r"3,000,000 entries of 1024 numbers .* at least ([\d.]+) ms") as caught:
        chosen(3_000_000, milliseconds=0.5)
    least = float(str(caught.value).split("at least ")[1].split(" ms")[0])
    assert chosen(3_000_000, milliseconds=least).search


def test_index_beyond_its_memory_says_what_stays_on_disk() -> None:
    choice, fitting = chosen(3_000_000, memory=GB // 2), chosen(3_000_000, memory=GB)
    assert choice.key == fitting.key
    assert "stay on disk" in choice.reason
    assert "stay on disk" not in fitting.reason


@pytest.mark.parametrize("wrong", [(0, 1024, 1, 1.0), (5, 0, 1, 1.0), (5, 8, 0, 1.0), (5, 8, 1, 0.0)])
def test_sizes_that_are_not_positive_are_refused(wrong: tuple[int, int, int, float]) -> None:
    entries, dim, memory, milliseconds = wrong
    with pytest.raises(ConfigError, match="needs entries, a width, memory and time"):
        choose_index(entries, dim, max_memory_bytes=memory, max_latency_ms=milliseconds)


@pytest.fixture(scope="module")
def built() -> tuple[IndexChoice, faiss.Index, np.ndarray]:
    """The index that is chosen for 20,000 vectors of 320 numbers, filled."""
    vectors = clustered(20_000, 320, seed=1)
    choice = chosen(len(vectors), 320, memory=8_000_000)  # a graph takes 10 MB
    index = train_index(choice.key, 320, vectors[: choice.num_training].astype(np.float16))
    index.add(vectors)
    faiss.ParameterSpace().set_index_parameters(index, ",".join(f"{k}={v}" for k, v in choice.search.items()))
    return choice, index, vectors


def test_chosen_index_names_the_neighbours_among_its_candidates(built: tuple) -> None:
    choice, index, vectors = built
    assert choice.key.startswith("PCA256,IVF")
    queries = clustered(100, 320, seed=2)
    true = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    candidates = index.search(queries, 10 * choice.oversampling)[1]
    recall = np.mean([np.isin(own, found).mean() for own, found in zip(true, candidates, strict=True)])
    assert recall >= 0.98


def test_resident_bytes_are_those_of_the_index(built: tuple) -> None:
    choice, index, _ = built
    assert faiss.serialize_index(index).size == pytest.approx(choice.resident_bytes, rel=0.02)


def test_mean_is_left_in_the_components(built: tuple) -> None:
    """FAISS's PCA subtracts it, and products of what is left rank otherwise than products of the vectors."""
    _, index, vectors = built
    components = faiss.downcast_VectorTransform(index.chain.at(0))
    assert vectors.mean(axis=0).max() > 0.005
    assert np.abs(components.apply(np.zeros((1, 320), np.float32))).max() == 0
