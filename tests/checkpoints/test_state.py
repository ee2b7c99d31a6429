import errno
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bindlm.checkpoints import atomic_folder, load_pickled_state, load_state, save_state_atomic, sha256_of
from bindlm.errors import CheckpointError

from .conftest import wait_until

TENSORS = {
    "gate": torch.tensor([0.5, -1.0]),
    "weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "steps": torch.tensor(7),
}
SHAPES = {"gate": (2,), "weight": (2, 3), "steps": ()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


# --- safetensors ---


def test_saved_state_loads_bit_for_bit_with_its_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "new" / "model.safetensors"
    save_state_atomic(path, TENSORS, {"recipe": "mini"})
    assert_same(load_state(path, expected=SHAPES), TENSORS)
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"recipe": "mini"}
    assert [each.name for each in path.parent.iterdir()] == ["model.safetensors"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode, "as readable as any other file of this user"


def test_views_and_shared_tensors_are_saved_in_full(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "same": base, "row": base[1], "turned": base.T, "part": base[:, 1:3]}
    save_state_atomic(tmp_path / "m.safetensors", tensors)
    assert_same(load_state(tmp_path / "m.safetensors"), {name: each.clone() for name, each in tensors.items()})


def test_loaded_state_may_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_state_atomic(path, TENSORS)
    before = path.read_bytes()
    load_state(path)["gate"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 50, -1])
def test_truncated_safetensors_is_a_checkpoint_error(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_state_atomic(path, TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is truncated, damaged or no safetensors file; get it again"):
        load_state(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,999999]}} ',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ],
)
def test_what_is_no_safetensors_is_a_checkpoint_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="get it again"):
        load_state(path)


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    for load in (load_state, load_pickled_state, sha256_of):
        with pytest.raises(CheckpointError, match="is missing; expected a file"):
            load(tmp_path / "none")
        with pytest.raises(CheckpointError, match="is a folder; expected a file"):
            load(tmp_path)


def test_state_that_does_not_fit_names_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_state_atomic(path, TENSORS)
    for expected, claim in [
        ({**SHAPES, "bias": (1,)}, r"1 missing: bias"),
        ({"gate": (2,), "weight": (2, 3)}, r"1 not expected: steps"),
        ({**SHAPES, "weight": (3, 2)}, r"1 of another shape: weight has \(2, 3\), expected \(3, 2\)"),
        ({**SHAPES, **{f"layer{i}": (1,) for i in range(9)}}, r"9 missing: layer0, layer1, layer2, \.\.\."),
    ]:
        with pytest.raises(CheckpointError, match=claim):
            load_state(path, expected=expected)


# --- pickles ---


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.system, ("echo owned > owned",))


def test_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(1), "evil": Evil()}, tmp_path / "zip.pth")
    torch.save({"evil": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("zip.pth", "old.pth", "bare.pth"):
        with pytest.raises(CheckpointError, match="may be code and is never run"):
            load_pickled_state(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_published_state_loads_in_both_formats_of_torch(is_zip: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=is_zip)
    assert_same(load_pickled_state(path), TENSORS)


def test_entry_takes_the_state_out_of_a_larger_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    torch.save({"model": TENSORS, "epoch": 3}, path)
    assert_same(load_pickled_state(path, entry="model"), TENSORS)
    with pytest.raises(CheckpointError, match="no mapping of names to tensors: model, epoch; .* entry="):
        load_pickled_state(path)
    with pytest.raises(CheckpointError, match="holds no entry 'ema'; it holds: model, epoch"):
        load_pickled_state(path, entry="ema")
    with pytest.raises(CheckpointError, match="holds a int, expected tensors by name"):
        load_pickled_state(path, entry="epoch")
    torch.save((TENSORS, {"classes": 5}), path)
    assert_same(load_pickled_state(path, entry=0), TENSORS)
    with pytest.raises(CheckpointError, match="holds a tuple"):
        load_pickled_state(path)


def test_further_globals_must_be_allowed_by_name(tmp_path: Path) -> None:
    import numpy as np
    from numpy._core.multiarray import scalar

    path = tmp_path / "m.pth"
    torch.save((TENSORS, {"classes": np.float64(5)}), path)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_pickled_state(path, entry=0)
    allowed = [scalar, np.dtype, type(np.dtype("float64"))]
    assert_same(load_pickled_state(path, entry=0, allowed_globals=allowed), TENSORS)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load_pickled_state(path, entry=0)


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_truncated_pickle_is_a_checkpoint_error(keep: int, tmp_path: Path) -> None:
    for is_zip in (True, False):
        path = tmp_path / "m.pth"
        torch.save(TENSORS, path, _use_new_zipfile_serialization=is_zip)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError):
            load_pickled_state(path)


def test_empty_mapping_is_no_state(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="it is empty"):
        load_pickled_state(tmp_path / "m.pth")


# --- atomic writing ---


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save_state_atomic(path, TENSORS)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="no space is left") as raised:
        save_state_atomic(path, {"other": torch.ones(3)})
    assert str(tmp_path) in str(raised.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_told_though_safetensors_hides_it(tiny_disk: Callable[[int], Path]) -> None:
    disk = tiny_disk(1_000_000)
    save_state_atomic(disk / "m.safetensors", TENSORS)
    before = (disk / "m.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="no space is left"):
        save_state_atomic(disk / "m.safetensors", {"big": torch.ones(1_000_000)})
    assert (disk / "m.safetensors").read_bytes() == before
    assert [each.name for each in disk.iterdir()] == ["m.safetensors"]


def write(folder: Path, **files: str) -> None:
    with atomic_folder(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "checkpoint"
    write(folder, a="1", b="1")
    write(folder, a="2")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "2"}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FileNotFoundError])
def test_error_inside_keeps_the_old_folder(error: type[BaseException], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write(folder, a="old")

    def fail() -> None:
        with atomic_folder(folder) as new:
            (new / "a").write_text("new")
            raise error(2, "mine", "/elsewhere")

    with pytest.raises(error):
        fail()
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_full_disk_inside_keeps_the_old_folder(tiny_disk: Callable[[int], Path]) -> None:
    folder = tiny_disk(1_000_000) / "checkpoint"
    write(folder, a="old")
    with pytest.raises(CheckpointError, match="no space is left"):
        write(folder, a="x" * 2_000_000)
    assert (folder / "a").read_text() == "old"
    assert list(folder.parent.iterdir()) == [folder]


def test_failing_second_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    write(folder, a="old")
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append((source, target))
        if len(calls) == 2:
            raise OSError(errno.EIO, "")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CheckpointError):
        write(folder, a="new")
    assert len(calls) == 3
    assert (folder / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_kill_between_the_renames_is_mended_by_the_next_writer(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write(folder, a="old")
    os.replace(folder, tmp_path / ".checkpoint.replaced")

    def fail() -> None:
        with atomic_folder(folder):
            assert (folder / "a").read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (folder / "a").read_text() == "old"
    write(folder, a="new")
    assert (folder / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_killed_writer_leaves_the_old_folder_and_its_rubbish_goes_later(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write(folder, a="old")
    code = (
        "import sys, time; from pathlib import Path; from bindlm.checkpoints.state import atomic_folder\n"
        "with atomic_folder(sys.argv[1]) as new: (new / 'a').write_text('half'); time.sleep(60)"
    )
    source = Path(__file__).parents[2] / "src"
    process = subprocess.Popen([sys.executable, "-c", code, folder], env=os.environ | {"PYTHONPATH": str(source)})
    assert wait_until(lambda: any(tmp_path.glob(".checkpoint.*.part/new/a")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write(folder, a="new")
    assert (folder / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


def test_sha256_of_a_file_larger_than_one_read(tmp_path: Path) -> None:
    import hashlib

    data = bytes(range(256)) * 40_000
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()
