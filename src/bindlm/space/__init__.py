"""The joint space: mixing embeddings and pulling them toward known ones."""

from bindlm.space.cache import CacheWeighting, VisualCache, VisualCacheConfig

__all__ = ["CacheWeighting", "VisualCache", "VisualCacheConfig"]
