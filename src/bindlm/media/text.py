"""Text as a medium: a question, a caption, a file of words."""

from __future__ import annotations

import io
import os
from typing import IO, Any

from bindlm.media.limits import TextLimits
from bindlm.media.names import Medium
from bindlm.media.source import describe, read_bytes

_SAVE_AS_UTF8 = "Save it as plain text in UTF-8"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def load_text(
    source: str | os.PathLike[Any] | bytes | IO[Any], *, limits: TextLimits = TextLimits(), name: str | None = None
) -> str:
    r"""Read a text.

    Args:
        source: A `str` is the text itself, never a path or an address. A `pathlib.Path`, bytes, or a file opened for
            reading is read as UTF-8; a byte order mark is dropped and line ends become `\n`.
        limits: How long it may be.
        name: What to call it in messages, in place of the path or a description.

    Raises:
        MediaError: It is empty, too long, not UTF-8, holds a NUL or half of a surrogate pair, or cannot be read.

    Example:
        >>> load_text("a red apple")
        'a red apple'
    """
    if isinstance(source, str):
        unnamed = Medium("text", f"<{len(source)} characters>")
        return _check(source, unnamed if name is None else describe(source, "text", name), limits)
    medium = describe(source, "text", name)
    if isinstance(source, io.TextIOBase):  # already decoded, for example sys.stdin
        return _check(_read_text_stream(source, medium, limits), medium, limits)
    data = read_bytes(source, medium, max_bytes=limits.max_bytes)
    if data.startswith(_UTF16_MARKS):
        raise medium.error("it is in UTF-16, and UTF-8 is needed", _SAVE_AS_UTF8)
    if b"\0" in data:
        raise medium.error("it is a binary file, not text", _SAVE_AS_UTF8)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise medium.error(f"it is not UTF-8 (at byte {error.start})", _SAVE_AS_UTF8) from None
    return _check(text.replace("\r\n", "\n").replace("\r", "\n"), medium, limits)


def _read_text_stream(stream: io.TextIOBase, medium: Medium, limits: TextLimits) -> str:
    try:
        return stream.read(limits.max_characters + 1)
    except Exception:  # closed, opened for writing, or not in the encoding it was opened with
        raise medium.error("reading from it failed", "Open it for reading with encoding='utf-8'") from None


def _check(text: str, medium: Medium, limits: TextLimits) -> str:
    if not text:
        raise medium.error("it is empty", "Give at least one character")
    if len(text) > limits.max_characters:
        raise medium.error(
            f"it has more than the {limits.max_characters} characters allowed",
            "Give a shorter one, or raise TextLimits(max_characters=...)",
        )
    if "\0" in text:
        raise medium.error("it holds a NUL character", "Remove it")
    try:
        text.encode("utf-8")  # no tokenizer takes half of a surrogate pair
    except UnicodeEncodeError as error:
        raise medium.error(f"it holds half of a surrogate pair (at character {error.start})", "Remove it") from None
    return text
