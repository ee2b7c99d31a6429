"""Training the index of a cache: k-means on a sample of the vectors, which stays fp16 all the way."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.errors import ConfigError

SEED = 20
_ENCODER_BYTES = 128 << 20
"""Of fp32 vectors that a scalar or product quantiser is trained on; k-means takes the whole sample."""


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
    """Refuse an index that rows cannot be removed from, or that cannot be written a part at a time.

    Raises:
        ConfigError: it is neither flat nor an inverted file.
    """
    if key != "IDMap2,Flat" and not is_inverted_file(key):
        raise ConfigError(
            f"an index {key!r} is none that a cache can be changed with; expected IDMap2,Flat or an inverted file "
            "such as IVF4096,SQ8"
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
    inner = faiss.extract_index_ivf(index)
    if len(sample) < inner.nlist:
        raise ConfigError(f"{key} has {inner.nlist} lists, and only {len(sample)} vectors are there to find them with")
    inner.cp.min_points_per_centroid = 1  # or FAISS prints its advice over ours
    num_encoder = max(_ENCODER_BYTES // (4 * dim), 1)
    if not isinstance(faiss.downcast_index(index), faiss.IndexIVF):  # a rotation in front, which is learned too
        index.train(sample.astype(np.float32))
        return index
    clustering = faiss.Clustering(dim, inner.nlist, inner.cp)
    codec = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    clustering.train_encoded(sample.view(np.uint8).reshape(len(sample), -1), codec, faiss.IndexFlatIP(dim))
    centroids = faiss.vector_to_array(clustering.centroids).reshape(inner.nlist, dim)
    inner.quantizer.train(centroids)
    inner.quantizer.add(centroids)
    index.train(sample[sample_rows(len(sample), num_encoder)].astype(np.float32))
    return index
