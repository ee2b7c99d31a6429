"""Builds a cache of a large file, and prints the bytes of memory that it took beyond those of the imports."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.caching.cache_case import FINGERPRINT, LISTS, Choice, save_embeddings  # noqa: E402

from bindlm.caching import Budget, build_cache, open_embeddings  # noqa: E402


def peak(name: str = "VmHWM") -> int:
    """Bytes of memory that this process has had at most; `VmRSS`: has now."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024


def save_large(path: Path, rows: int, dim: int) -> None:
    """Random vectors, written some at a time."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        block = np.random.default_rng(0).standard_normal((4096, dim)).astype("<f4")
        for start in range(0, rows, 4096):
            block[:, 0] = start  # no two alike
            stream.write(block[: min(4096, rows - start)].data)


def main(folder: Path, rows: int, dim: int) -> None:
    save_embeddings(folder / "warm", [300])
    options = {"fingerprint": FINGERPRINT, "progress": False}
    build_cache(open_embeddings(folder / "warm"), folder / "warm-cache", budget=Budget(choice=LISTS), **options)
    save_large(folder / "large.npy", rows, dim)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak("VmRSS")
    choice = Choice("IVF64,SQ8", {"nprobe": 8}, 4, num_training=64 * 64)
    build_cache(open_embeddings(folder / "large.npy"), folder / "cache", budget=Budget(choice=choice), **options)
    print(peak() - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
