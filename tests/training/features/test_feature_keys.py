import os

import numpy as np
import pytest

from bindlm.training.features import digests
from bindlm.training.features.digests import ABSENT, DigestMap, as_rows, bytes_digest, file_digest, key_digest
from bindlm.training.features.keys import KeyEntry, KeyTable, key_tensors, latest_positions
from bindlm.training.features.shards import write_keys


def random_digests(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


def test_a_map_agrees_with_a_dictionary(monkeypatch):
    monkeypatch.setattr(digests, "_RECENT", 7)
    rows = random_digests(300)
    rows[100:200, :8] = rows[0, :8]  # digests that share the half they are sorted by
    mapped, expected = DigestMap(), {}
    for number, row in enumerate(rows[:250]):
        mapped.add(row.tobytes(), number)
        expected[row.tobytes()] = number
    assert [mapped.get(row.tobytes()) for row in rows] == [expected.get(row.tobytes(), ABSENT) for row in rows]
    assert mapped.look_up(rows).tolist() == [*range(250), *[ABSENT] * 50]
    assert len(mapped) == 250


def test_many_at_once_are_taken_in_like_one_by_one():
    rows = random_digests(5000)
    mapped = DigestMap()
    mapped.add_many(rows[:2000], np.arange(2000))
    mapped.add_many(rows[2000:2010], np.arange(2000, 2010))
    mapped.add_many(rows[2010:4500], np.arange(2010, 4500))
    assert mapped.look_up(rows).tolist() == [*range(4500), *[ABSENT] * 500]
    assert rows[4000].tobytes() in mapped
    assert rows[4600].tobytes() not in mapped


def test_an_entry_costs_24_bytes():
    mapped = DigestMap()
    mapped.add_many(random_digests(10_000), np.arange(10_000))
    assert sum(array.nbytes for run in mapped._runs for array in run) == 240_000


def test_a_file_and_its_bytes_have_one_digest_a_sense(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    digest, size, mtime_ns = file_digest(path, "image")
    assert digest == bytes_digest(path.read_bytes(), "image") != bytes_digest(path.read_bytes(), "video")
    assert (size, mtime_ns) == (3_000_000, path.stat().st_mtime_ns)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        file_digest(tmp_path / "pipe", "image")


def test_keys_of_any_letters_come_back_and_the_last_of_a_key_counts(tmp_path):
    keys = ["a/ü.png", "a/", "b/\udcff.png", "a/日本.png", "a/x y.png"]
    first = [KeyEntry(key, bytes([number]) * 16, number, -1) for number, key in enumerate(keys)]
    second = [KeyEntry(keys[2], bytes([9]) * 16, 99, 5)]
    files = [write_keys(tmp_path, key_tensors(entries)) for entries in (first, second)]
    table = KeyTable([(tmp_path / file.file, file.rows) for file in files])
    assert [table.entry(position) for position in range(6)] == [*first, *second]
    assert sorted(latest_positions(table).tolist()) == [0, 1, 3, 4, 5]
    hashes = as_rows([key_digest(table.entry(position).key) for position in latest_positions(table)])
    assert (np.diff(hashes.view(np.int64).reshape(-1, 2)[:, 0]) > 0).all()
