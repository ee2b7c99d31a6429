"""Made-up joint embeddings that are spread as real ones are: as many as wanted, a chunk at a time, from a seed.

A picture is a mean direction, a topic, a group within the topic, and its own rest:

    x = unit(0.28 mean + 0.5 topic + 0.5 group + r rest)

Topics and groups are taken by Zipf's law (exponent 0.8; 1,000 and 30,000 of them), the spectra of all three fall as a
power of the dimension, and r varies by group and by picture, so that there are near-duplicates and loners. A query
from another sense has a gap of its own: 0.6 of a picture, 0.4 of one fixed direction, and the rest of neither.

The constants were set so that the statistics are those of the embeddings at hand, the mini's 2,583 keys of its cache
(1024 numbers) and its picture tower's 1,583 icons (1280 numbers), at the same number of vectors; see docs/cache.md.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHUNK = 16384
"""Rows made at once; a row depends on the seed and on the number of its chunk."""
_HELD_OUT = 999_999
"""Number of the chunk that queries come from."""


class JointVectors:
    """A distribution of unit vectors.

    Args:
        seed: of everything.
        dim: D_joint.
    """

    mean, topic, group = 0.28, 0.5, 0.5
    num_topics, num_groups, zipf = 1_000, 30_000, 0.8
    pull, gap = 0.6, 0.4

    def __init__(self, seed: int = 0, dim: int = 1024) -> None:
        random = np.random.default_rng([seed, 0])
        self.seed, self.dim = seed, dim
        # real axes are not the principal ones, and a quantiser must not profit from it
        self._rotation = np.linalg.qr(random.standard_normal((dim, dim)))[0].astype(np.float32)
        self._between, self._within = _spectrum(dim, 1.0, 3), _spectrum(dim, 1.3, 2)
        mean = _unit(random.standard_normal((1, dim)).astype(np.float32))
        topics = self._draw(random, self.num_topics, self._between)
        of_topic = random.choice(self.num_topics, self.num_groups, p=_zipf(self.num_topics, self.zipf))
        groups = self._draw(random, self.num_groups, self._between)
        self._centres = self.mean * mean + self.topic * topics[of_topic] + self.group * groups  # (G, D)
        self._cumulated = np.cumsum(_zipf(self.num_groups, self.zipf))
        rest = np.sqrt(1 - self.mean**2 - self.topic**2 - self.group**2)
        self._spread = (rest * np.exp(0.35 * random.standard_normal(self.num_groups))).astype(np.float32)
        self._gap = _unit(np.random.default_rng([seed, 3]).standard_normal((1, dim)).astype(np.float32))

    def chunk(self, number: int, rows: int = CHUNK) -> NDArray[np.float32]:
        """Pictures `(rows, D_joint)`; the same number gives the same ones."""
        random = np.random.default_rng([self.seed, 1, number])
        of_group = np.searchsorted(self._cumulated, random.random(rows)).clip(max=self.num_groups - 1)
        vectors = self._draw(random, rows, self._within)
        vectors *= (self._spread[of_group] * np.exp(0.4 * random.standard_normal(rows)))[:, None].astype(np.float32)
        vectors += self._centres[of_group]
        return _unit(vectors)

    def queries(self, rows: int) -> NDArray[np.float32]:
        """Pictures that are in no chunk, `(rows, D_joint)`."""
        return self.chunk(_HELD_OUT, rows)

    def other_sense(self, rows: int) -> NDArray[np.float32]:
        """Queries of another sense, `(rows, D_joint)`, whose nearest pictures have cosines of 0.3 to 0.6."""
        random = np.random.default_rng([self.seed, 2])
        own = random.standard_normal((rows, self.dim), dtype=np.float32)
        own = _unit(own / np.sqrt(self.dim) + (own * self._between) @ self._rotation)
        rest = float(np.sqrt(1 - self.pull**2 - self.gap**2))  # a float, for a number of NumPy would make all fp64
        return _unit(self.pull * self.chunk(_HELD_OUT + 1, rows) + self.gap * self._gap + rest * own)

    def _draw(self, random: np.random.Generator, rows: int, spectrum: NDArray[np.float32]) -> NDArray[np.float32]:
        drawn: NDArray[np.float32] = random.standard_normal((rows, self.dim), dtype=np.float32) * spectrum
        return drawn @ self._rotation


def write_vectors(path: Path, vectors: JointVectors, rows: int) -> None:
    """Write the first ``rows`` pictures as an fp16 `.npy` file; a file that is whole stays."""
    if path.exists():
        return
    unfinished = path.with_suffix(".part")
    array = np.lib.format.open_memmap(unfinished, "w+", np.float16, (rows, vectors.dim))
    for number, (start, end) in enumerate(spans(rows, CHUNK)):
        array[start:end] = vectors.chunk(number, end - start)
    array.flush()
    unfinished.replace(path)


def spans(rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of pieces."""
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _spectrum(dim: int, exponent: float, offset: int) -> NDArray[np.float32]:
    """Standard deviations that fall as a power, their squares of sum 1."""
    variance = (np.arange(1, dim + 1) + offset) ** -exponent
    return np.sqrt(variance / variance.sum()).astype(np.float32)


def _zipf(count: int, exponent: float) -> NDArray[np.float64]:
    shares = np.arange(1, count + 1) ** -exponent
    return shares / shares.sum()


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
