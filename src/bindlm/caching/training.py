"""Training the index of a cache: k-means on a sample of the vectors, which stays fp16 all the way."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.caching.choice import FLAT
from bindlm.caching.chunks import CHUNK_ROWS
from bindlm.errors import ConfigError

SEED = 20
GRAPH_KEY = re.compile(r"(?:PCA(\d+),)?HNSW(\d+),SQ8")
"""Principal components, where not all numbers are coded, and edges of a row."""
_FP32_BYTES = 128 << 20
"""Of vectors that a transform or the codes' quantiser is trained on; k-means takes the whole sample, as fp16."""


def sample_rows(num_rows: int, size: int) -> NDArray[np.int64]:
    """``size`` different rows, spread evenly and drawn at random within their stretch; always the same ones."""
    size = min(size, num_rows)
    stretch = np.arange(size + 1, dtype=np.int64) * num_rows // max(size, 1)  # whole numbers: exact up to 10^18
    drawn = np.random.default_rng(SEED).random(size)
    return stretch[:-1] + (drawn * np.diff(stretch)).astype(np.int64)


def is_inverted_file(key: str) -> bool:
    """Whether a key of FAISS's factory makes inverted lists, such as `IVF4096,SQ8`."""
    return any(part.startswith("IVF") for part in key.split(","))


def check_key(key: str) -> None:
    """Refuse an index that a cache cannot be built and changed with.

    Raises:
        ConfigError: it is neither flat, nor an inverted file, nor a graph.
    """
    if key != FLAT and not is_inverted_file(key) and not GRAPH_KEY.fullmatch(key):
        raise ConfigError(
            f"an index {key!r} is none that a cache can be changed with; expected {FLAT}, an inverted file such "
            "as IVF4096,SQ8, or a graph such as PCA248,HNSW24,SQ8"
        )


def train_index(key: str, dim: int, sample: NDArray[np.float16]) -> Any:
    """An inverted-file index of FAISS that is trained and empty.

    Args:
        key: for its factory.
        dim: D_joint.
        sample: `(n, D_joint)`, unit length.

    Raises:
        ConfigError: FAISS knows no such key, or the sample is too small for it.
    """
    import faiss

    try:
        index = faiss.index_factory(dim, key, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ConfigError(f"FAISS makes no index of {key!r} for vectors of {dim} numbers") from None
    inner: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    if len(sample) < inner.nlist:
        raise ConfigError(f"{key} has {inner.nlist} lists, and only {len(sample)} vectors are there to find them with")
    outer: Any = faiss.downcast_index(index)  # both live as long as the index does
    if isinstance(outer, faiss.IndexPreTransform):  # a rotation or a PCA in front, which is learned too
        chain: Any = outer.chain
        for number in range(chain.size()):
            sample = _train_transform(faiss.downcast_VectorTransform(chain.at(number)), sample)
        outer.is_trained = True
    _find_centroids(inner, sample)
    inner.train(_some(sample))  # what is left: the codes' quantiser
    return index


def _train_transform(transform: Any, sample: NDArray[np.float16]) -> NDArray[np.float16]:
    """Train what stands in front of the lists, and give the sample as the next one sees it.

    The mean that FAISS's PCA subtracts is left in: without it a row's product with a query would be off by a number of
    the row's own.
    """
    import faiss

    transform.train(_some(sample))
    if isinstance(transform, faiss.PCAMatrix):
        faiss.copy_array_to_vector(np.zeros(transform.d_out, dtype=np.float32), transform.b)
    changed = np.empty((len(sample), transform.d_out), dtype=np.float16)  # (n, D_out)
    for start in range(0, len(sample), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        changed[rows] = transform.apply(sample[rows].astype(np.float32))
    return changed


def _find_centroids(inner: Any, sample: NDArray[np.float16]) -> None:
    """k-means, which FAISS decodes a block at a time from fp16."""
    import faiss

    inner.cp.min_points_per_centroid = 1  # or FAISS prints its advice over ours
    clustering = faiss.Clustering(inner.d, inner.nlist, inner.cp)
    codec = faiss.IndexScalarQuantizer(inner.d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    clustering.train_encoded(sample.view(np.uint8).reshape(len(sample), -1), codec, faiss.IndexFlatIP(inner.d))
    centroids = faiss.vector_to_array(clustering.centroids).reshape(inner.nlist, inner.d)
    inner.quantizer.train(centroids)
    inner.quantizer.add(centroids)


def _some(sample: NDArray[np.float16]) -> NDArray[np.float32]:
    """As much of a sample as fp32 has room for."""
    return sample[sample_rows(len(sample), max(_FP32_BYTES // (4 * sample.shape[1]), 1))].astype(np.float32)
