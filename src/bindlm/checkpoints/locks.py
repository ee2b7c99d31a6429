"""One process at a time makes a thing; the others wait, and say that they wait."""

from collections.abc import Iterator
from contextlib import contextmanager

from bindlm.checkpoints.home import disk_errors, home
from bindlm.checkpoints.notice import say


@contextmanager
def locked(name: str, doing: str, *, progress: bool = True) -> Iterator[None]:
    """Hold the lock ``name`` of the cache folder while the block runs.

    The lock is the operating system's, on an open file: a killed process gives it back, and the file that stays in
    ``locks/`` blocks nobody.

    Args:
        name: File name in ``locks/``, without suffix.
        doing: What the holder does, for the line that a waiting process prints: "fetching X".

    Raises:
        CheckpointError: the lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    folder = home() / "locks"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is {doing}; waiting for it ...", progress=progress)
            lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()
