import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bindlm.errors import CheckpointError, ConfigError
from bindlm.training.features import FeatureStore, extract_features
from bindlm.training.stage_recipe import FeaturesConfig, ViewsConfig

from ...fake_embedder import FakeEmbedder
from .folder_source import FolderSource, save_pictures

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def pictures(tmp_path):
    return save_pictures(tmp_path / "pictures", 10)


@pytest.fixture
def config(tmp_path):
    return FeaturesConfig(str(tmp_path / "store"), batch_size=2, shard_size=4)


def extract(sources, config, embedder=None, **options):
    sources = sources if isinstance(sources, list) else [sources]
    return extract_features(sources, embedder or FakeEmbedder(), config, progress=False, **options)


def files_of(path):
    """Every file of a store with its bytes."""
    path = Path(path)
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def shards_of(path):
    return {name: content for name, content in files_of(path).items() if name.startswith("shards/")}


def assert_fits(store, source, embedder=None):
    """Every medium has the embedding that the embedder gives, within the rounding to fp16."""
    embedder = embedder or FakeEmbedder()
    for row in source.rows:
        found = store.get([store.row_of(f"{source.name}/{row['media']}")], [0])
        expected = embedder.embed(**{row["modality"]: [source.read_media(row["media"])]})
        torch.testing.assert_close(found, expected, atol=2**-11, rtol=0)  # half a unit in the last place below 1


def test_every_medium_has_the_embedding_that_the_embedder_gives(pictures, config):
    source = FolderSource(pictures)
    report = extract(source, config)
    assert (report.embedded, report.reused, report.unreadable) == (10, 0, [])
    assert (len(report.store), report.store.dim, report.store.num_views) == (10, 3, 1)
    assert report.store.modalities == {"image": 10}
    assert_fits(report.store, source)


def test_bytes_and_files_give_the_same_shards(pictures, config, tmp_path):
    extract(FolderSource(pictures), config)
    other = FeaturesConfig(str(tmp_path / "other"), batch_size=2, shard_size=4)
    extract(FolderSource(pictures, as_bytes=True), other)
    assert shards_of(config.path) == shards_of(other.path)


def test_a_second_run_embeds_nothing_and_leaves_every_byte(pictures, config):
    extract(FolderSource(pictures), config)
    before = files_of(config.path)
    embedder = FakeEmbedder()
    report = extract(FolderSource(pictures), config, embedder)
    assert (report.embedded, report.reused, embedder.seen) == (0, 10, [])
    assert files_of(config.path) == before


def test_media_of_the_same_content_are_embedded_once(pictures, config):
    shutil.copy(pictures / "003.png", pictures / "copy.png")
    embedder = FakeEmbedder()
    report = extract([FolderSource(pictures), FolderSource(pictures, name="again")], config, embedder)
    assert (report.embedded, report.reused) == (10, 12)
    assert len(embedder.seen) == 10
    keys = ["photos/003.png", "photos/copy.png", "again/003.png", "again/copy.png"]
    assert len({report.store.row_of(key) for key in keys}) == 1


def test_one_file_taken_with_two_senses_has_two_embeddings(tmp_path, config):
    save_pictures(tmp_path / "media", 1)
    sources = [FolderSource(tmp_path / "media"), FolderSource(tmp_path / "media", name="sounds", modality="audio")]
    store = extract(sources, config).store
    assert store.row_of("photos/000.png") != store.row_of("sounds/000.png")
    assert store.modalities == {"image": 1, "audio": 1}


def test_a_medium_given_with_two_senses_is_an_error(tmp_path, config):
    source = FolderSource(save_pictures(tmp_path / "media", 1))
    source.rows = [*source.rows, {"media": "000.png", "modality": "audio"}]
    with pytest.raises(ConfigError, match=r"'photos/000.png' is given as image and as audio"):
        extract(source, config)


def test_a_sense_that_the_encoder_lacks_is_an_error(tmp_path, config):
    source = FolderSource(save_pictures(tmp_path / "media", 1), modality="audio")
    with pytest.raises(ConfigError, match="sense 'audio', and fake takes image"):
        extract(source, config, FakeEmbedder(("image",)))


def test_two_sources_of_one_name_are_an_error(pictures, config):
    with pytest.raises(ConfigError, match="Two sources are called 'photos'"):
        extract([FolderSource(pictures), FolderSource(pictures)], config)


def test_rows_without_a_medium_are_passed_over(pictures, config):
    source = FolderSource(pictures)
    source.rows.insert(3, {"media": None, "modality": "image"})
    assert extract(source, config).embedded == 10


def test_data_sets_of_arrow_are_read(pictures, config):
    datasets = pytest.importorskip("datasets")
    source = FolderSource(pictures)
    columns = {"media": [row["media"] for row in source.rows], "modality": ["image"] * 10, "id": list(range(10))}
    for kind in (datasets.Dataset.from_dict(columns), datasets.Dataset.from_dict(columns).to_iterable_dataset()):
        source.rows = kind
        assert len(extract(source, config).store) == 10


# --- what cannot be used ---


def test_unreadable_media_are_listed_and_absent_and_not_tried_again(pictures, config):
    (pictures / "004.png").write_bytes(b"no picture")
    shutil.copy(pictures / "004.png", pictures / "bad.png")
    media = [*sorted(each.name for each in pictures.iterdir()), "gone.png"]
    report = extract(FolderSource(pictures, media=media), config)
    assert [key for key, _ in report.unreadable] == ["photos/004.png", "photos/bad.png", "photos/gone.png"]
    assert (report.embedded, report.reused, len(report.store)) == (9, 0, 9)
    assert "photos/004.png" not in report.store
    with pytest.raises(ConfigError, match=r"no embedding of 'photos/bad.png': run `bindlm features RECIPE`"):
        report.store.row_of("photos/bad.png")
    lines = (Path(config.path) / "unreadable.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [key for key, _ in report.unreadable]
    embedder = FakeEmbedder()
    assert extract(FolderSource(pictures, media=media), config, embedder).unreadable == report.unreadable
    assert embedder.seen == []


def test_a_mended_file_is_embedded_and_no_longer_listed(pictures, config):
    good = (pictures / "004.png").read_bytes()
    (pictures / "004.png").write_bytes(b"no picture")
    extract(FolderSource(pictures), config)
    (pictures / "004.png").write_bytes(good)
    report = extract(FolderSource(pictures), config)
    assert (report.embedded, report.unreadable) == (1, [])
    assert not (Path(config.path) / "unreadable.jsonl").exists()
    assert_fits(report.store, FolderSource(pictures))


def test_what_the_encoder_makes_no_number_of_is_unreadable(tmp_path, config):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").write_text("nan")
    (tmp_path / "sounds" / "b.wav").write_text("red")
    report = extract(FolderSource(tmp_path / "sounds", modality="audio"), config)
    assert [key for key, _ in report.unreadable] == ["photos/a.wav"]
    assert "the encoder makes no number of it" in report.unreadable[0][1]


def test_no_media_at_all_make_an_empty_store(tmp_path, config):
    (tmp_path / "none").mkdir()
    report = extract(FolderSource(tmp_path / "none"), config)
    assert (report.embedded, len(report.store)) == (0, 0)
    assert report.store.get([], []).shape == (0, 3)


def test_only_unreadable_media_make_an_empty_store(tmp_path, config):
    (tmp_path / "bad").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "bad" / name).write_bytes(name.encode())
    report = extract(FolderSource(tmp_path / "bad"), config)
    assert (len(report.unreadable), len(report.store)) == (2, 0)
    FeatureStore.open(config.path).verify(full=True)


# --- data that change ---


def test_a_changed_file_is_stale_until_it_is_embedded_again(pictures, config):
    source = FolderSource(pictures)
    store = extract(source, config).store
    assert store.stale([source]) == []
    (pictures / "002.png").write_bytes((pictures / "009.png").read_bytes())
    os.utime(pictures / "005.png")  # touched, and still the same
    assert store.stale([source]) == ["photos/002.png"]
    report = extract(source, config)
    assert report.embedded == 0  # the content was known under another name
    assert report.store.stale([source]) == []
    assert report.store.row_of("photos/002.png") == report.store.row_of("photos/009.png")
    assert_fits(report.store, source)


def test_a_file_that_is_gone_keeps_its_embedding(pictures, config):
    source = FolderSource(pictures)
    before = extract(source, config).store
    expected = before.get([before.row_of("photos/002.png"), before.row_of("photos/009.png")], [0, 0])
    (pictures / "002.png").unlink()
    (pictures / "009.png").unlink()
    report = extract(source, config)
    assert (report.embedded, report.unreadable, report.store.stale([source])) == (0, [], [])
    rows = report.store.rows_of(["photos/002.png", "photos/009.png"])
    assert torch.equal(report.store.get(rows, [0, 0]), expected)


def test_a_file_that_changes_while_it_is_embedded_is_not_taken(pictures, config):
    class Meddler(FakeEmbedder):
        def encode(self, modality, values):
            if len(self.batches) == 1:
                (pictures / "003.png").write_bytes(b"something else entirely")
            return super().encode(modality, values)

    report = extract(FolderSource(pictures), config, Meddler())
    assert [key for key, _ in report.unreadable] == ["photos/003.png"]
    assert "changed or went away while it was read" in report.unreadable[0][1]
    assert "photos/003.png" not in report.store
    shutil.copy(pictures / "001.png", pictures / "003.png")
    assert "photos/003.png" in extract(FolderSource(pictures), config).store


def test_added_data_embed_only_what_is_new_and_give_the_bytes_of_one_run(pictures, config, tmp_path):
    first = FolderSource(pictures)
    extract(first, config)
    save_pictures(pictures, 7, start=10)
    embedder = FakeEmbedder()
    report = extract(FolderSource(pictures), config, embedder)
    assert report.embedded == 7
    assert len(embedder.seen) == 7  # the open shard held one whole batch, which is not encoded again
    other = FeaturesConfig(str(tmp_path / "other"), batch_size=2, shard_size=4)
    extract(FolderSource(pictures), other)
    assert shards_of(config.path) == shards_of(other.path)
    assert_fits(report.store, FolderSource(pictures))


def test_two_data_sets_share_a_store(tmp_path, config):
    first = FolderSource(save_pictures(tmp_path / "first", 6), name="first")
    second = FolderSource(save_pictures(tmp_path / "second", 7, start=4), name="second")
    assert extract(first, config).embedded == 6
    report = extract(second, config)
    assert (report.embedded, report.reused) == (5, 2)
    for source in (first, second):
        assert_fits(report.store, source)
        embedder = FakeEmbedder()
        assert extract(source, config, embedder).embedded == 0
        assert embedder.seen == []


def test_another_shard_size_goes_on_in_the_same_store(pictures, config):
    extract(FolderSource(pictures), config)
    save_pictures(pictures, 5, start=10)
    larger = FeaturesConfig(config.path, batch_size=3, shard_size=100)
    assert extract(FolderSource(pictures), larger).embedded == 5
    assert_fits(FeatureStore.open(config.path), FolderSource(pictures))


# --- stopped ---


def test_ctrl_c_keeps_what_is_embedded_and_the_next_run_gives_the_same_bytes(pictures, config, tmp_path):
    class Impatient(FakeEmbedder):
        def stream(self, *arguments, **options):
            for number, row in super().stream(*arguments, **options):
                yield number, row
                if number == 2 and len(self.batches) > 2:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(FolderSource(pictures), config, Impatient())
    with pytest.raises(CheckpointError, match="is not finished; run `bindlm features RECIPE`, which goes on"):
        FeatureStore.open(config.path)
    embedder = FakeEmbedder()
    report = extract(FolderSource(pictures), config, embedder)
    assert len(embedder.seen) <= 10 - 6  # four of the first shard, two of a whole batch of the next
    assert_fits(report.store, FolderSource(pictures))
    other = FeaturesConfig(str(tmp_path / "other"), batch_size=2, shard_size=4)
    extract(FolderSource(pictures), other)
    assert shards_of(config.path) == shards_of(other.path)


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from fake_embedder import FakeEmbedder
from folder_source import FolderSource
from bindlm.training.features import extract_features
from bindlm.training.stage_recipe import FeaturesConfig

class Dying(FakeEmbedder):
    def preprocess(self, *args, **options):
        value = super().preprocess(*args, **options)
        if len(self.seen) == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

for shards, store in enumerate({stores!r}):  # forked, so that libraries are imported once
    if (child := os.fork()) == 0:
        embedder = Dying()
        embedder.last = 4 * shards + 2  # into the block that follows
        extract_features([FolderSource({pictures!r})], embedder, FeaturesConfig(store, batch_size=2, shard_size=4))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Pictures, and the stores of three runs that were killed after none, one and two shards of them."""
    folder = tmp_path_factory.mktemp("killed")
    pictures = save_pictures(folder / "pictures", 14)
    stores = [str(folder / f"store-{shards}") for shards in range(3)]
    paths = [str(TESTS), str(TESTS / "training" / "features"), str(TESTS.parent / "src")]
    script = KILLED.format(paths=paths, pictures=str(pictures), stores=stores)
    environment = {**os.environ, "BINDLM_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return pictures, stores


@pytest.mark.parametrize("shards", [0, 1, 2])
def test_a_killed_run_loses_at_most_one_shard(shards, killed, tmp_path):
    pictures, stores = killed
    config = FeaturesConfig(stores[shards], batch_size=2, shard_size=4)
    record = Path(config.path) / "store.json"
    held = len(json.loads(record.read_text())["shards"]) if record.is_file() else 0
    assert held == shards
    embedder = FakeEmbedder()
    report = extract(FolderSource(pictures), config, embedder)
    assert len(embedder.seen) == 14 - 4 * held
    assert_fits(report.store, FolderSource(pictures))
    other = FeaturesConfig(str(tmp_path / "other"), batch_size=2, shard_size=4)
    extract(FolderSource(pictures), other)
    assert files_of(config.path) == files_of(other.path)


def test_a_full_disk_is_said_and_leaves_a_store_that_goes_on(pictures, config, monkeypatch):
    from bindlm.training.features import shards

    real, left = shards.save_state_atomic, [3]

    def save(path, *arguments, **options):
        if left[0] == 0:
            raise CheckpointError(f"cannot write in {path.parent}: no space is left; free some space")
        left[0] -= 1
        real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_state_atomic", save)
        with pytest.raises(CheckpointError, match="no space is left"):
            extract(FolderSource(pictures), config)
    embedder = FakeEmbedder()
    report = extract(FolderSource(pictures), config, embedder)
    assert len(embedder.seen) == 6  # the first shard and its keys had been written
    assert_fits(report.store, FolderSource(pictures))


# --- another encoder, other views, damage ---


def test_another_encoder_is_refused_and_the_store_stays(pictures, config):
    extract(FolderSource(pictures), config)
    before = files_of(config.path)
    other = FakeEmbedder(fingerprint="fedcba9876543210", name="other")
    cure = "name another features.path, or delete the folder, and run `bindlm features RECIPE`"
    with pytest.raises(ConfigError, match=rf"another encoder \(fake, 0123456789abcdef; this is other.*{cure}"):
        extract(FolderSource(pictures), config, other)
    with pytest.raises(ConfigError, match="another encoder"):
        FeatureStore.open(config.path, fingerprint=other.fingerprint)
    assert files_of(config.path) == before


def test_other_views_are_refused(pictures, config):
    extract(FolderSource(pictures), config)
    two = FeaturesConfig(config.path, views=ViewsConfig(num_views=2), shard_size=4)
    with pytest.raises(ConfigError, match=r"other views \(num_views 1; the recipe has num_views 2, scale"):
        extract(FolderSource(pictures), two)
    with pytest.raises(ConfigError, match="other views"):
        FeatureStore.open(config.path, views=two.views)


def test_a_folder_that_is_no_store_is_left_alone(pictures, tmp_path):
    with pytest.raises(ConfigError, match="is there and is no feature store"):
        extract(FolderSource(pictures), FeaturesConfig(str(pictures)))


def change_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("folder", ["shards", "keys", "."])
@pytest.mark.parametrize("harm", ["removed", "cut", "changed"])
def test_damage_is_found_and_mended(pictures, config, folder, harm):
    source = FolderSource(pictures)
    store = extract(source, config).store
    good = shards_of(config.path)
    store.verify(full=True)
    victim = sorted((Path(config.path) / folder).glob("*.safetensors"))[0]
    if harm == "removed":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(victim.read_bytes()[:-7])
    else:
        change_last_byte(victim)
    if harm == "changed":  # lengths agree; only reading all of it tells
        with pytest.raises(CheckpointError, match="not what was written; run `bindlm features RECIPE --verify`"):
            FeatureStore.open(config.path).verify(full=True)
    else:
        with pytest.raises(CheckpointError, match="run `bindlm features RECIPE"):
            FeatureStore.open(config.path)
    report = extract(source, config, verify=harm == "changed")
    assert report.damaged == 1
    assert shards_of(config.path) == good
    report.store.verify(full=True)
    assert_fits(report.store, source)


def test_a_damaged_record_is_said(pictures, config):
    extract(FolderSource(pictures), config)
    record = Path(config.path) / "store.json"
    text = record.read_text()
    for bad, message in (
        (text[:-5], "store.json is not what was written"),
        (text.replace('"format": 1', '"format": 9'), "has format 9, and this bindlm reads 1"),
        (text.replace('"shards/', '"/shards/'), "store.json is not what was written"),
        ("[]", "store.json is not what was written"),
    ):
        record.write_text(bad)
        with pytest.raises(CheckpointError, match=message):
            FeatureStore.open(config.path)
        with pytest.raises(CheckpointError, match=message):
            extract(FolderSource(pictures), config)


# --- views ---


def test_views_differ_for_pictures_and_repeat_for_other_senses(tmp_path, config):
    pictures = FolderSource(save_pictures(tmp_path / "pictures", 3, size=(40, 30)))
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").write_text("red")
    sounds = FolderSource(tmp_path / "sounds", name="sounds", modality="audio")
    many = FeaturesConfig(config.path, views=ViewsConfig(num_views=3, scale=(0.2, 0.6)), batch_size=4, shard_size=4)
    store = extract([pictures, sounds], many).store
    assert store.num_views == 3
    row = store.row_of("photos/001.png")
    assert len({tuple(view) for view in store.get([row] * 3, [0, 1, 2]).tolist()}) == 3
    row = store.row_of("sounds/a.wav")
    assert len({tuple(view) for view in store.get([row] * 3, [0, 1, 2]).tolist()}) == 1


def test_views_stay_the_same_when_data_are_added(tmp_path, config):
    views = ViewsConfig(num_views=3)
    folder = save_pictures(tmp_path / "pictures", 5, size=(40, 30))
    (folder / "0015.png").write_bytes(b"no picture")
    many = FeaturesConfig(config.path, views=views, batch_size=4, shard_size=100)
    extract(FolderSource(folder), many)
    save_pictures(folder, 3, start=5, size=(40, 30))
    extract(FolderSource(folder), many)
    other = FeaturesConfig(str(tmp_path / "other"), views=views, batch_size=4, shard_size=100)
    extract(FolderSource(folder), other)
    assert shards_of(config.path) == shards_of(other.path)
    assert len(shards_of(config.path)) == 1


def test_a_shard_is_half_precision_and_of_unit_length(pictures, config):
    from safetensors.numpy import load_file

    extract(FolderSource(pictures), config)
    for file in (Path(config.path) / "shards").iterdir():
        state = load_file(file)
        assert set(state) == {"embedding", "content"}
        assert state["embedding"].dtype == np.float16
        assert state["content"].dtype == np.uint8
        np.testing.assert_allclose(np.linalg.norm(state["embedding"].astype(float), axis=-1), 1, atol=1e-3)
