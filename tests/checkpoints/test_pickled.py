from pathlib import Path

import pytest
import torch

from bindlm.checkpoints import convert_pickled_state, load_state, pickled, sha256_of
from bindlm.errors import CheckpointError

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)}


def test_pickle_is_opened_once_and_kept_as_safetensors(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "published.pth"
    torch.save(STATE, path)
    converted = convert_pickled_state(path)
    assert converted == home / "converted" / sha256_of(path) / "published.safetensors"
    loaded = load_state(converted, expected={"weight": (2, 3), "steps": ()})
    assert all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())
    monkeypatch.setattr(pickled, "load_pickled_state", lambda path: pytest.fail("opened again"))
    assert convert_pickled_state(path) == converted


def test_name_of_a_folder_is_trusted_in_the_cache_only(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / ("0" * 64)
    folder.mkdir()
    torch.save(STATE, folder / "m.pth")
    assert convert_pickled_state(folder / "m.pth").parent.name == sha256_of(folder / "m.pth")
    cached = home / "files" / ("1" * 64)
    cached.mkdir(parents=True)
    torch.save(STATE, cached / "m.pth")
    assert convert_pickled_state(cached / "m.pth").parent.name == "1" * 64


def test_what_is_no_state_leaves_nothing(tmp_path: Path, home: Path) -> None:
    (tmp_path / "m.pth").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="is damaged"):
        convert_pickled_state(tmp_path / "m.pth")
    assert list(home.rglob("*.safetensors")) == []
    with pytest.raises(CheckpointError, match="is missing"):
        convert_pickled_state(tmp_path / "none.pth")
