"""An index that keeps up with its folder: only what is new or changed is embedded, whatever happens on the way."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bindlm import folder as folder_module
from bindlm.errors import CheckpointError, ConfigError, MediaError
from bindlm.folder import default_index_path, find_files, load_index, modality_of, update_index
from bindlm.space.index import EmbeddingIndex

from .fake_embedder import FakeEmbedder

SENSES = ("image", "audio", "video", "point")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("BINDLM_HOME", str(path))
    return path


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Two pictures, one of them deeper, and a sound."""
    folder = tmp_path / "media"
    (folder / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(folder / "red.png")
    Image.new("RGB", (8, 8), (0, 0, 255)).save(folder / "deep" / "blue.JPG", format="png")
    (folder / "sound.wav").write_text("red")
    (folder / "notes.txt").write_text("no medium")
    return folder


def keys_of(index: EmbeddingIndex) -> list[str]:
    return sorted(entry.key for entry in index.entries)


def test_every_file_of_a_known_sense_gets_a_row(media: Path) -> None:
    embedder = FakeEmbedder()
    update = update_index(media, embedder)
    assert keys_of(update.index) == ["deep/blue.JPG", "red.png", "sound.wav"]
    assert (update.embedded, update.kept, update.dropped, update.unreadable) == (3, 0, 0, ())
    assert update.path == media / ".bindlm-index"
    assert [hit.key for hit in update.index.search(torch.tensor([0.0, 0.0, 1.0]), 1)[0]] == ["deep/blue.JPG"]
    assert {hit.key for hit in update.index.search(torch.tensor([1.0, 0.0, 0.0]), 2)[0]} == {"red.png", "sound.wav"}


def test_a_second_update_embeds_nothing_and_writes_nothing(media: Path) -> None:
    first = update_index(media, FakeEmbedder())
    written = (first.path / "entries.json").stat().st_ino
    embedder = FakeEmbedder()
    again = update_index(media, embedder)
    assert (again.embedded, again.kept) == (0, 3)
    assert embedder.seen == []
    assert (first.path / "entries.json").stat().st_ino == written
    assert torch.equal(again.index.vectors, first.index.vectors)


def test_only_what_is_new_or_changed_is_embedded_and_what_is_gone_is_dropped(media: Path) -> None:
    update_index(media, FakeEmbedder())
    (media / "new.flac").write_text("green")
    (media / "sound.wav").write_text("blue and blue")
    (media / "red.png").unlink()
    embedder = FakeEmbedder()
    update = update_index(media, embedder)
    assert sorted(embedder.seen) == ["new.flac", "sound.wav"]
    assert (update.embedded, update.kept, update.dropped) == (2, 1, 2)
    assert keys_of(update.index) == ["deep/blue.JPG", "new.flac", "sound.wav"]
    sound = next(row for row, entry in enumerate(update.index.entries) if entry.key == "sound.wav")
    assert update.index.vectors[sound].argmax() == 2, "the row is of the new content"


def test_a_touched_file_is_compared_by_content_and_then_by_time_again(media: Path, monkeypatch: Any) -> None:
    update_index(media, FakeEmbedder())
    os.utime(media / "sound.wav", (10**9, 10**9))
    embedder = FakeEmbedder()
    assert update_index(media, embedder).kept == 3
    assert embedder.seen == []
    monkeypatch.setattr(folder_module, "_content_hash", lambda file: pytest.fail("the new time was not remembered"))
    assert update_index(media, embedder).kept == 3


def test_equal_size_with_other_content_is_a_change(media: Path) -> None:
    update_index(media, FakeEmbedder())
    (media / "sound.wav").write_text("der")
    os.utime(media / "sound.wav", (10**9, 10**9))
    assert update_index(media, FakeEmbedder()).embedded == 1


def test_a_moved_file_keeps_its_row(media: Path) -> None:
    first = update_index(media, FakeEmbedder())
    shutil.move(media / "red.png", media / "deep" / "crimson.png")
    embedder = FakeEmbedder()
    update = update_index(media, embedder)
    assert embedder.seen == []
    assert (update.embedded, update.kept, update.dropped) == (0, 3, 0)
    assert keys_of(update.index) == ["deep/blue.JPG", "deep/crimson.png", "sound.wav"]
    assert update.index.search(torch.tensor([1.0, 0, 0]), 1, modality="image")[0][0].key == "deep/crimson.png"
    assert len(first.index) == len(EmbeddingIndex.load(update.path)) == 3


def test_bad_files_are_remembered_until_they_change(media: Path) -> None:
    (media / "bad.png").write_bytes(b"no picture")
    (media / "bad.wav").write_text("broken")
    (media / "odd.wav").write_text("nan")
    update = update_index(media, FakeEmbedder())
    assert update.embedded == 3
    assert [entry.key for entry in update.unreadable] == ["bad.png", "bad.wav", "odd.wav"]
    assert "bad.png" in update.unreadable[0].reason
    assert "no number" in update.unreadable[2].reason
    embedder = FakeEmbedder()
    again = update_index(media, embedder)
    assert embedder.seen == []
    assert again.unreadable == update.unreadable == load_index(media, embedder).unreadable
    (media / "bad.wav").write_text("mended: green")
    (media / "bad.png").unlink()
    third = update_index(media, embedder)
    assert embedder.seen == ["bad.wav"]
    assert [entry.key for entry in third.unreadable] == ["odd.wav"]


def test_another_bindlm_tries_bad_files_again(media: Path, monkeypatch: Any) -> None:
    (media / "bad.wav").write_text("broken")
    update_index(media, FakeEmbedder())
    monkeypatch.setattr("bindlm.__version__", "99.0")
    embedder = FakeEmbedder()
    for expected in (["bad.wav"], ["bad.wav"]):
        update_index(media, embedder)
        assert embedder.seen == expected


def test_a_file_that_turns_bad_loses_its_row(media: Path) -> None:
    update_index(media, FakeEmbedder())
    (media / "sound.wav").write_text("broken now")
    update = update_index(media, FakeEmbedder())
    assert keys_of(update.index) == ["deep/blue.JPG", "red.png"]
    assert [entry.key for entry in update.unreadable] == ["sound.wav"]
    assert keys_of(EmbeddingIndex.load(update.path)) == ["deep/blue.JPG", "red.png"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_update_goes_on_where_it_was(
    tmp_path: Path, stop: type[BaseException], monkeypatch: Any
) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.wav").write_text("red")
    embedder = FakeEmbedder()
    encode, calls = embedder.encode, []

    def encode_twice(modality: str, values: torch.Tensor) -> torch.Tensor:
        calls.append(modality)
        if len(calls) == 3:
            raise stop
        return encode(modality, values)

    monkeypatch.setattr(embedder, "encode", encode_twice)
    with pytest.raises(stop):
        update_index(tmp_path, embedder, batch_size=6)
    assert len(EmbeddingIndex.load(tmp_path / ".bindlm-index")) == 12
    second = FakeEmbedder()
    update = update_index(tmp_path, second, batch_size=6)
    assert second.seen == [f"{number:02}.wav" for number in range(12, 20)]
    assert len(update.index) == 20


def test_it_saves_on_the_way(tmp_path: Path, monkeypatch: Any) -> None:
    for number in range(4):
        (tmp_path / f"{number}.wav").write_text("red")
    sizes = []
    save = EmbeddingIndex.save
    monkeypatch.setattr(EmbeddingIndex, "save", lambda self, path: sizes.append(len(self)) or save(self, path))
    monkeypatch.setattr(folder_module, "_SAVE_COST", 0)
    update_index(tmp_path, FakeEmbedder(), batch_size=1, save_seconds=0.0)
    assert sizes == [1, 2, 3, 4]


def test_a_save_cut_between_its_renames_is_put_back(media: Path) -> None:
    path = update_index(media, FakeEmbedder()).path
    os.replace(path, path.with_name(f".{path.name}.replaced"))
    embedder = FakeEmbedder()
    assert update_index(media, embedder).kept == 3
    assert embedder.seen == []


def test_a_file_that_changes_while_it_is_read_is_read_again_next_time(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.wav").write_text("red")
    embedder = FakeEmbedder()
    preprocess = embedder.preprocess

    def preprocess_and_change(modality: str, source: Any, **options: Any) -> torch.Tensor:
        values = preprocess(modality, source, **options)
        Path(source).write_text("blue!")
        return values

    monkeypatch.setattr(embedder, "preprocess", preprocess_and_change)
    update_index(tmp_path, embedder)
    update = update_index(tmp_path, FakeEmbedder())
    assert update.embedded == 1
    assert update.index.vectors[0].argmax() == 2


def test_another_models_index_is_refused_and_stays(media: Path) -> None:
    path = update_index(media, FakeEmbedder(name="one")).path
    other = FakeEmbedder(name="two", fingerprint="f" * 16)
    for use in (update_index, load_index):
        with pytest.raises(CheckpointError, match=r"made with another model \(one, .*this is two.*delete the folder"):
            use(media, other)
    assert len(EmbeddingIndex.load(path)) == 3


def test_an_update_of_one_sense_leaves_the_others(media: Path) -> None:
    update_index(media, FakeEmbedder())
    (media / "sound.wav").unlink()
    (media / "red.png").unlink()
    update = update_index(media, FakeEmbedder(), modalities=["image"])
    assert keys_of(update.index) == ["deep/blue.JPG", "sound.wav"]


def test_only_senses_of_the_embedder_are_looked_for(media: Path) -> None:
    assert keys_of(update_index(media, FakeEmbedder(["image"])).index) == ["deep/blue.JPG", "red.png"]
    with pytest.raises(ConfigError, match="no 'audio'"):
        update_index(media, FakeEmbedder(["image"]), modalities=["audio"])
    with pytest.raises(ConfigError, match="cannot be told by their names"):
        update_index(media, FakeEmbedder(), modalities=["depth"])
    with pytest.raises(ConfigError, match="save_seconds"):
        update_index(media, FakeEmbedder(), save_seconds=float("nan"))


@pytest.mark.parametrize("name", ["missing", "red.png"])
def test_what_is_no_folder_is_a_media_error(media: Path, name: str) -> None:
    with pytest.raises(MediaError, match="no such folder"):
        update_index(media / name, FakeEmbedder())


def test_an_empty_folder_is_an_empty_index(tmp_path: Path) -> None:
    update = update_index(tmp_path, FakeEmbedder())
    assert len(update.index) == 0
    assert update.index.search(torch.ones(3)) == [[]]
    assert len(load_index(tmp_path, FakeEmbedder()).index) == 0


# --- what is looked at ---


def test_hidden_names_are_passed_over(media: Path) -> None:
    (media / ".thumbnails").mkdir()
    shutil.copy(media / "red.png", media / ".thumbnails" / "red.png")
    shutil.copy(media / "red.png", media / "._red.png")
    assert [file.key for file in find_files(media, SENSES)[0]] == ["deep/blue.JPG", "red.png", "sound.wav"]


def test_links_are_no_trap(media: Path) -> None:
    (media / "deep" / "up").symlink_to(media, target_is_directory=True)
    (media / "again").symlink_to(media / "deep", target_is_directory=True)
    (media / "self.png").symlink_to(media / "self.png")
    (media / "nowhere.png").symlink_to(media / "gone.png")
    (media / "device.wav").symlink_to("/dev/zero")
    (media / "alias.png").symlink_to(media / "red.png")
    expected = ["alias.png", "deep/blue.JPG", "red.png", "sound.wav"]
    for follow_links in (False, True):
        files, unlisted = find_files(media, SENSES, follow_links=follow_links)
        assert [file.key for file in files] == expected, "each folder once, under its real name"
        assert unlisted == []


def test_links_to_folders_elsewhere_are_followed_if_asked(media: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.wav").write_text("red")
    (media / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "link/far.wav" not in [file.key for file in find_files(media, SENSES)[0]]
    assert "link/far.wav" in [file.key for file in find_files(media, SENSES, follow_links=True)[0]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_opened(media: Path) -> None:
    os.mkfifo(media / "pipe.png")
    assert "pipe.png" not in keys_of(update_index(media, FakeEmbedder()).index)


def test_what_lies_in_a_folder_that_cannot_be_looked_into_stays(media: Path, monkeypatch: Any) -> None:
    update_index(media, FakeEmbedder())
    scandir = os.scandir

    def forbid(path: str) -> Any:
        if path.endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folder_module.os, "scandir", forbid)
    update = update_index(media, FakeEmbedder())
    assert update.unlisted == ("deep",)
    assert keys_of(update.index) == ["deep/blue.JPG", "red.png", "sound.wav"]


@pytest.mark.skipif(os.name != "posix", reason="file names are text here")
def test_a_name_that_is_no_text_survives_the_index(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \n.wav")
    try:
        (tmp_path / name).write_text("red")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    update_index(tmp_path, FakeEmbedder())
    embedder = FakeEmbedder()
    assert keys_of(update_index(tmp_path, embedder).index) == [name]
    assert embedder.seen == []


@pytest.mark.parametrize(
    ("name", "modality"),
    [("a.JPG", "image"), ("b/c.ogg", "audio"), ("d.mp4", "video"), ("e.ply", "point"), ("f.npy", None), ("png", None)],
)
def test_endings_tell_the_sense(name: str, modality: str | None) -> None:
    assert modality_of(name) == modality


# --- where the index lies ---


def test_a_folder_that_is_not_writable_has_its_index_in_the_cache(media: Path, cache: Path, monkeypatch: Any) -> None:
    update_index(media, FakeEmbedder())
    monkeypatch.setattr(folder_module.os, "access", lambda path, mode: False)
    path = default_index_path(media)
    assert path.parent == cache / "indexes"
    assert path != default_index_path(media / "deep")
    embedder = FakeEmbedder()
    update = update_index(media, embedder)
    assert update.path == path
    assert embedder.seen == [], "the index that came with the folder is taken over"
    assert len(EmbeddingIndex.load(path)) == 3


def test_a_folder_that_is_no_index_is_never_replaced(media: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError):
        update_index(media, FakeEmbedder(), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
