"""A cache on disk against one in memory, and what only a cache on disk can do."""

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bindlm.errors import ConfigError
from bindlm.space import CacheSettings, CacheWeighting, StoredVisualCache
from bindlm.space.cache_format import PULLED_SENSES

from ..tiny import unit_rows
from .stored import DIM, half, in_memory, opened, written

QUANTISED = {
    "IVF4,Flat": {"search": {"nprobe": 4}},
    "IVF4,SQ8": {"search": {"nprobe": 4}, "oversampling": 2},
    "IVF4,PQ4x4": {"search": {"nprobe": 4}, "oversampling": 80},
    "IDMap,Flat": {},
    "IDMap2,Flat": {},
}


@pytest.mark.parametrize("weighting", CacheWeighting)
@pytest.mark.parametrize("memory_map", [True, False])
def test_on_disk_and_in_memory_are_one_formula(tmp_path: Path, weighting: CacheWeighting, memory_map: bool) -> None:
    vectors, query = unit_rows(60, DIM, seed=1), 0.9 * unit_rows(5, DIM, seed=2)
    settings: dict[str, Any] = {"top_k": 7, "alpha": 0.4, "temperature": 12.0, "weighting": weighting}
    stored = opened(tmp_path, vectors, memory_map=memory_map, **settings)
    exact = in_memory(half(vectors), **settings)
    for ours, expected in zip(stored.search(query), exact.search(query), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stored.enhance(query), exact.enhance(query), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", QUANTISED)
def test_a_quantised_index_changes_neither_cosines_nor_values(tmp_path: Path, key: str) -> None:
    vectors, query = unit_rows(400, DIM, seed=1), unit_rows(6, DIM, seed=2)
    written(tmp_path, vectors, index_key=key, **QUANTISED[key])
    stored, exact = StoredVisualCache.open(tmp_path, top_k=5), in_memory(half(vectors), top_k=5)
    cosines, entries = stored.search(query)
    expected, _ = exact.search(query)
    torch.testing.assert_close(
        cosines, torch.einsum("bd,bkd->bk", query, half(vectors)[entries]), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(cosines, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stored.enhance(query), exact.enhance(query), rtol=1e-5, atol=1e-6)


def test_a_batch_is_its_rows_and_the_same_every_time(tmp_path: Path) -> None:
    stored, query = opened(tmp_path, unit_rows(200, DIM, seed=3)), unit_rows(24, DIM, seed=4)
    together = stored.enhance(query)
    assert torch.equal(stored.enhance(query), together)
    for row in range(len(query)):
        torch.testing.assert_close(stored.enhance(query[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-6)
        assert stored.search(query[row : row + 1])[1][0].tolist() == stored.search(query)[1][row].tolist()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("key", ["IDMap2,Flat", "IVF4,Flat"])
def test_ties_go_to_the_lowest_entry(tmp_path: Path, rows: int, key: str) -> None:
    vectors = torch.eye(DIM)[torch.arange(640) % 4]  # entries 1, 5, 9, … are the same picture, 160 times
    written(tmp_path, vectors, index_key=key, search={"nprobe": 4} if "IVF" in key else None)
    cosines, entries = StoredVisualCache.open(tmp_path, top_k=6).search(torch.eye(DIM)[1].expand(rows, DIM))
    assert entries.tolist() == [[1, 5, 9, 13, 17, 21]] * rows
    assert cosines.tolist() == [[1.0] * 6] * rows


def test_more_neighbours_than_the_nearest_lists_hold_are_found_in_the_others(tmp_path: Path) -> None:
    vectors = unit_rows(40, DIM, seed=5)
    written(tmp_path, vectors, index_key="IVF8,Flat", search={"nprobe": 1})
    query = unit_rows(2, DIM, seed=6)
    found = StoredVisualCache.open(tmp_path, top_k=38).search(query)
    for ours, expected in zip(found, in_memory(half(vectors), top_k=38).search(query), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_an_entry_itself_is_found_first_and_rows_of_all_shards_are(tmp_path: Path) -> None:
    vectors = unit_rows(60, DIM, seed=1)
    cosines, entries = opened(tmp_path, vectors, top_k=1).search(vectors)
    assert entries[:, 0].tolist() == list(range(60))
    torch.testing.assert_close(cosines[:, 0], torch.ones(60), rtol=0, atol=1e-5)


def test_a_removed_row_is_never_found_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    vectors = unit_rows(60, DIM, seed=1)
    written(tmp_path, vectors, removed=[4, 30])
    stored = StoredVisualCache.open(tmp_path, top_k=58)
    cosines, entries = stored.search(vectors[[4, 31]])
    assert sorted(entries[0].tolist()) == sorted(set(range(60)) - {4, 30})
    assert entries[1, 0] == 31
    assert stored.names_of([31])[0].id == "id-31"


def test_explain_names_what_enhance_draws_on(tmp_path: Path) -> None:
    vectors = unit_rows(60, DIM, seed=1)
    stored = opened(tmp_path, vectors, top_k=3)
    (neighbours,) = stored.explain(vectors[50:51])
    assert [each.entry for each in neighbours] == stored.search(vectors[50:51])[1][0].tolist()
    first = neighbours[0]
    assert (first.entry, first.id, first.caption, first.source) == (
        50, "id-50", "picture 50", "http://pictures/50.jpg",
    )  # fmt: skip
    assert first.similarity == pytest.approx(1.0, abs=1e-5)
    assert sum(each.weight for each in neighbours) == pytest.approx(1.0)
    mixed = sum(each.weight * half(vectors)[each.entry] for each in neighbours)
    blend = 0.5 * vectors[50] + 0.5 * torch.nn.functional.normalize(mixed, dim=-1)
    torch.testing.assert_close(
        stored.enhance(vectors[50:51])[0], torch.nn.functional.normalize(blend, dim=-1), rtol=1e-5, atol=1e-6
    )


def test_with_cosine_weights_the_weight_is_the_cosine(tmp_path: Path) -> None:
    (neighbours,) = opened(tmp_path, weighting="cosine", top_k=3).explain(unit_rows(1, DIM, seed=9))
    assert all(each.weight == each.similarity for each in neighbours)


def test_names_come_from_the_right_row_of_the_right_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bindlm.space.cache_writing.ROWS_IN_GROUP", 7)
    stored = opened(tmp_path)
    for row in (0, 6, 7, 24, 25, 49, 50, 59):
        (name,) = stored.names_of([row])
        caption = f"picture {row}" if row % 3 else None
        assert (name.id, name.caption, name.source) == (f"id-{row}", caption, f"http://pictures/{row}.jpg")


def test_rows_without_names_are_called_by_their_numbers(tmp_path: Path) -> None:
    written(tmp_path, ids=None, captions=None, sources=None)
    names = StoredVisualCache.open(tmp_path).names_of([3, 40])
    assert [(name.id, name.caption) for name in names] == [("3", None), ("40", None)]


def test_settings_come_from_the_folder_unless_given(tmp_path: Path) -> None:
    settings = CacheSettings(top_k=4, alpha=0.3, temperature=7.0, weighting=CacheWeighting.COSINE)
    written(tmp_path, settings=settings)
    config = StoredVisualCache.open(tmp_path).config
    assert (config.top_k, config.alpha, config.temperature, config.weighting) == (4, 0.3, 7.0, CacheWeighting.COSINE)
    assert config.modalities == PULLED_SENSES
    config = StoredVisualCache.open(tmp_path, alpha=0.9, modalities=["audio"]).config
    assert (config.top_k, config.alpha, config.modalities) == (4, 0.9, ("audio",))


def test_a_small_cache_gives_all_it_has(tmp_path: Path) -> None:
    assert opened(tmp_path, unit_rows(3, DIM)).search(unit_rows(1, DIM))[1].shape == (1, 3)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"top_k": 61}, "top_k must lie in 1..60"),
        ({"alfa": 1.0}, "takes top_k, alpha"),
        ({"modalities": "audio"}, "list"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        opened(tmp_path, **settings)


def test_pictures_are_left_as_they_are_unless_the_cache_says_otherwise(tmp_path: Path) -> None:
    written(tmp_path)
    cache = StoredVisualCache.open(tmp_path)
    assert not cache.pulls(["image"])
    assert cache.pulls(["image", "audio"]), "one sense that is pulled suffices"
    assert cache.pulls(None), "of senses unknown"
    assert StoredVisualCache.open(tmp_path, modalities=None).pulls(["image"])
    assert not StoredVisualCache.open(tmp_path, modalities=["audio"]).pulls(["text"])


@pytest.mark.parametrize("query", [torch.zeros(2, DIM + 1), torch.zeros(DIM), torch.full((1, DIM), float("nan"))])
def test_a_query_that_cannot_be_compared_is_refused(tmp_path: Path, query: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="A query must be"):
        opened(tmp_path).search(query)


def test_a_query_without_direction_still_gives_entries(tmp_path: Path) -> None:
    assert opened(tmp_path, top_k=2).search(torch.zeros(1, DIM))[1].tolist() == [[0, 1]]


def test_a_half_precision_query_is_answered_on_its_device(tmp_path: Path) -> None:
    enhanced = opened(tmp_path).enhance(unit_rows(2, DIM).half())
    assert enhanced.shape == (2, DIM)
    torch.testing.assert_close(enhanced.norm(dim=-1), torch.ones(2), rtol=1e-3, atol=1e-3)


def test_copies_share_the_files_and_a_pickle_opens_them_anew(tmp_path: Path) -> None:
    stored, query = opened(tmp_path, alpha=0.8), unit_rows(2, DIM, seed=2)
    copied = copy.deepcopy(stored)
    assert copied.files is stored.files
    copied.config.alpha = 0.1
    assert stored.config.alpha == 0.8
    restored = pickle.loads(pickle.dumps(stored))
    assert torch.equal(restored.enhance(query), stored.enhance(query))
    assert restored.files is not stored.files


def test_moving_and_saving_a_module_leaves_its_cache_on_disk(tmp_path: Path) -> None:
    stored, query = opened(tmp_path), unit_rows(2, DIM, seed=2)
    before = stored.enhance(query)
    assert torch.equal(stored.to("cpu", torch.bfloat16).enhance(query), before)
    assert not stored.state_dict()
    assert not list(stored.parameters())


def test_threads_may_search_at_once(tmp_path: Path) -> None:
    vectors = unit_rows(300, DIM, seed=1)
    stored, query = opened(tmp_path, vectors), unit_rows(8, DIM, seed=2)
    expected = stored.explain(query)
    wrong: list[object] = []

    def ask() -> None:
        for _ in range(5):
            try:
                found = stored.explain(query)
            except Exception as error:
                wrong.append(error)
                return
            if found != expected:
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_vectors_are_maps_of_their_files_not_copies(tmp_path: Path) -> None:
    assert all(isinstance(shard, np.memmap) for shard in opened(tmp_path).files.values._shards)
