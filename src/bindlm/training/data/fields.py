"""The fields that every layout has: words and names of media, checked."""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bindlm.training.data.bad_rows import BadRowError

MAX_TEXT = 1_000_000
"""Characters of one text; more is a file that was read with the wrong quotes."""
MAX_NAME = 4096
"""Characters of a medium's name; PATH_MAX of Linux."""
MEDIA_COLUMNS = ("image", "image_path", "filepath", "file_name", "filename", "path", "url", "image_url", "key")
"""Usual names of the column with the medium, in the order in which they are preferred."""
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description")
"""Usual names of the column with the words, in the order in which they are preferred."""

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def text_of(value: Any, what: str) -> str:
    """A text that has something in it.

    Args:
        value: What the row has.
        what: What messages call it: "caption".

    Raises:
        BadRowError: It is missing, blank, no text, too long, or was no UTF-8.
    """
    if value is None:
        raise BadRowError(f"no {what}")
    if not isinstance(value, str):
        raise BadRowError(f"{what} is no text but {_type_of(value)}")
    if not value.strip():
        raise BadRowError(f"empty {what}")
    return _sound(value, what)


def optional_text_of(value: Any, what: str) -> str | None:
    """As `text_of`, but None for what is missing or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return text_of(value, what)


def captions_of(value: Any) -> tuple[str, ...]:
    """One caption, or a list of alternatives without its blank ones and repeats, each without blanks around it.

    Raises:
        BadRowError: There is none, or one is no text.
    """
    if isinstance(value, list):
        texts = [text for each in value if (text := optional_text_of(each, "caption")) is not None]
    else:
        texts = [text_of(value, "caption")]
    if not texts:
        raise BadRowError("empty caption")
    return tuple(dict.fromkeys(text.strip() for text in texts))


def media_of(value: Any) -> str:
    """The name of a medium: a path, or an address.

    Raises:
        BadRowError: It is missing, no text, or no name that a file can have.
    """
    name = text_of(value, "name of a medium").strip()
    if len(name) > MAX_NAME:
        raise BadRowError("name of a medium is too long")
    if not name.isprintable():
        raise BadRowError("name of a medium has control characters")
    return name


def optional_media_of(row: Mapping[str, Any]) -> str | None:
    """The medium of an instruction, under `image`; None where it is about words only.

    Raises:
        BadRowError: It has several, or the name is none.
    """
    value = row.get("image")
    if isinstance(value, list):
        if len(value) > 1:
            raise BadRowError("several media in one row")
        value = value[0] if value else None
    return None if value is None or value == "" else media_of(value)


def is_url(name: str) -> bool:
    """Whether a medium's name is an address such as https://…, not a path."""
    return _URL.match(name) is not None


def modality_of_name(name: str) -> str:
    """The sense that a medium's ending tells; a picture where it tells none."""
    return _modality_of_suffix(name[name.rfind(".") :].lower()) if "." in name else "image"


@functools.lru_cache(maxsize=256)
def _modality_of_suffix(suffix: str) -> str:
    from bindlm.folder import modality_of

    return modality_of(f"a{suffix}" if "/" not in suffix else "") or "image"


def find_column(columns: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """The first of the wanted columns that is there, in any case: LAION writes URL and TEXT."""
    return _find_column(tuple(columns), wanted)


@functools.lru_cache(maxsize=256)
def _find_column(columns: tuple[str, ...], wanted: tuple[str, ...]) -> str | None:
    by_lower = {column.strip().lower(): column for column in reversed(columns)}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def _sound(text: str, what: str) -> str:
    if len(text) > MAX_TEXT:
        raise BadRowError(f"{what} is longer than {MAX_TEXT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"{what} is no valid UTF-8") from None
    return text


def _type_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")
