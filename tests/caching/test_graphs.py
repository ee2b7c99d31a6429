"""The graph of a large cache: its order is that of products, it grows, and a stopped one goes on."""

import dataclasses

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlm.caching import Budget, add_to_cache, build_cache, graphs, open_embeddings, remove_from_cache, verify_cache
from bindlm.caching import build as build_module
from bindlm.caching.graphs import add_rows, train_graph
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache_folder import StoredVisualCache
from bindlm.space.cache_format import write_record

from .cache_case import FINGERPRINT, GRAPH, Choice, files_of, unit, vectors


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Several files of values, and several times that an unfinished graph is written."""
    monkeypatch.setattr(build_module, "ROWS_A_FILE", 256)
    monkeypatch.setattr(graphs, "ROWS_AT_ONCE", 64)
    monkeypatch.setattr(graphs, "LEAST_ROWS_BETWEEN", 128)


@pytest.fixture
def one_thread():
    """On several, threads take turns as they come."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def filled(key, rows):
    """A graph of some rows, which are unit vectors."""
    index = train_graph(key, rows.shape[1], rows.astype(np.float16))
    for start in range(0, len(rows), 100):
        add_rows(index, start, rows[start : start + 100])
    return index


def make(tmp_path, name="a", rows=700, **options):
    """Build a cache of random rows."""
    if not (tmp_path / f"{name}.npy").exists():
        np.save(tmp_path / f"{name}.npy", vectors(rows))
    budget = options.pop("budget", Budget(choice=GRAPH))
    source = open_embeddings(tmp_path / f"{name}.npy")
    return build_cache(source, tmp_path / "cache", fingerprint=FINGERPRINT, budget=budget, progress=False, **options)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["HNSW8,SQ8", "PCA20,HNSW8,SQ8"]))
@settings(max_examples=5, deadline=None)
def test_order_by_distance_is_order_by_product(seed, key):
    """Components have other lengths, and a graph by distance would prefer the short ones."""
    random = np.random.default_rng(seed)
    rows = unit(random.standard_normal((300, 24)) * np.geomspace(1, 0.1, 24) + 0.2).astype(np.float32)
    queries = unit(random.standard_normal((5, 24))).astype(np.float32)
    index = filled(key, rows)
    all_rows = faiss.SearchParametersHNSW(efSearch=300)
    found = index.search(queries, 300, params=faiss.SearchParametersPreTransform(index_params=all_rows))[1]
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    products = transform.apply(queries) @ transform.apply(rows).T  # without what makes rows equally long
    for own, order in zip(products, found, strict=True):
        falling = own[order[order >= 0]]
        assert (order >= 0).sum() > 290  # a row that no edge leads to is rare
        assert np.diff(falling).max() < 0.03  # what a byte a component rounds


def test_candidates_hold_the_true_neighbours():
    random = np.random.default_rng(0)
    centres = random.standard_normal((50, 320))
    rows = unit(centres[random.integers(0, 50, 6000)] + random.standard_normal((6000, 320))).astype(np.float32)
    queries = unit(centres[random.integers(0, 50, 100)] + random.standard_normal((100, 320))).astype(np.float32)
    index = filled("PCA248,HNSW24,SQ8", rows)
    faiss.ParameterSpace().set_index_parameter(index, "efSearch", 256)
    found = index.search(queries, 128)[1]
    true = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    assert np.mean([np.isin(own, each).mean() for own, each in zip(true, found, strict=True)]) >= 0.98


def test_a_stopped_graph_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, one_thread):
    make(tmp_path)
    expected = files_of(tmp_path / "cache")
    added, save = [], graphs.add_rows

    def counted(index, first, rows):
        added.append(first)
        if len(added) == 7:
            raise KeyboardInterrupt
        save(index, first, rows)

    build = {"replaces": True, "is_fresh": True}
    monkeypatch.setattr(graphs, "add_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, **build)
    assert [path.name for path in (tmp_path / "cache" / ".bindlm-build").glob("graph-*")] == ["graph-000003"]
    added.clear()
    make(tmp_path, replaces=True)
    assert added[0] == 384  # where the third of the unfinished graphs ends
    made = files_of(tmp_path / "cache")
    assert (
        sorted(made.values()) == sorted(expected.values())
        or made["index-000001.faiss"] == expected["index-000000.faiss"]
    )


def test_an_unfinished_graph_that_is_gone_costs_time_and_nothing_else(tmp_path, monkeypatch):
    add, added = graphs.add_rows, []

    def stopping(index, first, rows):
        added.append(first)
        if len(added) == 7:
            raise KeyboardInterrupt
        add(index, first, rows)

    monkeypatch.setattr(graphs, "add_rows", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    for path in (tmp_path / "cache" / ".bindlm-build").glob("graph-*"):
        path.unlink()
    make(tmp_path)
    assert added[7] == 0
    assert verify_cache(tmp_path / "cache").is_sound


def test_a_graph_of_which_nearly_all_is_removed_finds_the_rest(tmp_path):
    make(tmp_path)
    remove_from_cache([f"a:{row}" for row in range(700) if row % 60], tmp_path / "cache", progress=False)
    cache = StoredVisualCache.open(tmp_path / "cache", top_k=12)
    _, entries = cache.search(torch.from_numpy(unit(vectors(3, seed=8))))
    assert [sorted(row) for row in entries.tolist()] == [list(range(0, 700, 60))] * 3
    assert verify_cache(tmp_path / "cache").is_sound


def test_a_graph_in_memory_and_one_on_disk_find_the_same(tmp_path):
    make(tmp_path)
    queries = torch.from_numpy(unit(vectors(20, seed=8)))
    found = [StoredVisualCache.open(tmp_path / "cache", memory_map=mapped).search(queries) for mapped in (True, False)]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_removing_leaves_the_graph_as_it_is_and_adding_goes_on_from_it(tmp_path):
    before = make(tmp_path).index
    assert remove_from_cache(["a:3"], tmp_path / "cache", progress=False).index == before
    np.save(tmp_path / "b.npy", vectors(100, seed=1))
    record = add_to_cache(
        open_embeddings(tmp_path / "b.npy"), tmp_path / "cache", fingerprint=FINGERPRINT, progress=False
    )
    assert (record.index.key, record.index.rows, record.num_entries) == (GRAPH.key, 800, 799)
    assert verify_cache(tmp_path / "cache", sample=800).is_sound
    cache = StoredVisualCache.open(tmp_path / "cache")
    own = torch.from_numpy(unit(vectors(700))[3:4])
    assert 3 not in cache.search(own)[1]


def test_a_graph_by_another_measure_or_of_other_rows_is_refused(tmp_path):
    record = make(tmp_path)
    lists = dataclasses.replace(record, index=dataclasses.replace(record.index, key="IVF8,SQ8"))
    write_record(tmp_path / "cache", lists)
    with pytest.raises(CheckpointError, match="no index of these entries by inner product"):
        StoredVisualCache.open(tmp_path / "cache")
    with pytest.raises(ConfigError, match="The index has 699 rows, expected 700"):
        dataclasses.replace(record, index=dataclasses.replace(record.index, rows=699))


@pytest.mark.parametrize("key", ["HNSW24", "HNSW24,Flat", "PCA8,HNSW24_SQ8", "PCA99,HNSW8,SQ8", "HNSW1,SQ8"])
def test_other_graphs_are_refused(tmp_path, key):
    with pytest.raises(ConfigError, match="HNSW"):
        make(tmp_path, budget=Budget(choice=Choice(key, {"efSearch": 64}, 4)))
