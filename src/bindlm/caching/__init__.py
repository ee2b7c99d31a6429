"""Making visual caches of millions of pictures, and changing them; `bindlm.space` reads them."""

from bindlm.caching.build import add_to_cache, build_cache, check_out
from bindlm.caching.change import merge_caches, remove_from_cache
from bindlm.caching.chunks import CacheSource, Chunk
from bindlm.caching.indexing import Budget
from bindlm.caching.journal import work_folder
from bindlm.caching.sources import open_embeddings
from bindlm.caching.stores import StoreSource, embed_pictures, picture_fingerprint
from bindlm.caching.verify import Verification, describe_cache, verify_cache

__all__ = [
    "Budget",
    "CacheSource",
    "Chunk",
    "StoreSource",
    "Verification",
    "add_to_cache",
    "build_cache",
    "check_out",
    "describe_cache",
    "embed_pictures",
    "merge_caches",
    "open_embeddings",
    "picture_fingerprint",
    "remove_from_cache",
    "verify_cache",
    "work_folder",
]
