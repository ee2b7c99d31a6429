"""Building, adding, removing, merging, verifying: what is found afterwards, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bindlm.caching import (
    Budget,
    add_to_cache,
    build_cache,
    describe_cache,
    merge_caches,
    open_embeddings,
    remove_from_cache,
    verify_cache,
)
from bindlm.caching import build as build_module
from bindlm.caching import indexing as indexing_module
from bindlm.caching import training as training_module
from bindlm.caching.lists import open_index
from bindlm.caching.training import sample_rows, train_index
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache_folder import StoredVisualCache
from bindlm.space.cache_format import CacheSettings

from .cache_case import FINGERPRINT, GRAPH, LISTS, Choice, files_of, save_embeddings, unit, vectors

KINDS = [
    Choice(),
    LISTS,
    Choice("IVF8,Flat", {"nprobe": 8}),
    Choice("PCA14,IVF8,SQ8", {"nprobe": 8}, 20),
    GRAPH,
    Choice("PCA14,HNSW8,SQ8", {"efSearch": 64}, 20),
]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Several files of values, and several parts of an index."""
    monkeypatch.setattr(build_module, "ROWS_A_FILE", 256)
    monkeypatch.setattr(indexing_module, "CHUNK_ROWS", 128)
    monkeypatch.setattr(indexing_module, "_PART_BYTES", 4096)
    monkeypatch.setattr(indexing_module, "_PART_BYTES_A_LIST", 0)


def make(out, name="a", rows=600, *, choice=LISTS, seed=0, **options):
    """A cache of random rows called `a:0` and so on, and these rows at unit length."""
    path = out.with_name(f"{name}.npy")
    np.save(path, vectors(rows, seed=seed))
    record = build_cache(
        open_embeddings(path), out, fingerprint=FINGERPRINT, encoder="mini", budget=Budget(choice=choice),
        progress=False, **options,
    )  # fmt: skip
    return record, unit(vectors(rows, seed=seed))


def found_ids(folder, queries):
    """The id of the nearest entry of each query."""
    cache = StoredVisualCache.open(folder, verify=True)
    return [row[0].id for row in cache.explain(torch.from_numpy(queries))]


@pytest.mark.parametrize("choice", KINDS, ids=lambda choice: choice.key)
def test_every_entry_of_a_built_cache_finds_itself(tmp_path, choice):
    record, rows = make(tmp_path / "cache", choice=choice)
    assert found_ids(tmp_path / "cache", rows) == [f"a:{row}" for row in range(600)]
    report = verify_cache(tmp_path / "cache", sample=600)
    assert (report.problems, report.sampled, report.found) == ([], 600, 600)
    assert (record.num_entries, len(record.values), record.index.key) == (600, 3, choice.key)


@pytest.mark.parametrize("choice", [LISTS, KINDS[3]], ids=lambda choice: choice.key)
def test_the_index_is_what_faiss_makes_of_the_same_rows(tmp_path, choice):
    """Put together part by part, or all in memory by FAISS: the same results to the last bit."""
    import faiss

    record, rows = make(tmp_path / "cache", choice=choice)
    stored = np.concatenate([np.load(tmp_path / "cache" / file.file) for file in record.values])
    whole = train_index(choice.key, 16, stored[sample_rows(600, choice.num_training)])
    whole.add_with_ids(stored.astype(np.float32), np.arange(600))
    ours = open_index(tmp_path / "cache" / record.index.file)
    for index in (whole, ours):
        faiss.extract_index_ivf(index).nprobe = 3
    for mine, theirs in zip(ours.search(rows, 10), whole.search(rows, 10), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("choice", KINDS, ids=lambda choice: choice.key)
def test_entries_come_and_go(tmp_path, choice):
    cache = tmp_path / "cache"
    _, old = make(cache, choice=choice)
    gone = [3, 255, 256, 599]
    record = remove_from_cache([f"a:{row}" for row in gone], cache, progress=False)
    assert (record.num_entries, record.num_rows) == (596, 600)
    assert not {f"a:{row}" for row in gone} & set(found_ids(cache, old[gone]))
    np.save(tmp_path / "b.npy", vectors(300, seed=1))
    record = add_to_cache(
        open_embeddings(tmp_path / "b.npy"), cache, fingerprint=FINGERPRINT, progress=False,
        budget=Budget(choice=choice),
    )  # fmt: skip
    assert (record.num_entries, record.num_rows, record.index.key) == (896, 900, choice.key)
    new = unit(vectors(300, seed=1))
    assert found_ids(cache, new) == [f"b:{row}" for row in range(300)]
    kept = np.setdiff1d(np.arange(600), gone)
    assert found_ids(cache, old[kept]) == [f"a:{row}" for row in kept]
    remove_from_cache(["b:7", "a:0"], cache, progress=False)
    assert verify_cache(cache).problems == []
    assert describe_cache(cache)["removed"] == 6
    names = {file.file for file in StoredVisualCache.open(cache).record.files()} | {"config.json"}
    assert set(files_of(cache)) == names  # of older generations nothing is left


def test_a_removed_id_may_come_back(tmp_path):
    _, rows = make(tmp_path / "cache")
    remove_from_cache(["a:5"], tmp_path / "cache", progress=False)
    table = {"id": ["a:5"], "embedding": [rows[5].tolist()]}
    pq.write_table(pa.table(table), tmp_path / "again.parquet")
    again = open_embeddings(tmp_path / "again.parquet")
    add_to_cache(again, tmp_path / "cache", fingerprint=FINGERPRINT, progress=False)
    assert found_ids(tmp_path / "cache", rows[5:6]) == ["a:5"]
    remove_from_cache(["a:5"], tmp_path / "cache", progress=False)
    assert found_ids(tmp_path / "cache", rows[5:6]) != ["a:5"]


def test_a_flat_cache_that_outgrows_exact_search_gets_lists(tmp_path, monkeypatch):
    make(tmp_path / "cache", rows=100, choice=Choice())
    np.save(tmp_path / "b.npy", vectors(500, seed=1))
    record = add_to_cache(
        open_embeddings(tmp_path / "b.npy"), tmp_path / "cache", fingerprint=FINGERPRINT, progress=False,
        budget=Budget(choice=LISTS),
    )  # fmt: skip
    assert record.index.key == LISTS.key
    assert verify_cache(tmp_path / "cache").is_sound


def test_reindexing_trains_anew(tmp_path):
    make(tmp_path / "cache")
    np.save(tmp_path / "b.npy", vectors(50, seed=1))
    record = add_to_cache(
        open_embeddings(tmp_path / "b.npy"), tmp_path / "cache", fingerprint=FINGERPRINT, progress=False,
        budget=Budget(choice=KINDS[2]), reindexes=True,
    )  # fmt: skip
    assert record.index.key == "IVF8,Flat"
    assert verify_cache(tmp_path / "cache").is_sound


def test_removing_refuses_what_is_not_there_and_changes_nothing(tmp_path):
    make(tmp_path / "cache", rows=300)
    before = files_of(tmp_path / "cache")
    with pytest.raises(ConfigError, match="2 of 3 ids are not in .*: 'b:0', 'a:300'; nothing was removed"):
        remove_from_cache(["a:1", "b:0", "a:300"], tmp_path / "cache", progress=False)
    with pytest.raises(ConfigError, match="nothing would be left"):
        remove_from_cache([f"a:{row}" for row in range(300)], tmp_path / "cache", progress=False)
    with pytest.raises(ConfigError, match="no ids are given"):
        remove_from_cache([], tmp_path / "cache", progress=False)
    assert files_of(tmp_path / "cache") == before
    remove_from_cache(["a:1"], tmp_path / "cache", progress=False)
    with pytest.raises(ConfigError, match="1 of 1 ids are not in"):
        remove_from_cache(["a:1"], tmp_path / "cache", progress=False)


def test_an_id_that_is_there_twice_is_named_with_both_rows(tmp_path):
    names = [f"p{row}" for row in range(300)]
    names[290] = "p7"
    pq.write_table(pa.table({"id": names, "embedding": vectors(300).tolist()}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"the id 'p7' is there twice: as row 7 .* and again as row 290, from"):
        build_cache(open_embeddings(tmp_path / "a.parquet"), tmp_path / "cache", fingerprint="f", progress=False)
    make(tmp_path / "b-cache")
    before = files_of(tmp_path / "b-cache")
    np.save(tmp_path / "a.npy", vectors(2, seed=9))
    again = open_embeddings(tmp_path / "a.npy")
    with pytest.raises(ConfigError, match=r"the id 'a:0' is there twice: as row 0 of the cache, and again as row 600"):
        add_to_cache(again, tmp_path / "b-cache", fingerprint=FINGERPRINT, progress=False)
    assert files_of(tmp_path / "b-cache").items() >= before.items()


def test_vectors_of_another_space_are_refused(tmp_path):
    make(tmp_path / "cache")
    np.save(tmp_path / "b.npy", vectors(5, seed=1))
    with pytest.raises(CheckpointError, match="made with another encoder than .*of mini"):
        add_to_cache(open_embeddings(tmp_path / "b.npy"), tmp_path / "cache", fingerprint="ffff", progress=False)
    np.save(tmp_path / "b.npy", vectors(5, dim=8))
    with pytest.raises(ConfigError, match="vectors of 8 numbers and .* of 16"):
        add_to_cache(open_embeddings(tmp_path / "b.npy"), tmp_path / "cache", fingerprint=FINGERPRINT, progress=False)
    build_cache(
        open_embeddings(tmp_path / "b.npy"), tmp_path / "other", fingerprint=FINGERPRINT, progress=False,
        budget=Budget(choice=Choice()),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="vectors of 8 numbers and .* of 16"):
        merge_caches([tmp_path / "cache", tmp_path / "other"], tmp_path / "merged", progress=False)


def test_merged_shards_find_what_each_of_them_found(tmp_path):
    _, first = make(tmp_path / "one", "a", 400)
    _, second = make(tmp_path / "two", "b", 300, seed=1, choice=Choice(), notice="CC BY 4.0")
    remove_from_cache(["a:17"], tmp_path / "one", progress=False)
    remove_from_cache(["b:0"], tmp_path / "two", progress=False)
    merged = tmp_path / "merged"
    record = merge_caches([tmp_path / "one", tmp_path / "two"], merged, budget=Budget(choice=LISTS), progress=False)
    assert (record.num_entries, record.num_rows, record.notice) == (698, 700, "CC BY 4.0")
    assert found_ids(merged, first[18:]) == [f"a:{row}" for row in range(18, 400)]
    assert found_ids(merged, second[1:]) == [f"b:{row}" for row in range(1, 300)]
    assert verify_cache(merged).problems == []
    assert verify_cache(tmp_path / "one").problems == []
    with pytest.raises(ConfigError, match="is not empty"):
        merge_caches([tmp_path / "one"], merged, progress=False)


def test_merging_refuses_an_id_of_two_caches(tmp_path):
    make(tmp_path / "one", "a", 300)
    make(tmp_path / "two", "a", 300, seed=1)
    with pytest.raises(ConfigError, match=r"the id 'a:0' is there twice: as row 0 of the cache, and again as row 300"):
        merge_caches([tmp_path / "one", tmp_path / "two"], tmp_path / "merged", progress=False)
    with pytest.raises(ConfigError, match="name a new folder"):
        merge_caches([tmp_path / "one", tmp_path / "two"], tmp_path / "two", progress=False)


def test_other_writers_wait_for_the_end_of_an_unfinished_one(tmp_path, monkeypatch):
    make(tmp_path / "cache")
    np.save(tmp_path / "b.npy", vectors(50, seed=1))

    def add(**options):
        return add_to_cache(
            open_embeddings(tmp_path / "b.npy"), tmp_path / "cache", fingerprint=FINGERPRINT, progress=False, **options
        )

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_index", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add()
    with pytest.raises(ConfigError, match=r"unfinished add of .*b\.npy .* before removing entries"):
        remove_from_cache(["a:0"], tmp_path / "cache", progress=False)
    assert verify_cache(tmp_path / "cache").is_sound  # the old one
    assert describe_cache(tmp_path / "cache")["unfinished"]["action"] == "add"
    assert add().num_entries == 650
    assert describe_cache(tmp_path / "cache")["unfinished"] is None


def test_verifying_tells_what_is_wrong(tmp_path):
    record, _ = make(tmp_path / "cache")
    path = tmp_path / "cache" / record.values[1].file
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\0\0")
    assert verify_cache(tmp_path / "cache").problems == [f"{path.name} is not what was written: its SHA-256 differs"]
    path.write_bytes(whole[:-2])
    assert "bytes, expected" in verify_cache(tmp_path / "cache").problems[0]
    path.unlink()
    assert verify_cache(tmp_path / "cache").problems == [f"{path.name} is missing"]


def test_verifying_finds_an_index_of_other_rows(tmp_path):
    """Every file is what was written, and yet they do not belong together."""
    from bindlm.checkpoints.state import sha256_of

    record, _ = make(tmp_path / "one", "a")
    make(tmp_path / "two", "b", seed=1)
    remove_from_cache(["b:0"], tmp_path / "two", progress=False)
    other = next((tmp_path / "two").glob("index-*.faiss"))
    for source, problem in ((other, "not each of the 600 entries once"), (None, "are not found by their own vectors")):
        target = tmp_path / "one" / record.index.file
        if source is None:
            make(tmp_path / "three", "b", seed=1)
            source = next((tmp_path / "three").glob("index-*.faiss"))
        target.write_bytes(source.read_bytes())
        config = json.loads((tmp_path / "one" / "config.json").read_text())
        config["index"] |= {"bytes": target.stat().st_size, "sha256": sha256_of(target)}
        config["index"]["search"], config["index"]["oversampling"] = {"nprobe": 1}, 1
        config["settings"]["top_k"] = 1
        (tmp_path / "one" / "config.json").write_text(json.dumps(config))
        assert problem in verify_cache(tmp_path / "one").problems[0]


def test_an_index_that_could_not_be_changed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'HNSW32' is none that a cache can be changed with"):
        make(tmp_path / "cache", choice=Choice("HNSW32"))
    with pytest.raises(ConfigError, match="FAISS makes no index of 'IVF8,XY'"):
        make(tmp_path / "cache2", choice=Choice("IVF8,XY"))
    with pytest.raises(ConfigError, match="has 512 lists, and only 500 vectors"):
        make(tmp_path / "cache3", choice=Choice("IVF512,SQ8"))


def test_settings_and_names_are_kept(tmp_path):
    settings = CacheSettings(top_k=3, alpha=0.25, modalities=("audio",))
    make(tmp_path / "cache", settings=settings, notice="CC BY 4.0")
    described = describe_cache(tmp_path / "cache")
    assert described["settings"]["alpha"] == 0.25
    assert (described["encoder"], described["fingerprint"], described["notice"]) == ("mini", FINGERPRINT, "CC BY 4.0")
    assert StoredVisualCache.open(tmp_path / "cache").config.top_k == 3


def test_a_sample_is_spread_and_never_twice_the_same():
    for rows, size in ((10, 10), (10, 20), (1000, 7), (1001, 500), (10**12, 50)):
        sample = sample_rows(rows, size)
        assert len(np.unique(sample)) == min(rows, size)
        assert sample.min() >= 0
        assert sample.max() < rows
        assert np.diff(sample).max(initial=0) <= 2 * rows / size + 1
    np.testing.assert_array_equal(sample_rows(10**6, 100), sample_rows(10**6, 100))


def test_half_of_a_sample_trains_a_quantiser(monkeypatch):
    """The codes' quantiser sees as much of the sample as fp32 has room for; k-means all of it."""
    monkeypatch.setattr(training_module, "_FP32_BYTES", 4 * 16 * 100)
    index = train_index("IVF4,SQ8", 16, unit(vectors(400)).astype(np.float16))
    assert index.is_trained
    index.add(unit(vectors(400)))
    assert (index.search(unit(vectors(400)), 1)[1][:, 0] == np.arange(400)).mean() > 0.9


def test_a_cache_of_one_entry_and_names_beyond_utf8(tmp_path):
    save_embeddings(tmp_path / "a\udcff", [1])
    record = build_cache(
        open_embeddings(tmp_path / "a\udcff"), tmp_path / "cache", fingerprint="f", budget=Budget(choice=Choice()),
        progress=False,
    )  # fmt: skip
    assert record.num_entries == 1
    assert verify_cache(tmp_path / "cache").is_sound
