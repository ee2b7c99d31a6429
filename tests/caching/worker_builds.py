"""Builds a cache again and again, killed at another moment each time, and compares it with one that was not.

Processes are forked, so that each costs milliseconds and not the import of torch: one thread, or a child could hang.
Prints a line of JSON: how many were killed, and what differed.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import faiss  # noqa: E402, F401  here, and not again in each process
import pyarrow.parquet  # noqa: E402, F401
from tests.caching.cache_case import FINGERPRINT, GRAPH, LISTS, files_of  # noqa: E402

import bindlm.training.features  # noqa: E402, F401
from bindlm.caching import Budget, add_to_cache, build, build_cache, graphs, indexing, open_embeddings  # noqa: E402

build.ROWS_A_FILE = 256
os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written; only a power cut does
indexing.CHUNK_ROWS, indexing._PART_BYTES, indexing._PART_BYTES_A_LIST = 128, 4096, 0
graphs.ROWS_AT_ONCE, graphs.LEAST_ROWS_BETWEEN, graphs.CHECKPOINTS = 64, 128, 4
KIND = {"lists": LISTS, "graph": GRAPH}[sys.argv[3]]


def make(sources: Path, out: Path) -> None:
    """A cache of the first source, with the second added."""
    budget = Budget(choice=KIND)
    options = {"fingerprint": FINGERPRINT, "budget": budget, "progress": False}
    if not (out / "config.json").is_file() or "build" in unfinished(out):
        build_cache(open_embeddings(sources / "first"), out, **options)
    if "values-000003.npy" not in os.listdir(out) or "add" in unfinished(out):
        add_to_cache(open_embeddings(sources / "second"), out, **options)


def unfinished(out: Path) -> str:
    """What the journal says is being done."""
    path = out / ".bindlm-build" / "journal.json"
    return json.loads(path.read_text())["plan"]["action"] if path.is_file() else ""


def run(sources: Path, out: Path, *, kill_at: int | None = None, seconds: float = 0.0) -> int:
    """Make it in another process, and return how that ended."""
    pid = os.fork()
    if not pid:
        if kill_at is not None:
            die_at_replacement(kill_at)
        code = 1
        try:
            make(sources, out)
            code = 0
        finally:
            os._exit(code)
    if seconds:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def die_at_replacement(number: int) -> None:
    """Die before a file takes its place: between two such moments nothing that counts changes."""
    replace, left = os.replace, [number]

    def dying(*arguments: object) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)
        left[0] -= 1

    os.replace = dying


def difference(when: object, status: int, files: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """What is not as it should be after the run that was not killed."""
    names = sorted(name for name in files.keys() | expected.keys() if files.get(name) != expected.get(name))
    return [f"killed at {when}: status {status}, {names}"] if status or names else []


def main(folder: Path, step: int) -> None:
    sources, killed, different = folder / "sources", 0, []
    make(sources, folder / "whole")  # in this process: what it imports, the others have
    expected = files_of(folder / "whole")
    for number in range(0, 1000, step):
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        is_killed = os.WIFSIGNALED(run(sources, out, kill_at=number))
        killed += is_killed
        different += difference(number, run(sources, out), files_of(out), expected)
        if not is_killed:
            break
    draw, out = random.Random(0), folder / "often"
    for _ in range(4):
        status = run(sources, out, seconds=draw.uniform(0.01, 0.2))
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    different += difference("often", run(sources, out), files_of(out), expected)
    print(json.dumps({"killed": killed, "moments": number, "different": different, "files": sorted(expected)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
