import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bindlm.checkpoints.scratch import DAY_SECONDS, remove_stale, scratch_folder, scratch_name


def dead_process_id() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_scratch_is_gone_after_success_and_after_an_error(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "fetch") as folder:
        (folder / "file").write_text("half")
    assert list(tmp_path.iterdir()) == []

    def interrupted() -> None:
        with scratch_folder(tmp_path, "fetch") as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    mine = scratch_name("fetch")
    killed = mine.replace(f".{os.getpid()}.", f".{dead_process_id()}.")
    for name in (mine, killed, "fetch.something.else", killed.replace("fetch", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x" * 10)
    (tmp_path / f"{killed[:-13]}01234567.part").write_bytes(b"a file too")
    remove_stale(tmp_path, "fetch")
    assert {path.name for path in tmp_path.iterdir()} == {
        mine,
        "fetch.something.else",
        killed.replace("fetch", "other"),
    }


def test_scratch_of_another_host_stays_for_a_day_of_silence(tmp_path: Path) -> None:
    pid = dead_process_id()
    young, old, busy = (tmp_path / f"fetch.elsewhere.{pid}.0000000{i}.part" for i in range(3))
    for folder in (young, old, busy):
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
    long_ago = time.time() - DAY_SECONDS - 60
    for path in (old / "half", old, busy):
        os.utime(path, (long_ago, long_ago))
    remove_stale(tmp_path, "fetch")
    assert {path for path in tmp_path.iterdir()} == {young, busy}, "busy was written to just now"


def test_prefix_with_brackets_means_itself(tmp_path: Path) -> None:
    name = scratch_name("[ab]*").replace(f".{os.getpid()}.", f".{dead_process_id()}.")
    (tmp_path / name).mkdir()
    (tmp_path / name.replace("[ab]*", "a")).mkdir()
    remove_stale(tmp_path, "[ab]*")
    assert [path.name for path in tmp_path.iterdir()] == [name.replace("[ab]*", "a")]
