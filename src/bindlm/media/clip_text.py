"""From texts to the token ids of CLIP, which ImageBind's text tower and OpenCLIP's read."""

from __future__ import annotations

import gzip
import html
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from bindlm.errors import ConfigError
from bindlm.media.limits import TextLimits
from bindlm.media.text import load_text

if TYPE_CHECKING:
    import torch
    from tokenizers.models import BPE

VOCAB_SIZE = 49_408
START_ID, END_ID = 49_406, 49_407
_START, _END = "<|startoftext|>", "<|endoftext|>"
_MERGES = "data/clip_bpe_merges.txt.gz"
_END_OF_WORD = "</w>"

_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""A special token, an English suffix, a run of letters, one digit, or a run of anything else but blanks."""


def tokenize_clip(
    texts: Sequence[str | os.PathLike[Any] | bytes],
    *,
    context_length: int = 77,
    pad_id: int = 0,
    is_end_kept: bool = True,
    limits: TextLimits = TextLimits(),
) -> torch.Tensor:
    """Token ids as ImageBind's text tower takes them: start, the text, end, padding.

    A text is cleaned first: mojibake is repaired (`ftfy.fix_text`), HTML entities are resolved twice, runs of blanks
    become one, and everything is lower-cased. Written out, `<|endoftext|>` is the end token itself, and the tower,
    which pools at the largest id, then looks there.

    Args:
        texts: B texts, as `bindlm.media.load_text` takes them (a `str` is the text itself); "" is allowed too.
        context_length: T, the length of each row, at least 2.
        pad_id: What fills a row after the end token. ImageBind: 0. OpenAI's CLIP in transformers: 49407.
        is_end_kept: Whether a text that is too long is cut before its end token or, as in the copy of ImageBind that
            ImageBind-LLM and PandaGPT brought along, after it has been appended, so that the end token is lost. The
            tower then pools at the start token, which has seen nothing: all such texts get one and the same embedding.
        limits: How long a text may be. (What lies beyond `context_length` tokens is dropped without an error.)

    Returns:
        int64 `(B, T)`, ids from 0 to 49407.

    Raises:
        MediaError: A text is too long for `limits`, is not Unicode, or cannot be read.
        ConfigError: Impossible settings, or one bare text in place of a list of texts.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020),
        2.4, and the vocabulary released with it; ImageBind (arXiv 2305.05665), appendix.

    Example:
        >>> tokenize_clip(["A dog."], context_length=6)
        tensor([[49406,   320,  1929,   269, 49407,     0]])
    """
    import torch

    if isinstance(texts, (str, bytes, os.PathLike)):
        raise ConfigError(f"texts must be a list of texts, got one {type(texts).__name__}: write [text].")
    if isinstance(context_length, bool) or not isinstance(context_length, int) or context_length < 2:
        raise ConfigError(f"context_length must be a whole number of at least 2, got {context_length!r}.")
    if isinstance(pad_id, bool) or not isinstance(pad_id, int) or not 0 <= pad_id < VOCAB_SIZE:
        raise ConfigError(f"pad_id must be a whole number from 0 to {VOCAB_SIZE - 1}, got {pad_id!r}.")
    rows = torch.full((len(texts), context_length), pad_id, dtype=torch.int64)  # (B, T)
    for row, text in zip(rows, texts, strict=True):
        ids = [START_ID]
        for more in _token_ids("" if text in ("", b"") else load_text(text, limits=limits)):
            ids += more
            if len(ids) >= context_length:  # the rest of a book is not tokenized in vain
                break
        ids = [*ids[: context_length - 1], END_ID] if is_end_kept else [*ids, END_ID][:context_length]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def clean_clip_text(text: str) -> str:
    """`text` as CLIP's tokenizer sees it: repaired, without entities, blanks collapsed, lower case."""
    import ftfy

    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    # Python's `lower`, not that of `tokenizers`: only the former knows the form of a sigma at the end of a word.
    return re.sub(r"\s+", " ", repaired).strip().lower()


def _token_ids(text: str) -> Iterator[list[int]]:
    """The ids of each piece of `text` in turn."""
    import regex

    bpe, symbols = _vocabulary()
    special = {_START: [START_ID], _END: [END_ID]}
    for piece in regex.finditer(_PIECES, clean_clip_text(text), regex.IGNORECASE):
        word = piece.group()
        if word in special:
            yield special[word]
        else:
            yield [token.id for token in bpe.tokenize(word.encode().decode("latin-1").translate(symbols))]


@cache
def _vocabulary() -> tuple[BPE, dict[int, str]]:
    """The merger of byte pairs, and the printable symbol that stands for each byte in it.

    The ids: 256 bytes, the same 256 at the end of a word, one for each merge, start, end. Bytes that are printable in
    Latin-1 stand for themselves and come first; the others, in order, are the symbols from U+0100 on.
    """
    from tokenizers.models import BPE

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    text = gzip.decompress((files(__package__) / _MERGES).read_bytes()).decode("utf-8")
    merges = [(left, right) for left, right in (line.split(" ") for line in text.splitlines())]
    tokens = list(symbols.values())
    tokens += [symbol + _END_OF_WORD for symbol in tokens]
    tokens += [left + right for left, right in merges] + [_START, _END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == VOCAB_SIZE
    # Its id for an unknown symbol is never used: all 256 bytes are in the vocabulary.
    return BPE(vocabulary, merges, end_of_word_suffix=_END_OF_WORD, continuing_subword_prefix=""), symbols
