"""Which FAISS index a cache gets, by its size and by what a query may cost. The constants are measured: docs/cache.md.

Whatever the index, the cache takes cosines and values from the exact vectors beside it. So the index only has to name
candidates among which the nearest are, and small codes do that as well as large ones: some 250 principal components of
a byte each. A small cache is searched exactly, a larger one is a graph while that fits in memory, and inverted lists,
which stay on disk, beyond.
"""

import math
from dataclasses import dataclass, field

from bindlm.errors import ConfigError

FLAT = "IDMap2,Flat"
TOP_K = 10
"""Neighbours wanted, for which oversampling was measured."""
OVERSAMPLING = 12
"""Candidates for each neighbour: among 128 they are all, or 0.01 of them is missing."""
COMPONENTS = 256
"""Principal components that are coded, a byte each; narrower vectors are coded as they are."""
GRAPH_COMPONENTS = 248
"""With the number that makes rows equally long, 256 bytes."""
EDGES = 24
"""Of a row of a graph on the upper floors; on the ground there are twice as many."""
LEAST_EF, LONG_EF, MOST_EF = 128, 768, 2048
"""Rows that a walk keeps in sight: fewer are not enough for the candidates; from the second on it pays to compare
twice as many of them; more find little more."""
_TRAINED_ON = 50_000
"""Vectors for the components and the codes of a graph."""
_STEP_S = 3.7e-6
"""For one more row in sight, in a graph of a million; it grows with the logarithm."""
LEAST_LISTS = 32
"""That are looked into even where this takes longer than it may: fewer miss too many neighbours."""
POINTS_A_LIST = 30
"""Vectors that k-means sees for each list."""
_COMPARED_S = 1 / 10e9
"""One thread compares a byte of fp32 with a query: rows of a flat index, centres of lists."""
_SCANNED_S = 1.4e-10
"""It compares one component of a code."""
_CANDIDATE_S = 6.5e-6
"""It reads one exact vector from a file that is in the system's cache, and compares it."""
_FIXED_S = 0.3e-3
"""Python, PyTorch and FAISS around all that."""
_COLD_S = 0.8e-3
"""What these take longer after a walk or lists, which leave nothing of theirs in the core's own memory."""
_UNEVEN = 1.9
"""How much longer than the average are the lists that a query is near to."""
_MOST_FLAT_CENTRES = 16384
"""Beyond, centres are found by a graph (HNSW)."""


@dataclass(frozen=True)
class IndexChoice:
    """A FAISS index, and how it is searched."""

    key: str
    """For FAISS's index_factory."""
    search: dict[str, int] = field(default_factory=dict)
    """Settings of a search, such as `{"nprobe": 64}`."""
    oversampling: int = 1
    """Candidates for each neighbour wanted."""
    resident_bytes: int = 0
    """What it takes when all of it is in memory; the exact vectors beside it stay on disk."""
    num_training: int = 0
    """Vectors that it is trained on."""
    reason: str = ""
    """Why this one, for people."""


def choose_index(num_entries: int, dim: int, *, max_memory_bytes: int, max_latency_ms: float) -> IndexChoice:
    """The index for a cache: exact search while that is fast enough, else a graph, else inverted lists of short codes.

    A graph is walked, and lists are looked into, for as long as the time allows: recall gives way where it is small.

    Args:
        num_entries: rows.
        dim: D_joint.
        max_memory_bytes: for the index, when it is served. A larger one is still served from its file, and slower.
        max_latency_ms: of one query on one thread, once what it reads is in memory.

    Raises:
        ConfigError: sizes that are not positive, or a time that no index keeps.
    """
    if num_entries < 1 or dim < 1 or max_memory_bytes < 1 or not max_latency_ms > 0:
        raise ConfigError(
            f"An index needs entries, a width, memory and time, got {num_entries}, {dim}, {max_memory_bytes} bytes "
            f"and {max_latency_ms} ms."
        )
    flat_bytes, flat_s = num_entries * (4 * dim + 8), _FIXED_S + 4 * num_entries * dim * _COMPARED_S
    is_fast = flat_s <= max_latency_ms / 1e3 and flat_bytes <= max_memory_bytes
    if is_fast or num_entries < 1_000:
        reason = f"exact search takes about {1e3 * flat_s:.1f} ms a query and {_size(flat_bytes)}"
        return IndexChoice(FLAT, {}, 1, flat_bytes, 0, reason)
    graph = _in_graph(num_entries, dim, max_latency_ms)
    if graph is not None and graph.resident_bytes <= max_memory_bytes:
        return graph
    return _in_lists(num_entries, dim, max_memory_bytes, max_latency_ms)


def _in_graph(num_entries: int, dim: int, max_latency_ms: float) -> IndexChoice | None:
    """A graph, where there is time for its shortest walk."""
    components = min(GRAPH_COMPONENTS, dim)
    left_s = max_latency_ms / 1e3 - _FIXED_S - _COLD_S - (TOP_K * OVERSAMPLING + 8) * _CANDIDATE_S
    step_s = _STEP_S * math.log(num_entries) / math.log(1e6)
    in_sight, oversampling = int(left_s / step_s), OVERSAMPLING
    if in_sight < LEAST_EF:
        return None
    if (fewer := int((left_s - TOP_K * OVERSAMPLING * _CANDIDATE_S) / step_s)) >= LONG_EF:
        in_sight, oversampling = min(fewer, MOST_EF), 2 * OVERSAMPLING
    key = f"HNSW{EDGES},SQ8"
    if components < dim:
        key = f"PCA{components},{key}"
    width = -(-(components + 1) // 8) * 8
    upper = EDGES * 4 / (EDGES - 1)
    resident = round(num_entries * (width + 2 * EDGES * 4 + 12 + upper)) + 4 * width * dim
    reason = f"a graph over codes of {width} bytes, {in_sight} rows in sight of a walk, in {_size(resident)}"
    return IndexChoice(key, {"efSearch": in_sight}, oversampling, resident, min(num_entries, _TRAINED_ON), reason)


def _in_lists(num_entries: int, dim: int, max_memory_bytes: int, max_latency_ms: float) -> IndexChoice:
    components, num_lists = min(COMPONENTS, dim), 2 ** round(math.log2(4 * math.sqrt(num_entries)))
    is_graph = num_lists > _MOST_FLAT_CENTRES
    key = f"IVF{num_lists}{'_HNSW32' if is_graph else ''},SQ8"
    if components < dim:
        key = f"PCA{components},{key}"
    # a graph looks at a few thousand centres, whatever their number
    centres_s = 4 * min(num_lists, _MOST_FLAT_CENTRES // 2) * components * _COMPARED_S
    list_s = _UNEVEN * num_entries / num_lists * components * _SCANNED_S
    left_s = max_latency_ms / 1e3 - _FIXED_S - _COLD_S - centres_s - (TOP_K * OVERSAMPLING + 8) * _CANDIDATE_S
    if left_s < list_s:
        least = (max_latency_ms / 1e3 + list_s - left_s) * 1e3
        raise ConfigError(
            f"No index of {num_entries:,} entries of {dim} numbers answers in {max_latency_ms} ms on one thread; "
            f"allow at least {least + 0.05:.1f} ms."
        )
    probes = min(max(int(left_s / list_s), LEAST_LISTS), num_lists)
    search = {"nprobe": probes, **({"quantizer_efSearch": 2 * probes} if is_graph else {})}
    resident = num_entries * (components + 8) + 4 * components * (num_lists + dim) + 4 * dim * dim  # the PCA, whole
    reason = (
        f"codes of {components} bytes in {num_lists:,} lists, of which {probes:,} are looked into: about "
        f"{_UNEVEN * probes / num_lists * num_entries:,.0f} codes a query, in {_size(resident)}"
    )
    if probes * list_s > left_s:
        over_ms = (probes * list_s - left_s) * 1e3
        reason += f", about {max_latency_ms + over_ms:.1f} ms a query, for fewer lists would miss too many neighbours"
    if resident > max_memory_bytes:
        reason += (
            f", more than the {_size(max_memory_bytes)} allowed: lists stay on disk where they do not fit, and "
            f"a query reads up to {_size(round(probes * list_s / components / _SCANNED_S) * (components + 8))} of them"
        )
    training = min(num_entries, POINTS_A_LIST * num_lists)
    return IndexChoice(key, search, OVERSAMPLING, resident, training, reason)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
