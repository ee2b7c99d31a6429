import pickle

import numpy as np
import pytest
import torch

from bindlm.errors import CheckpointError, ConfigError
from bindlm.training.features import FeatureStore, extract_features
from bindlm.training.features import store as store_module
from bindlm.training.stage_recipe import FeaturesConfig

from ...fake_embedder import FakeEmbedder
from .folder_source import FolderSource, save_pictures


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def source(tmp_path):
    return FolderSource(save_pictures(tmp_path / "pictures", 9))


@pytest.fixture
def config(tmp_path):
    return FeaturesConfig(str(tmp_path / "store"), shard_size=4)


@pytest.fixture
def store(source, config):
    return extract_features([source], FakeEmbedder(), config, progress=False).store


def keys_of(source):
    return [f"photos/{row['media']}" for row in source.rows]


def test_rows_come_in_the_order_asked_across_shards(store, source):
    keys = keys_of(source)
    rows = [store.row_of(key) for key in keys]
    assert sorted(rows) == list(range(9))
    assert store.rows_of(["photos/none.png", *keys]).tolist() == [-1, *rows]
    mixed = [rows[5], rows[0], rows[8], rows[0]]
    one_by_one = torch.cat([store.get([row], [0]) for row in mixed])
    assert torch.equal(store.get(mixed, [0] * 4), one_by_one)
    assert store.get(mixed, [0] * 4).dtype == torch.float32


def test_what_is_not_there_is_an_error_and_never_another_row(store):
    for rows, views in (([9], [0]), ([-1], [0]), ([0], [1]), ([0], [-1]), ([0, 1], [0])):
        with pytest.raises(ConfigError, match=r"FeatureStore\.get"):
            store.get(rows, views)
    with pytest.raises(ConfigError, match="no embedding of 'photos/nothing.png'"):
        store.row_of("photos/nothing.png")
    assert "photos/nothing.png" not in store
    assert 3 not in store


def test_keys_whose_hashes_agree_are_told_apart_by_their_letters(store, source, monkeypatch):
    keys = keys_of(source)
    rows = [store.row_of(key) for key in keys]
    store._hash = np.zeros_like(store._hash)  # as if all of them had the same
    monkeypatch.setattr(store_module, "key_digest", lambda key: bytes(16))
    assert [store.row_of(key) for key in keys] == rows
    assert store.rows_of([*keys, "photos/none.png"]).tolist() == [*rows, -1]


def test_a_store_travels_to_another_process_as_its_path(store, source, config):
    packed = pickle.dumps(store)
    assert len(packed) < 1000
    again = pickle.loads(packed)
    keys = keys_of(source)
    assert torch.equal(again.get(again.rows_of(keys), [0] * 9), store.get(store.rows_of(keys), [0] * 9))
    save_pictures(source.folder, 1, start=20)
    extract_features([FolderSource(source.folder)], FakeEmbedder(), config, progress=False)
    with pytest.raises(CheckpointError, match="has changed while it was in use"):
        pickle.loads(packed)  # its rows are counted otherwise now


def test_an_open_store_goes_on_while_another_run_adds_to_it(store, source, config):
    keys = keys_of(source)
    before = FeatureStore.open(config.path)
    expected = store.get(store.rows_of(keys), [0] * 9)
    save_pictures(source.folder, 5, start=20)
    extract_features([FolderSource(source.folder)], FakeEmbedder(), config, progress=False)
    assert torch.equal(before.get(before.rows_of(keys), [0] * 9), expected)


def test_no_store_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="holds no feature store; run `bindlm features RECIPE`"):
        FeatureStore.open(tmp_path / "nowhere")


def test_a_shard_damaged_after_opening_is_an_error(store, source, config):
    closed = next(shard for shard in store._record.shards if not shard.is_open)
    path = store.path / closed.file
    content = bytearray(path.read_bytes())
    content[8:12] = b"XXXX"  # of the header
    path.write_bytes(content)
    again = FeatureStore.open(config.path)
    with pytest.raises(CheckpointError, match="is damaged: shards/.*--verify"):
        again.get(range(9), [0] * 9)
