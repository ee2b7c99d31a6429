"""What encoders share whose model is one of transformers: token ids, and small readings of a folder."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from bindlm.checkpoints.quiet import quiet_transformers
from bindlm.errors import CheckpointError, ConfigError

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_TOKENIZING = threading.Lock()
"""A tokenizer of Rust must not be used from two threads while one of them sets its padding ("Already borrowed")."""


def token_ids(folder: str, text: str, length: int) -> Tensor:
    """Token ids of a text by the folder's tokenizer, int64 `(length,)`, padded or cut.

    Raises:
        ConfigError: the folder holds no tokenizer that can be used here.
    """
    tokenizer = _tokenizer(folder)
    with _TOKENIZING:
        given = tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return given["input_ids"][0]


@lru_cache(maxsize=8)
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    # Asked here, since from a folder without any, transformers 5 makes an empty tokenizer and says nothing.
    if not any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(f"{folder} holds no tokenizer; get its tokenizer.json and tokenizer_config.json.")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError:
        raise ConfigError(
            f"The tokenizer of {folder} needs a package that is not installed; SigLIP (not SigLIP 2) needs "
            "sentencepiece: pip install sentencepiece."
        ) from None
    except Exception:
        raise ConfigError(f"The tokenizer of {folder} cannot be read; get its tokenizer.json again.") from None
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"The tokenizer of {folder} names no padding token; get its tokenizer_config.json again.")
    return tokenizer


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """Also without what transformers prints: for PE-AV's video, 5.23 prints complaints about its own docstrings."""
    with quiet_transformers(), contextlib.redirect_stdout(io.StringIO()):
        yield


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        CheckpointError: there are none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path} is missing or no JSON; give the folder as published") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no settings; get it again")
    return content


def one_line(error: Exception) -> str:
    """What a library says, on one line and not too long, without its full stop."""
    return " ".join(str(error).split())[:300].rstrip(".")
