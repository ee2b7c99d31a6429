"""Half-made things live in scratch folders, whose names tell who makes them, so that a killed run's can be removed."""

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAY_SECONDS = 24 * 3600.0

_NAME = re.compile(r"\.(?P<host>[0-9A-Za-z_-]*)\.(?P<pid>\d+)\.[0-9a-f]{8}\.part$")


def scratch_name(prefix: str) -> str:
    """A fresh name ``PREFIX.HOST.PID.RANDOM.part``."""
    return f"{prefix}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.part"


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent`` that is gone when the block ends, however it ends.

    Entering also removes what killed runs left in ``parent`` under the same prefix.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale(parent, prefix)
    folder = parent / scratch_name(prefix)
    # Not tempfile.mkdtemp: its mode 0700 would stay on what is moved out, and a cache may be shared by a group.
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(parent: Path, prefix: str) -> None:
    """Remove the scratch files and folders ``PREFIX.*`` in ``parent`` whose process is gone, or that are a day old."""
    for path in parent.glob(f"{_escape(prefix)}.*.part"):
        match = _NAME.search(path.name)
        if match and (_is_gone(match["host"], int(match["pid"])) or _idle_seconds(path) > DAY_SECONDS):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def _host() -> str:
    """Who may judge our process id: containers of one host count theirs apart, under what may be one host name."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")  # "pid:[4026531836]"
    except OSError:
        namespace = ""
    return re.sub(r"[^0-9A-Za-z]+", "-", f"{socket.gethostname()[:40]}-{namespace}").strip("-")


def _is_gone(host: str, pid: int) -> bool:
    """True only where this machine can tell: a shared folder may hold the scratch of another host."""
    if host != _host() or os.name != "posix":  # os.kill(pid, 0) ends the process on Windows
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _idle_seconds(path: Path) -> float:
    """Seconds since anything in ``path`` was last written: a slow download keeps its folder young."""
    newest = 0.0
    for each in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, each.lstat().st_mtime)
    return time.time() - newest


def _escape(prefix: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", prefix)
