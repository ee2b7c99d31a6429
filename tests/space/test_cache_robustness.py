"""What may happen to a cache folder: it is refused with what to do, or read as it was, never read wrongly."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bindlm.caching import remove_from_cache
from bindlm.caching.shards import removed_rows
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space import StoredVisualCache, read_record
from bindlm.space.cache_format import (
    CONFIG,
    CacheFile,
    CacheRecord,
    entries_name,
    index_name,
    removed_name,
    unnamed_files,
    values_name,
    write_record,
)
from bindlm.space.cache_writing import write_entries, write_index, write_removed, write_values

from ..tiny import unit_rows
from .stored import DIM, FINGERPRINT, opened, written

INDEX, VALUES, ENTRIES, REMOVED = index_name(0), values_name(1), entries_name(1), removed_name(0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed_head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:40] = bytes(40)
    path.write_bytes(content)


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (Path.unlink, "is missing"),
    "cut short": (cut, "bytes, expected"),
    "emptied": (emptied, "has 0 bytes, expected"),
    "another head": (zeroed_head, "damaged"),
}


@pytest.mark.parametrize("file", [INDEX, VALUES, ENTRIES, REMOVED])
@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_file_is_refused_on_opening(tmp_path: Path, file: str, harm: str) -> None:
    written(tmp_path, removed=[3])
    damage, complaint = HARMS[harm]
    damage(tmp_path / file)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        StoredVisualCache.open(tmp_path)
    assert file in str(caught.value)
    assert "bindlm cache build" in str(caught.value)


@pytest.mark.parametrize("rows", [[7, 5], [5, 5], [-1, 5], [5, 60]], ids=["falling", "twice", "before", "beyond"])
def test_a_list_of_removed_rows_that_is_none_is_refused_by_readers_and_writers(
    tmp_path: Path, rows: list[int]
) -> None:
    record = written(tmp_path, removed=[5, 7])
    np.save(tmp_path / REMOVED, np.array(rows))  # as many numbers, and as many bytes
    for use in (
        lambda: StoredVisualCache.open(tmp_path),
        lambda: removed_rows(tmp_path, record),
        lambda: remove_from_cache(["id-9"], tmp_path, progress=False),
    ):
        with pytest.raises(CheckpointError, match="does not list rows of this cache"):
            use()


@pytest.mark.parametrize("file", [INDEX, VALUES, ENTRIES])
def test_a_single_changed_bit_is_seen_where_every_byte_is_verified(tmp_path: Path, file: str) -> None:
    written(tmp_path)
    StoredVisualCache.open(tmp_path, verify=True)
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file} is not what was written"):
        StoredVisualCache.open(tmp_path, verify=True)


def test_a_cache_of_another_encoder_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    StoredVisualCache.open(tmp_path, fingerprint=FINGERPRINT)
    with pytest.raises(CheckpointError, match="made with another encoder \\(tiny, 0123456789abcdef; .* is fedc"):
        StoredVisualCache.open(tmp_path, fingerprint="fedcba9876543210")


def test_an_index_of_another_width_or_number_is_refused(tmp_path: Path) -> None:
    """Though its size and its checksum are those of the record: somebody mixed up two caches."""
    record, other = written(tmp_path / "a"), written(tmp_path / "b", unit_rows(60, 2 * DIM))
    for wrong in (other.index, written(tmp_path / "c", unit_rows(50, DIM)).index):
        source = "b" if wrong is other.index else "c"
        (tmp_path / "a" / INDEX).write_bytes((tmp_path / source / INDEX).read_bytes())
        content = json.loads(record.to_json())
        content["index"] |= {"bytes": wrong.bytes, "sha256": wrong.sha256}
        (tmp_path / "a" / CONFIG).write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="is an index of .* entries of width"):
            StoredVisualCache.open(tmp_path / "a")


def test_entries_that_do_not_match_are_refused(tmp_path: Path) -> None:
    record = written(tmp_path)
    fewer = write_entries(tmp_path / "entries-000009.parquet", ["a", "b"])
    lying = CacheFile(fewer.file, record.entries[1].rows, fewer.bytes, fewer.sha256)
    entries = (record.entries[0], lying, record.entries[2])
    write_record(tmp_path, changed(record, entries=entries))
    cache = StoredVisualCache.open(tmp_path)
    assert cache.names_of([3])[0].id == "id-3"
    with pytest.raises(CheckpointError, match="does not hold the names of 25 rows"):
        cache.names_of([30])


def test_an_index_of_rows_that_are_not_there_is_refused_at_the_first_search(tmp_path: Path) -> None:
    import faiss

    vectors = unit_rows(60, DIM, seed=1).numpy()
    record = written(tmp_path)
    index = faiss.index_factory(DIM, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(vectors, np.arange(60) + 5)
    write_record(tmp_path, changed(record, index=write_index(tmp_path / index_name(7), index, "IDMap,Flat")))
    with pytest.raises(CheckpointError, match="names rows that are not there"):
        StoredVisualCache.open(tmp_path).search(torch.from_numpy(vectors[59:]))


def test_an_index_that_still_holds_a_removed_row_is_refused_when_it_finds_it(tmp_path: Path) -> None:
    import faiss

    vectors = unit_rows(60, DIM, seed=1).numpy()
    record = written(tmp_path, removed=[3])
    index = faiss.index_factory(DIM, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT)
    kept = np.setdiff1d(np.arange(60), [4])  # one row wrongly kept, another wrongly gone: the count is right
    index.add_with_ids(vectors[kept], kept)
    write_record(tmp_path, changed(record, index=write_index(tmp_path / index_name(7), index, "IDMap,Flat")))
    with pytest.raises(CheckpointError, match="names rows that are not there"):
        StoredVisualCache.open(tmp_path).search(torch.from_numpy(vectors[3:4]))


def test_a_value_overwritten_with_noise_is_not_mixed_in(tmp_path: Path) -> None:
    written(tmp_path)
    content = bytearray((tmp_path / values_name(0)).read_bytes())
    content[-2 * DIM :] = b"\x00\x3c" * DIM  # the last row of the shard, all ones
    (tmp_path / values_name(0)).write_bytes(content)
    cache = StoredVisualCache.open(tmp_path)
    with pytest.raises(CheckpointError, match="not of unit length"):
        cache.search(unit_rows(60, DIM, seed=1)[24:25])


def changed(record: CacheRecord, **parts: Any) -> CacheRecord:
    from dataclasses import replace

    return replace(record, **parts)


def edited(folder: Path, **parts: Any) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content = {name: value for name, value in {**content, **parts}.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"version": 2}, "version 2, and this bindlm reads 1; update bindlm"),
        ({"version": "1"}, "version '1'"),
        ({"model_type": "bindlm"}, "not that of a visual cache"),
        ({"metric": "l2"}, "metric is 'l2'"),
        ({"surprise": 1}, "got surprise too"),
        ({"dim": True}, "dim cannot be True"),
        ({"dim": ...}, "lacks a field"),
        ({"num_entries": 61}, "num_entries is 61, but there are 60 rows"),
        ({"values": []}, "at least one file of values"),
        ({"values": {}}, "values must be a list"),
        ({"fingerprint": ""}, "needs the fingerprint"),
        ({"index": None}, "CacheIndexFile must have the fields"),
        ({"settings": {"top_k": 10, "alpha": 2.0}}, "alpha must lie in"),
        ({"settings": {"modalities": [1]}}, "modalities cannot be"),
        ({"entries": [{"file": "../secret", "rows": 60, "bytes": 1, "sha256": "0" * 64}]}, "plain file name"),
        ({"removed": {"file": "r.npy", "rows": 0, "bytes": 1, "sha256": "x"}}, "64 hexadecimal digits"),
    ],
)
def test_a_record_that_was_not_written_so_is_refused(tmp_path: Path, parts: dict[str, Any], complaint: str) -> None:
    written(tmp_path)
    edited(tmp_path, **parts)
    with pytest.raises(CheckpointError, match=complaint):
        StoredVisualCache.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null"])
def test_a_record_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path)
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match="config.json cannot be used"):
        read_record(tmp_path)


@pytest.mark.parametrize("folder", ["nowhere", "empty", "file"])
def test_a_place_without_a_cache_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="holds no visual cache"):
        StoredVisualCache.open(tmp_path / folder)


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    record = written(tmp_path, removed=[1, 2], notice="for research only")
    assert read_record(tmp_path) == record
    assert record.num_rows == 60
    assert record.num_entries == 58


def test_what_a_killed_writer_left_is_no_part_of_the_cache(tmp_path: Path) -> None:
    record = written(tmp_path)
    before = StoredVisualCache.open(tmp_path).search(unit_rows(2, DIM))
    (tmp_path / values_name(3)).write_bytes(b"half of a sh")
    (tmp_path / index_name(1)).write_bytes(b"")
    (tmp_path / f".{CONFIG}.host.1.12345678.part").write_text("{")
    after = StoredVisualCache.open(tmp_path, verify=True).search(unit_rows(2, DIM))
    assert torch.equal(before[0], after[0])
    assert [path.name for path in unnamed_files(tmp_path, record)] == [index_name(1), values_name(3)]


def replaced(folder: Path, generation: int) -> None:
    """Another cache takes the place of the one in a folder, and the old one's files go."""
    vectors = unit_rows(60, DIM, seed=generation)
    values = write_values(folder / values_name(generation), [vectors.numpy()], 60, DIM)
    entries = write_entries(folder / entries_name(generation), [f"{generation}-{row}" for row in range(60)])
    import faiss

    index = faiss.index_factory(DIM, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(vectors.numpy(), np.arange(60))
    index_file = write_index(folder / index_name(generation), index, "IDMap2,Flat")
    record = changed(read_record(folder), values=(values,), entries=(entries,), index=index_file)
    write_record(folder, record)
    for path in unnamed_files(folder, record):
        path.unlink()


def test_an_open_cache_stays_what_it_was_when_a_writer_replaces_it(tmp_path: Path) -> None:
    cache, query = opened(tmp_path), unit_rows(3, DIM, seed=1)
    before = cache.search(query)
    replaced(tmp_path, 10)
    after = cache.search(query)
    assert torch.equal(before[0], after[0])
    assert cache.names_of([30])[0].id == "id-30", "though its file was removed before it was first read"
    assert StoredVisualCache.open(tmp_path).names_of([30])[0].id == "10-30"


def test_readers_meet_a_whole_cache_while_a_writer_replaces_it(tmp_path: Path) -> None:
    written(tmp_path)
    replaced(tmp_path, 10)
    faults: list[object] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                cache = StoredVisualCache.open(tmp_path)
                ids = [each.id for each in cache.names_of([0, 59])]
                generation = int(ids[0].split("-")[0])
                own = unit_rows(60, DIM, seed=generation)[7:8]
                if cache.search(own)[1][0, 0] != 7:
                    faults.append((generation, "a wrong neighbour"))
            except Exception as error:
                faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for generation in range(11, 26):
        replaced(tmp_path, generation)
    is_over.set()
    for reader in readers:
        reader.join()
    assert not faults


def test_an_opening_that_a_writer_crossed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    stale = read_record(tmp_path)
    replaced(tmp_path, 10)
    records = iter([stale])
    read = read_record
    monkeypatch.setattr("bindlm.space.cache_folder.read_record", lambda folder: next(records, None) or read(folder))
    assert StoredVisualCache.open(tmp_path).names_of([1])[0].id == "10-1"


@pytest.mark.parametrize(
    "vectors", [2 * unit_rows(4, DIM), torch.zeros(4, DIM), torch.full((4, DIM), float("nan")), unit_rows(4, DIM)[0]]
)
def test_vectors_that_are_not_of_unit_length_are_not_written(tmp_path: Path, vectors: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"unit length|must be \(N, D\)"):
        written(tmp_path, vectors)
    assert not (tmp_path / CONFIG).exists()


def test_chunks_must_make_up_the_rows_that_were_promised(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was to have 9 rows, and 8 came"):
        write_values(tmp_path / values_name(0), [unit_rows(4, DIM).numpy()] * 2, 9, DIM)
    assert not list(tmp_path.iterdir())


def test_rows_removed_are_listed_once_and_in_order(tmp_path: Path) -> None:
    assert write_removed(tmp_path / REMOVED, np.array([5, 2, 5])).rows == 2
    assert np.load(tmp_path / REMOVED).tolist() == [2, 5]
