import errno
import os
from pathlib import Path

import pytest

from bindlm.checkpoints import home as make_home
from bindlm.checkpoints.home import disk_errors, home_path
from bindlm.errors import CheckpointError


def test_bindlm_home_wins_and_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("BINDLM_HOME", str(tmp_path / "a" / "b"))
    assert make_home() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_home_falls_back_to_xdg_then_to_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINDLM_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home_path() == tmp_path / "xdg" / "bindlm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/to/be/ignored")
    assert home_path() == tmp_path / ".cache" / "bindlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home_path() == tmp_path / ".cache" / "bindlm"
    assert not (tmp_path / ".cache").exists()


def test_tilde_and_relative_homes_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BINDLM_HOME", "~/weights")
    assert home_path() == tmp_path / "weights"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BINDLM_HOME", "weights")
    assert home_path() == tmp_path / "weights"


def test_user_without_home_directory_is_told_to_set_bindlm_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BINDLM_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(CheckpointError, match="set BINDLM_HOME"):
        home_path()


def test_file_in_the_way_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for chosen in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("BINDLM_HOME", str(chosen))
        with pytest.raises(CheckpointError, match="a file is in the way") as raised:
            make_home()
        assert str(chosen) in str(raised.value)
        assert "BINDLM_HOME" in str(raised.value)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "not writable"),
        (errno.EROFS, "not writable"),
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "no space is left"),
        (errno.EIO, "check the disk"),
    ],
)
def test_disk_that_refuses_is_one_clear_error(
    number: int, reason: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match=reason) as raised:
        make_home()
    assert str(home) in str(raised.value)


def test_error_about_a_file_elsewhere_is_left_alone(tmp_path: Path, home: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(home):
        (tmp_path / "input").read_bytes()
    with pytest.raises(CheckpointError, match="cannot write"), disk_errors(home):
        (home / "missing" / "file").write_bytes(b"")
