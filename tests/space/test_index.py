"""The index on disk: exact, whole or refused, and never run as code."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.index import EmbeddingIndex, FileStamp, IndexEntry, UnreadableEntry, checksum

from ..tiny import unit_rows

SENSES = ("image", "audio", "text")


def index_of(rows: int = 30, dim: int = 8, seed: int = 0) -> EmbeddingIndex:
    entries = [
        IndexEntry(f"{number}.x", SENSES[number % 3], FileStamp(number, 10**18 + number, "ab" * 32))
        for number in range(rows)
    ]
    bad = [UnreadableEntry("bad.x", "image", FileStamp(1, 2, "cd" * 32), "It is broken.")]
    return EmbeddingIndex(
        unit_rows(rows, dim, seed), entries, fingerprint="f00d", model="tiny", unreadable=bad, version="1.2.3"
    )


@given(rows=st.integers(1, 40), top_k=st.integers(1, 50), seed=st.integers(0, 999))
def test_search_is_exact(rows: int, top_k: int, seed: int) -> None:
    index = index_of(rows, seed=seed)
    query = 3.0 * unit_rows(2, 8, seed + 1)
    cosines = query.double().numpy() / 3 @ index.vectors.double().numpy().T
    for hits, row in zip(index.search(query, top_k), cosines, strict=True):
        best = np.argsort(-row)[:top_k]
        assert [hit.key for hit in hits] == [f"{number}.x" for number in best]
        np.testing.assert_allclose([hit.score for hit in hits], row[best], atol=1e-5)


def test_search_may_look_among_one_sense_only() -> None:
    index = index_of()
    query = unit_rows(1, 8, 5)
    everything = index.search(query, 30)[0]
    for sense in SENSES:
        assert index.search(query, 30, modality=sense)[0] == [hit for hit in everything if hit.modality == sense]
    assert index.search(query, modality="depth") == [[]]


def test_one_query_may_be_a_vector_and_an_index_empty() -> None:
    index = index_of()
    assert index.search(index.vectors[4], 1)[0][0].key == "4.x"
    empty = EmbeddingIndex(torch.zeros(0, 8), [], fingerprint="f00d")
    assert empty.search(unit_rows(3, 8)) == [[], [], []]


def test_equal_vectors_come_in_the_order_of_their_rows() -> None:
    entries = [IndexEntry(f"{number}", "image") for number in range(5)]
    index = EmbeddingIndex(unit_rows(1, 8).expand(5, 8).contiguous(), entries, fingerprint="")
    assert [hit.key for hit in index.search(unit_rows(1, 8))[0]] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_saved_and_loaded_is_the_same(tmp_path: Path, rows: int) -> None:
    index = index_of(rows)
    index.save(tmp_path / "index")
    assert sorted(os.listdir(tmp_path / "index")) == ["entries.json", "index.faiss", "vectors.safetensors"]
    assert os.listdir(tmp_path) == ["index"], "no scratch is left"
    loaded = EmbeddingIndex.load(tmp_path / "index", fingerprint="f00d")
    assert torch.equal(loaded.vectors, index.vectors)
    for name in ("entries", "unreadable", "fingerprint", "model", "version", "dim"):
        assert getattr(loaded, name) == getattr(index, name), name
    query = unit_rows(2, 8, 9)
    assert loaded.search(query) == index.search(query)


def test_an_index_in_use_can_be_replaced(tmp_path: Path) -> None:
    index_of(30).save(tmp_path / "index")
    old = EmbeddingIndex.load(tmp_path / "index")
    query = unit_rows(1, 8, 9)
    before = old.search(query)
    index_of(5, seed=3).save(tmp_path / "index")
    assert old.search(query) == before
    assert len(EmbeddingIndex.load(tmp_path / "index")) == 5


def test_any_key_that_json_can_escape_survives(tmp_path: Path) -> None:
    keys = ["naïve 猫.png", os.fsdecode(b"\xff\xfe"), 'quote"\\\n\x00', "\ud800"]
    index = EmbeddingIndex(unit_rows(4, 8), [IndexEntry(key, "image") for key in keys], fingerprint="")
    index.save(tmp_path / "index")
    assert [entry.key for entry in EmbeddingIndex.load(tmp_path / "index").entries] == keys


def test_updates_drop_add_replace_and_leave_the_old_index_alone() -> None:
    index = index_of(4)
    fresh = unit_rows(2, 8, 7)
    other = index.updated(
        drop=["0.x"], add=[(IndexEntry("new", "text"), fresh[0]), (IndexEntry("2.x", "image"), fresh[1])]
    )
    assert [entry.key for entry in other.entries] == ["1.x", "3.x", "new", "2.x"]
    assert torch.equal(other.vectors, torch.cat([index.vectors[[1, 3]], fresh]))
    assert other.search(fresh[0], 1)[0][0].key == "new"
    assert [entry.key for entry in index.entries] == ["0.x", "1.x", "2.x", "3.x"]
    assert other.restamped({"new": FileStamp(5, 6)}).entries[2].stamp == FileStamp(5, 6)


def test_an_update_of_no_row_searches_the_same_mapped_file(tmp_path: Path) -> None:
    index_of().save(tmp_path / "index")
    index = EmbeddingIndex.load(tmp_path / "index")
    same = index.restamped({"1.x": FileStamp(5, 6)}).updated(drop=["none"], unreadable=[], version="2")
    assert same._faiss is index._faiss is not None
    changed = index.updated(drop=["3.x"])
    assert changed._faiss is None
    assert "3.x" not in [hit.key for hit in changed.search(index.vectors[3], 30)[0]]


# --- what is not whole ---


def overwrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "entries.json").read_text())
        content.update(changes)
        (folder / "entries.json").write_text(json.dumps(content))

    return change


def foreign_faiss(folder: Path) -> None:
    """Another kind of index of the right size, with the checksum that fits: FAISS would take it."""
    import faiss

    index = faiss.IndexFlatL2(8)
    index.add(unit_rows(30, 8).numpy())
    faiss.write_index(index, str(folder / "index.faiss"))
    refresh_checksums(folder)


def huge_faiss(folder: Path) -> None:
    data = bytearray((folder / "index.faiss").read_bytes())
    data[8:16] = (2**40).to_bytes(8, "little")
    (folder / "index.faiss").write_bytes(data)
    refresh_checksums(folder)


def fewer_vectors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"vectors": unit_rows(29, 8)}, folder / "vectors.safetensors")
    refresh_checksums(folder)


def refresh_checksums(folder: Path) -> None:
    edit(files={name: checksum(folder / name) for name in ("vectors.safetensors", "index.faiss")})(folder)


FAULTS: dict[str, Callable[[Path], None]] = {
    "vectors cut": overwrite("vectors.safetensors", lambda data: data[:-4]),
    "vectors flipped": overwrite("vectors.safetensors", lambda data: data[:-4] + b"\0\0\0\1"),
    "vectors empty": overwrite("vectors.safetensors", lambda data: b""),
    "vectors gone": lambda folder: (folder / "vectors.safetensors").unlink(),
    "vectors fewer": fewer_vectors,
    "faiss cut": overwrite("index.faiss", lambda data: data[:-1]),
    "faiss header cut": overwrite("index.faiss", lambda data: data[:20]),
    "faiss flipped": overwrite("index.faiss", lambda data: data[:100] + b"\1" + data[101:]),
    "faiss gone": lambda folder: (folder / "index.faiss").unlink(),
    "faiss of another kind": foreign_faiss,
    "faiss that claims to be huge": huge_faiss,
    "entries gone": lambda folder: (folder / "entries.json").unlink(),
    "entries empty": overwrite("entries.json", lambda data: b""),
    "entries cut": overwrite("entries.json", lambda data: data[: len(data) // 2]),
    "entries no text": overwrite("entries.json", lambda data: b"\xff" + data),
    "entries a list": overwrite("entries.json", lambda data: b"[]"),
    "entries deep": overwrite("entries.json", lambda data: b"[" * 100_000),
    "entries without files": edit(files={}),
    "entries with odd files": edit(files=3),
    "entries none": edit(entries=[]),
    "entries of numbers": edit(entries=[1, 2]),
    "entries short": edit(entries=[["a", "image"]] * 30),
    "entries with a text for a size": edit(entries=[["a", "image", "1", 2, ""]] * 30),
    "entries with one key": edit(entries=[["a", "image", 1, 2, ""]] * 30),
    "width a text": edit(dim="8"),
    "width another": edit(dim=4),
    "width negative": edit(dim=-8),
    "width huge": edit(dim=10**30),
    "unreadable odd": edit(unreadable=[[]]),
    "fingerprint a number": edit(fingerprint=3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_damaged_is_refused_with_the_cure(tmp_path: Path, fault: str) -> None:
    index_of().save(tmp_path / "index")
    FAULTS[fault](tmp_path / "index")
    with pytest.raises(CheckpointError, match=r"damaged: .*; delete the folder, and it is built anew"):
        EmbeddingIndex.load(tmp_path / "index")


def test_another_version_and_another_model_are_refused(tmp_path: Path) -> None:
    index_of().save(tmp_path / "index")
    with pytest.raises(CheckpointError, match=r"another model \(tiny, f00d; this is big, beef\).*delete the folder"):
        EmbeddingIndex.load(tmp_path / "index", fingerprint="beef", model="big")
    edit(version=2)(tmp_path / "index")
    with pytest.raises(CheckpointError, match="version 2, and this bindlm reads 1; delete the folder"):
        EmbeddingIndex.load(tmp_path / "index")


def test_no_index_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        with pytest.raises(CheckpointError, match="holds no index"):
            EmbeddingIndex.load(tmp_path / name)


def test_saving_never_replaces_what_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("work")
    for name in ("home", "file"):
        with pytest.raises(CheckpointError, match="is no index"):
            index_of().save(tmp_path / name)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years"
    assert (tmp_path / "file").read_text() == "work"


def test_a_disk_that_refuses_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    def refuse(index: object, path: str) -> None:
        raise RuntimeError("could not open /secret for writing: No space left on device")

    index_of(30).save(tmp_path / "index")
    monkeypatch.setattr(faiss, "write_index", refuse)
    with pytest.raises(CheckpointError, match="cannot write in") as caught:
        index_of(5).save(tmp_path / "index")
    assert "secret" not in str(caught.value)
    assert len(EmbeddingIndex.load(tmp_path / "index")) == 30
    assert os.listdir(tmp_path) == ["index"]


@pytest.mark.parametrize(
    "query", [torch.ones(1, 7), torch.ones(1, 1, 8), torch.zeros(8), torch.full((8,), torch.nan), torch.tensor(1.0)]
)
def test_impossible_queries_are_refused(query: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="query"):
        index_of().search(query)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="top_k"):
        index_of().search(torch.ones(8), 0)
    entries = [IndexEntry("a", "image"), IndexEntry("b", "image")]
    for vectors in (torch.ones(3, 8), torch.ones(2), torch.ones(2, 8).double()):
        with pytest.raises(ConfigError, match="fp32 vectors"):
            EmbeddingIndex(vectors, entries, fingerprint="")
    with pytest.raises(ConfigError, match="different keys"):
        EmbeddingIndex(torch.ones(2, 8), [entries[0]] * 2, fingerprint="")
