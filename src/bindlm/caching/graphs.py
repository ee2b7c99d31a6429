"""The graph of a large cache (HNSW, arXiv 1603.09320): short codes in which a query walks from neighbour to neighbour.

A walk of some hundred steps finds what many inverted lists would have to be looked through for, but the graph is in
memory while it is made, and a row that is in it stays: so the row's place is its number, and rows that are removed
from the cache go on as waypoints that nobody is shown.

A graph by inner products is a bad one where lengths differ, as those of the first principal components do. So a row
gets one more number, sqrt(1 - |x|^2), and all are equally long: the order by distance is the order by product, since a
query's own further number is 0. What FAISS writes is a file like any other: a linear transform whose last rows are
zero, and behind it an `IndexHNSWSQ` by L2.

Stopped, a build goes on at the last eighth. On one thread its bytes are then those of a build that was not stopped; on
several, threads take turns as they come, and a few edges differ each time.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching.journal import WORK, Journal
from bindlm.caching.shards import ValueFiles
from bindlm.caching.training import GRAPH_KEY, SEED, sample_rows
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.state import replacing_file
from bindlm.errors import CheckpointError, ConfigError

ROWS_AT_ONCE = 16384
"""Rows that enter the graph together. Their order within is FAISS's, so another number gives another graph."""
CHECKPOINTS = 8
"""Times that an unfinished graph is written."""
LEAST_ROWS_BETWEEN = 8 * ROWS_AT_ONCE
EF_CONSTRUCTION = 80
"""Candidates among which a new row's edges are chosen."""
_WIDTH_STEP = 8
"""Numbers that the processor compares at once."""


def train_graph(key: str, dim: int, sample: NDArray[np.float16]) -> Any:
    """An empty graph, its transform and its codes trained.

    Args:
        key: such as `PCA248,HNSW24,SQ8`: principal components, edges of a row (twice as many on the ground), codes.
        dim: D_joint.
        sample: `(n, D_joint)`, unit length.

    Raises:
        ConfigError: another key, or too few vectors for the components.
    """
    faiss = _faiss()
    matched = GRAPH_KEY.fullmatch(key)
    if matched is None:
        raise ConfigError(f"{key} is no graph that a cache can have; expected one such as PCA248,HNSW24,SQ8")
    components, edges = int(matched[1] or dim), int(matched[2])
    if not 0 < components <= dim or len(sample) < components or edges < 2:
        raise ConfigError(f"{key} cannot be made of {len(sample)} vectors of {dim} numbers")
    vectors = sample.astype(np.float32)
    directions = np.eye(dim, dtype=np.float32)
    if components < dim:
        pca = faiss.PCAMatrix(dim, components)
        pca.train(vectors)
        directions = faiss.vector_to_array(pca.A).reshape(components, dim)
    width = -(-(components + 1) // _WIDTH_STEP) * _WIDTH_STEP
    matrix = np.zeros((width, dim), dtype=np.float32)  # (W, D), the further numbers of a query are 0
    matrix[:components] = directions
    transform = faiss.LinearTransform(dim, width, False)
    faiss.copy_array_to_vector(matrix.reshape(-1), transform.A)
    transform.is_trained = True
    inner = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit, edges, faiss.METRIC_L2)
    inner.train(_lifted(matrix, components, vectors))
    index = faiss.IndexPreTransform(transform, inner)
    transform.this.disown()
    inner.this.disown()
    index.own_fields = True
    return index


def add_rows(index: Any, first: int, vectors: NDArray[np.float32]) -> None:
    """Put rows behind those that are in a graph.

    Args:
        index: of `train_graph`, with ``first`` rows.
        first: the number of the first of them.
        vectors: `(n, D_joint)`, unit length.
    """
    faiss = _faiss()
    inner: Any = faiss.downcast_index(index.index)
    transform: Any = faiss.downcast_VectorTransform(index.chain.at(0))
    matrix = faiss.vector_to_array(transform.A).reshape(inner.d, index.d)
    components = int(np.count_nonzero(matrix.any(axis=1)))
    levels = np.concatenate(
        [faiss.vector_to_array(inner.hnsw.levels), _levels(inner.hnsw, first, first + len(vectors))]
    )
    inner.hnsw.efConstruction = EF_CONSTRUCTION
    faiss.copy_array_to_vector(levels, inner.hnsw.levels)
    inner.add(_lifted(matrix, components, vectors))
    index.ntotal = inner.ntotal


def write_graph(
    path: Path, folder: Path, journal: Journal, values: ValueFiles, base: Path | None, progress: bool
) -> int:
    """Write the graph of all rows of a cache, those removed among them, going on where it was stopped.

    Args:
        path: where to.
        folder: of the cache.
        journal: of the build; its parts are unfinished graphs, of which the last is kept.
        values: of the cache.
        base: a graph of the first of these rows, which is gone on from.
        progress: whether to show it.

    Returns:
        How many rows it has.

    Raises:
        CheckpointError: the disk refuses, or ``base`` is damaged.
    """
    from tqdm import tqdm

    index = _begun(folder, journal, values, base, progress)
    step = max(LEAST_ROWS_BETWEEN, values.num_rows // CHECKPOINTS)
    bar = tqdm(
        total=values.num_rows, initial=index.ntotal, desc="bindlm: graph", unit="row", disable=not progress or None
    )
    with bar:
        written = index.ntotal
        while (start := index.ntotal) < values.num_rows:
            end = min(start - start % ROWS_AT_ONCE + ROWS_AT_ONCE, values.num_rows)
            add_rows(index, start, values.read(start, end - start).astype(np.float32))
            bar.update(end - start)
            if end - written >= step and end < values.num_rows:
                _save(folder, journal, index)
                written = end
    _write(index, path)
    return int(index.ntotal)


def open_graph(path: Path) -> Any:
    """A graph that rows can be added to, all in memory.

    Raises:
        CheckpointError: FAISS cannot read it.
    """
    faiss = _faiss()
    try:
        index: Any = faiss.read_index(str(path))
    except RuntimeError:
        index = None
    if not isinstance(index, faiss.IndexPreTransform):
        raise CheckpointError(f"{path} is damaged: it is no graph that FAISS can read; build the cache anew")
    return index


def _begun(folder: Path, journal: Journal, values: ValueFiles, base: Path | None, progress: bool) -> Any:
    """The graph as far as it has come."""
    while journal.parts:
        path = _checkpoint(folder, len(journal.parts))
        if path.is_file() and path.stat().st_size == journal.parts[-1]:
            return open_graph(path)
        journal.parts.pop()
    if base is not None:
        return open_graph(base)
    assert journal.choice is not None
    key = journal.choice["key"]
    rows = sample_rows(values.num_rows, journal.choice["num_training"])
    rows = rows[~np.isin(rows, values.removed)]
    say(f"training {key} on {len(rows):,} of {values.num_kept:,} vectors", progress=progress)
    return train_graph(key, values.dim, values.pick(rows))


def _save(folder: Path, journal: Journal, index: Any) -> None:
    """Write an unfinished graph; the one before goes once the journal names this."""
    path = _checkpoint(folder, len(journal.parts) + 1)
    with disk_errors(folder), replacing_file(path) as temporary:
        _write(index, temporary)
    journal.parts.append(path.stat().st_size)
    journal.save(folder)
    if len(journal.parts) > 1:
        _checkpoint(folder, len(journal.parts) - 1).unlink(missing_ok=True)


def _checkpoint(folder: Path, number: int) -> Path:
    return folder / WORK / f"graph-{number:06d}"


def _write(index: Any, path: Path) -> None:
    """Write an index through a file of Python's, whose errors of the disk are those that we know."""
    faiss = _faiss()
    errors: list[OSError] = []
    with path.open("wb") as stream:

        def write(content: bytes) -> None:
            try:
                stream.write(content)
            except OSError as error:
                errors.append(error)
                raise

        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(write))
        except RuntimeError:
            if errors:
                raise errors[0] from None
            raise


def _faiss() -> Any:
    """FAISS, whose types say less than it can."""
    import faiss

    return faiss


def _lifted(matrix: NDArray[np.float32], components: int, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows as they are coded: components `(n, W)` and, in the first further number, what is missing to length 1."""
    lifted = vectors @ matrix.T
    lengths = np.einsum("nw,nw->n", lifted, lifted)
    lifted[:, components] = np.sqrt(np.maximum(0, 1 - lengths))
    return np.ascontiguousarray(lifted)


def _levels(hnsw: Any, first: int, end: int) -> NDArray[np.int32]:
    """Floors that rows reach, 1 and more. A row's own: FAISS would draw them anew after each opening."""
    faiss = _faiss()
    shares = faiss.vector_to_array(hnsw.assign_probas)  # (floors,) of sum 1
    reach = 1 - np.cumsum(shares)[:-1]
    drawn = np.concatenate(
        [
            np.random.default_rng([SEED, block]).random(ROWS_AT_ONCE)
            for block in range(first // ROWS_AT_ONCE, -(-end // ROWS_AT_ONCE))
        ]
    )
    skipped = first % ROWS_AT_ONCE
    own = drawn[skipped : skipped + end - first]
    return (1 + (own[:, None] < reach).sum(axis=1)).astype(np.int32)
