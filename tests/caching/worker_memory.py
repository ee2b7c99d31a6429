"""Builds a cache of a large file, and prints the bytes of memory that it took beyond those of the imports."""

import sys
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.caching.cache_case import FINGERPRINT, LISTS, Choice, save_embeddings  # noqa: E402

from bindlm.caching import Budget, build_cache, open_embeddings  # noqa: E402


def resident() -> int:
    """Bytes that this process holds of its own; pages of mapped files, which the system may take, do not."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Peak(threading.Thread):
    """Looks again and again, for the kernel keeps the peak only with mapped files in it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.002):
            self.bytes = max(self.bytes, resident())


def save_large(path: Path, rows: int, dim: int) -> None:
    """Random vectors, written some at a time."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        block = np.random.default_rng(0).standard_normal((4096, dim)).astype("<f4")
        for start in range(0, rows, 4096):
            block[:, 0] = start / rows  # no two alike, and none so long one way that all come into one list
            stream.write(block[: min(4096, rows - start)].data)


def main(folder: Path, rows: int, dim: int) -> None:
    save_embeddings(folder / "warm", [300])
    options = {"fingerprint": FINGERPRINT, "progress": False}
    build_cache(open_embeddings(folder / "warm"), folder / "warm-cache", budget=Budget(choice=LISTS), **options)
    save_large(folder / "large.npy", rows, dim)
    before, peak = resident(), Peak()
    peak.start()
    choice = Choice("IVF64,SQ8", {"nprobe": 8}, 4, num_training=64 * 64)
    build_cache(open_embeddings(folder / "large.npy"), folder / "cache", budget=Budget(choice=choice), **options)
    peak.is_over.set()
    peak.join()
    print(peak.bytes - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
