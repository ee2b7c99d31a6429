"""The joint space: mixing embeddings, naming them, searching among them, and pulling them toward known ones."""

from bindlm.space.cache import (
    CacheEntry,
    CacheNeighbour,
    CacheSimilarity,
    CacheWeighting,
    VisualCache,
    VisualCacheBase,
    VisualCacheConfig,
)
from bindlm.space.cache_folder import StoredVisualCache
from bindlm.space.cache_format import CacheRecord, CacheSettings, read_record
from bindlm.space.index import EmbeddingIndex, FileStamp, Hit, IndexEntry, UnreadableEntry
from bindlm.space.mix import MixForm, arithmetic, mix_embeddings, share_weights
from bindlm.space.plot import plot_embeddings, project_2d
from bindlm.space.zero_shot import DEFAULT_TEMPLATES, TEMPLATE_SETS, class_embeddings, classify, templates_for

__all__ = [
    "DEFAULT_TEMPLATES",
    "TEMPLATE_SETS",
    "CacheEntry",
    "CacheNeighbour",
    "CacheRecord",
    "CacheSettings",
    "CacheSimilarity",
    "CacheWeighting",
    "EmbeddingIndex",
    "FileStamp",
    "Hit",
    "IndexEntry",
    "MixForm",
    "StoredVisualCache",
    "UnreadableEntry",
    "VisualCache",
    "VisualCacheBase",
    "VisualCacheConfig",
    "arithmetic",
    "class_embeddings",
    "classify",
    "mix_embeddings",
    "plot_embeddings",
    "project_2d",
    "read_record",
    "share_weights",
    "templates_for",
]
