"""What a visual cache costs, from 10 thousand pictures to 3 million: time, memory, disk, and neighbours missed.

    python benchmarks/cache.py --entries 10000 30000 100000 300000 1000000 3000000 --folder /tmp/cache-bench

For each size, in processes of their own: vectors are made (benchmarks/cache_vectors.py), `build_cache` builds a cache
of their file, exact search finds the true neighbours, with FAISS's flat index and with NumPy, and a fresh process
opens the cache and asks it. What is there already is not done again, so sizes may be run one by one; `--plot` draws
all that the folder holds. Queries are pictures held out, and queries of another sense. Disk: 4.6 KB a picture while a
cache is built, 2.3 KB afterwards.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cache_vectors import JointVectors, spans, write_vectors
from numpy.typing import NDArray

TOP_K = 10
CHUNK = 100_000
"""Rows that exact search takes at once: 400 MB."""
NUM_QUERIES = 200
"""Of each kind."""
TIMED, TIMED_ROWS = 10, 300_000
"""Queries and rows that exact search is timed with; its time for more rows is in proportion."""
BATCH = 64
KINDS = ("pictures", "another sense")


def main() -> None:
    """Measure what is missing, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cache-bench"))
    parser.add_argument("--plot", type=Path, help="draw the cost curves there")
    parser.add_argument("--keep", action="store_true", help="caches are not removed after they are measured")
    parser.add_argument("--again", nargs="*", default=[], choices=PARTS, help="parts that are measured anew")
    parser.add_argument("--part", choices=["vectors", *PARTS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.part:
        result = {"vectors": part_vectors, **PARTS}[options.part](options.folder, options.entries[0])
        (options.folder / f"{options.part}-{options.entries[0]}.json").write_text(json.dumps(result, indent=1))
        return
    for entries in options.entries:
        measure(options.folder, entries, options.again, keeps=options.keep)
    results = all_results(options.folder)
    report(results)
    if options.plot:
        draw(results, options.plot)


def measure(folder: Path, entries: int, again: list[str], *, keeps: bool) -> None:
    """Run the parts that are missing, each in a fresh process."""
    missing = [part for part in PARTS if part in again or not (folder / f"{part}-{entries}.json").exists()]
    for part in ["vectors", *missing] if "build" in missing else missing:
        is_timed_alone = part in ("exact", "serve")
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if is_timed_alone}
        command = [sys.executable, __file__, "--entries", str(entries), "--folder", str(folder), "--part", part]
        begin = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, **one_thread, "CACHE_BENCH_BEGIN": str(time.time())})
        print(f"{entries:,} {part}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if not keeps:
        import shutil

        shutil.rmtree(cache_folder(folder, entries), ignore_errors=True)


def cache_folder(folder: Path, entries: int) -> Path:
    return folder / f"cache-{entries}"


def part_vectors(folder: Path, entries: int) -> dict[str, Any]:
    """Make a file of vectors."""
    write_vectors(folder / f"vectors-{entries}.npy", JointVectors(), entries)
    return {}


def part_build(folder: Path, entries: int) -> dict[str, Any]:
    """Build a cache of a file of vectors."""
    from bindlm.caching import build_cache, open_embeddings

    path = folder / f"vectors-{entries}.npy"
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    record = build_cache(open_embeddings(path), cache_folder(folder, entries), fingerprint="made-up")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    path.unlink()
    return {
        "key": record.index.key,
        "search": record.index.search,
        "oversampling": record.index.oversampling,
        "index_bytes": record.index.bytes,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "load": os.getloadavg()[0],
    }


def part_truth(folder: Path, entries: int) -> dict[str, Any]:
    """True neighbours of all queries. The rows do not fit in memory at once, so they are taken a piece at a time."""
    import faiss

    vectors = JointVectors()
    queries = np.concatenate([vectors.queries(NUM_QUERIES), vectors.other_sense(NUM_QUERIES)])  # (2 Q, D)
    best = np.full((len(queries), TOP_K), -2.0, np.float32)
    found = np.full((len(queries), TOP_K), -1)
    for start, piece in rows_of(cache_folder(folder, entries)):
        index = faiss.IndexFlatIP(vectors.dim)
        index.add(piece)
        cosines, rows = index.search(queries, TOP_K)
        cosines, rows = np.hstack([best, cosines]), np.hstack([found, rows + start])
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :TOP_K]
        best, found = np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)
    np.savez(folder / f"truth-{entries}.npz", queries=queries, found=found)
    return {
        kind: {str(rank): np.quantile(best[part, rank - 1], [0.1, 0.5, 0.9]).tolist() for rank in (1, TOP_K)}
        for kind, part in zip(KINDS, halves(), strict=True)
    }


def part_exact(folder: Path, entries: int) -> dict[str, Any]:
    """What exact search takes on one thread, by FAISS's flat index and by NumPy."""
    import faiss

    faiss.omp_set_num_threads(1)
    queries = np.load(folder / f"truth-{entries}.npz")["queries"].astype(np.float32)
    flat, brute, batch = np.zeros(TIMED), np.zeros(TIMED), 0.0
    for start, piece in rows_of(cache_folder(folder, entries)):
        if start >= TIMED_ROWS:
            break
        index = faiss.IndexFlatIP(queries.shape[1])
        index.add(piece)
        for number in range(TIMED):
            query = queries[number : number + 1]
            flat[number] += seconds(index.search, query, TOP_K)
            brute[number] += seconds(brute_force, query, piece)
        batch += seconds(index.search, queries[:BATCH], TOP_K)
    milliseconds = 1e3 * max(entries / TIMED_ROWS, 1)
    return {
        "flat_ms": float(np.median(flat)) * milliseconds,
        "numpy_ms": float(np.median(brute)) * milliseconds,
        "flat_batch_ms": batch * milliseconds / BATCH,
    }


def brute_force(query: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """What one writes without an index."""
    cosines = (rows @ query[0]).ravel()
    nearest = np.argpartition(-cosines, min(TOP_K, len(cosines) - 1))[:TOP_K]
    return nearest[np.argsort(-cosines[nearest])]


def part_serve(folder: Path, entries: int) -> dict[str, Any]:
    """Open a cache in a fresh process whose files are in no cache of the system, and ask it, on one thread."""
    cache = cache_folder(folder, entries)
    for file in cache.iterdir():
        if file.is_file():
            forget(file)
    begin = float(os.environ["CACHE_BENCH_BEGIN"])
    import faiss
    import torch

    from bindlm.space import StoredVisualCache

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    truth = np.load(folder / f"truth-{entries}.npz")
    queries, imported = torch.from_numpy(truth["queries"]), memory()
    opening = time.perf_counter()
    stored = StoredVisualCache.open(cache, top_k=TOP_K)
    opened = time.perf_counter()
    stored.search(queries[:1])
    result: dict[str, Any] = {
        "open_ms": (opened - opening) * 1e3,
        "first_ms": (time.perf_counter() - opened) * 1e3,
        "start_to_answer_s": time.time() - begin,
        "imported": imported,
        "opened": memory(),
    }
    result["cold_ms"] = quantiles([seconds(stored.search, queries[i : i + 1]) for i in range(1, 51)])
    found = np.concatenate([stored.search(part)[1].numpy() for part in queries.split(BATCH)])
    for kind, part in zip(KINDS, halves(), strict=True):
        ones = [seconds(stored.search, queries[i : i + 1]) for i in range(part.start, part.stop)]
        result[kind] = {"recall": recall(found[part], truth["found"][part]), **quantiles(ones)}
    batches = [queries[:BATCH], *[queries[-BATCH:]] * 4]
    result["batch_ms"] = 1e3 / BATCH * float(np.median([seconds(stored.search, batch) for batch in batches]))
    result["served"] = memory()
    result["load"] = os.getloadavg()[0]
    return result


def recall(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len(set(own) & set(other)) / TOP_K for own, other in zip(found, true, strict=True)]))


def quantiles(times: list[float]) -> dict[str, float]:
    return {f"p{part}": float(np.quantile(times, part / 100)) * 1e3 for part in (50, 95)}


def halves() -> tuple[slice, slice]:
    """Where the queries of either kind are."""
    return slice(0, NUM_QUERIES), slice(NUM_QUERIES, 2 * NUM_QUERIES)


def _recall_of(kind: str, parts: dict[str, Any]) -> float:
    return float(parts["serve"][kind]["recall"])


def seconds(action: Callable[..., Any], *given: Any) -> float:
    begin = time.perf_counter()
    action(*given)
    return time.perf_counter() - begin


def rows_of(cache: Path) -> Any:
    """First rows and vectors `(n, D_joint)` fp32 of a cache, piece after piece."""
    first = 0
    for path in sorted(cache.glob("values-*.npy")):
        array = np.load(path, mmap_mode="r")
        for start, end in spans(len(array), CHUNK):
            yield first + start, array[start:end].astype(np.float32)
        first += len(array)


def forget(path: Path) -> None:
    """Ask the system to drop a file from its cache."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> dict[str, int]:
    """Bytes of this process: all that is resident, its own part, and that of files, which the system may take back."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    held = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "Rss"))}
    return {"all": held["VmRSS"], "own": held["RssAnon"], "files": held["RssFile"]}


def all_results(folder: Path) -> dict[int, dict[str, Any]]:
    """What was measured, by size."""
    sizes = sorted(int(path.stem.split("-")[1]) for path in folder.glob("serve-*.json"))
    return {size: {part: json.loads((folder / f"{part}-{size}.json").read_text()) for part in PARTS} for size in sizes}


def report(results: dict[int, dict[str, Any]]) -> None:
    """Print a Markdown table."""
    columns = [
        "entries", "index", "build (processors)", "its peak", "index, disk", "resident (own)", "p50, p95", "batch 64",
        "cold: open, first, p50", "recall@10, other sense", "FAISS flat", "NumPy",
    ]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for entries, parts in results.items():
        build, exact, serve = parts["build"], parts["exact"], parts["serve"]
        one, other = (serve[kind] for kind in KINDS)
        search = ", ".join(f"{name} {value}" for name, value in build["search"].items())
        cells = [
            f"{entries:,}",
            f"{build['key']} {search}",
            f"{build['seconds']:.0f} s ({build['cpu_seconds']:.0f} s)",
            f"{build['peak_bytes'] / 1e9:.2f} GB",
            f"{build['index_bytes'] / 1e9:.2f} GB",
            f"{serve['served']['all'] / 1e9:.2f} ({serve['served']['own'] / 1e9:.2f}) GB",
            f"{one['p50']:.2f}, {one['p95']:.2f} ms",
            f"{serve['batch_ms']:.2f} ms",
            f"{serve['open_ms']:.0f}, {serve['first_ms']:.0f}, {serve['cold_ms']['p50']:.1f} ms",
            f"{one['recall']:.3f}, {other['recall']:.3f}",
            *(f"{exact[f'{name}_ms']:.1f} ms, {exact[f'{name}_ms'] / one['p50']:.1f} x" for name in ("flat", "numpy")),
        ]
        print(f"| {' | '.join(cells)} |")


def draw(results: dict[int, dict[str, Any]], path: Path) -> None:
    """Draw the cost curves: a query, memory, the build, and recall, over the number of entries."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = list(results)

    def line(axes: Any, label: str, value: Callable[[dict[str, Any]], float]) -> None:
        axes.plot(sizes, [value(results[size]) for size in sizes], marker="o", label=label)

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (query, held), (built, missed) = figure.subplots(2, 2)
    query.set_title("One query, one thread, ms")
    line(query, "cache, p50", lambda parts: parts["serve"][KINDS[0]]["p50"])
    line(query, "cache, p95", lambda parts: parts["serve"][KINDS[0]]["p95"])
    line(query, "FAISS flat", lambda parts: parts["exact"]["flat_ms"])
    line(query, "NumPy", lambda parts: parts["exact"]["numpy_ms"])
    query.axhline(3.0, color="grey", linestyle=":", label="goal: 3 ms")
    held.set_title("Resident while it serves, GB")
    line(held, "all", lambda parts: parts["serve"]["served"]["all"] / 1e9)
    line(held, "own (not files)", lambda parts: parts["serve"]["served"]["own"] / 1e9)
    line(held, "peak of the build", lambda parts: parts["build"]["peak_bytes"] / 1e9)
    held.axhline(3.5, color="grey", linestyle=":", label="goal: 3.5 GB")
    built.set_title("Build, s")
    line(built, "by the clock", lambda parts: parts["build"]["seconds"])
    line(built, "of processors", lambda parts: parts["build"]["cpu_seconds"])
    missed.set_title("recall@10")
    for kind in KINDS:
        line(missed, kind, partial(_recall_of, kind))
    missed.axhline(0.98, color="grey", linestyle=":", label="goal: 0.98")
    for axes in (query, held, built, missed):
        axes.set_xscale("log")
        axes.set_xlabel("entries")
        axes.legend(fontsize="small")
    query.set_yscale("log")
    built.set_yscale("log")
    figure.savefig(path, dpi=110)


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "build": part_build,
    "truth": part_truth,
    "exact": part_exact,
    "serve": part_serve,
}

if __name__ == "__main__":
    main()
