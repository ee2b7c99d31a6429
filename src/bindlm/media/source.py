"""The bytes of a medium, from a path, a URL, bytes, or an open file."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from typing import Any
from urllib.parse import unquote_to_bytes

from bindlm.errors import MediaError
from bindlm.media.limits import UrlLimits
from bindlm.media.names import Medium, printable, url_label

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two characters at least: "C://" is a Windows drive
_DATA_URL = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_CHUNK = 1024 * 1024


def describe(source: Any, kind: str, name: str | None = None) -> Medium:
    """The name that messages use for `source`: `name` where given, else a path, a URL, or a description."""
    if name is not None:
        return Medium(kind, f"'{printable(str(name))}'")
    if isinstance(source, str) and _DATA_URL.match(source):
        return Medium(kind, f"<data URL, {len(source)} characters>")
    if isinstance(source, str) and _SCHEME.match(source):
        return Medium(kind, f"'{url_label(source)}'")
    if isinstance(source, (str, os.PathLike)):
        return Medium(kind, f"'{printable(os.fsdecode(source))}'")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Medium(kind, f"<bytes, {memoryview(source).nbytes} bytes>")
    file_name = getattr(source, "name", None)
    if hasattr(source, "read") and isinstance(file_name, str) and file_name:
        return Medium(kind, f"'{printable(file_name)}'")
    return Medium(kind, f"<{printable(type(source).__name__)}>")


def read_bytes(source: Any, medium: Medium, *, max_bytes: int, allow_url: bool | UrlLimits = False) -> bytes:
    """All bytes of `source`, at most `max_bytes` and at least one.

    Args:
        source: A path (`str` or `os.PathLike`), an `http(s)://` URL, a `data:` URL in base64, bytes, or an object with
            `read` (read from where it stands to its end; it stays open).
        medium: What to call it in messages.
        max_bytes: Reading stops as soon as there are more; a file is refused by its size before it is read.
        allow_url: `True` or limits of its own to let `http(s)://` be fetched.

    Raises:
        MediaError: It cannot be read, is empty, or is too large.
    """
    if isinstance(source, str) and _DATA_URL.match(source):
        data = _decode_data_url(source, medium, max_bytes)
    elif isinstance(source, str) and (match := _SCHEME.match(source)):
        data = _fetch(source, match[1].lower(), medium, max_bytes, allow_url)
    elif isinstance(source, (str, os.PathLike)):
        data = _read_file(source, medium, max_bytes)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = source if isinstance(source, bytes) else bytes(source)
    elif callable(getattr(source, "read", None)):
        data = _read_stream(source, medium, max_bytes)
    else:
        what = printable(type(source).__name__)
        raise medium.error(
            f"it is of type {what}, which is no {medium.kind}", "Give a path, bytes, or a file opened with mode 'rb'"
        )
    if len(data) > max_bytes:
        raise _too_large(medium, max_bytes)
    if not data:
        raise medium.error("it is empty", "Give a file with content (an open file may need seek(0) first)")
    return data


def _too_large(medium: Medium, max_bytes: int) -> MediaError:
    reason = f"it is larger than the {max_bytes} bytes allowed"
    return medium.error(reason, "Give a smaller file, or raise max_bytes of the limits")


def _fetch(url: str, scheme: str, medium: Medium, max_bytes: int, allow_url: bool | UrlLimits) -> bytes:
    if scheme not in ("http", "https"):
        raise medium.error(
            f"addresses that start with {printable(scheme)}:// are not read", "Save the file and give its path"
        )
    if not allow_url:
        cure = "Save the file and give its path, or set allow_url=True"
        raise medium.error("fetching from the web is switched off", cure)
    from bindlm.media.fetch import fetch_url

    limits = allow_url if isinstance(allow_url, UrlLimits) else UrlLimits()
    return fetch_url(url, medium, max_bytes=max_bytes, limits=limits)


def _decode_data_url(url: str, medium: Medium, max_bytes: int) -> bytes:
    header, _, payload = url.partition(",")
    if not header.lower().endswith(";base64"):
        raise medium.error("a data URL that is not in base64 is not read", "Write it as data:image/png;base64,...")
    if len(payload) > 4 * max_bytes:  # at most three characters stand for one escaped character, four for three bytes
        raise _too_large(medium, max_bytes)
    try:
        return base64.b64decode(unquote_to_bytes(payload), validate=True)
    except (binascii.Error, ValueError):
        raise medium.error("its base64 text is damaged", "Encode the file anew, with padding and no blanks") from None


def _read_file(path: str | os.PathLike[Any], medium: Medium, max_bytes: int) -> bytes:
    """The bytes of a regular file. Pipes, sockets and devices are refused unopened: they may never end, or act."""
    try:
        _check_kind(os.stat(path).st_mode, medium)
        # Between the two looks a stranger may swap the file, so the open one is looked at again; without O_NONBLOCK,
        # opening a pipe would wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            _check_kind(status.st_mode, medium)
            if status.st_size > max_bytes:
                raise _too_large(medium, max_bytes)
            return file.read(max_bytes + 1)  # the size may lie (/proc) or grow
    except (FileNotFoundError, NotADirectoryError):
        raise medium.error("there is no such file", "Check the path") from None
    except PermissionError:
        raise medium.error("reading it is not permitted", "Check the permissions of file and folders") from None
    except MediaError:  # also a ValueError
        raise
    except (OSError, ValueError):  # ValueError: a NUL in the path
        raise medium.error("it cannot be read", "Check the path and the disk it is on") from None


def _check_kind(mode: int, medium: Medium) -> None:
    if stat.S_ISDIR(mode):
        raise medium.error("it is a folder", "Give the path of a file in it")
    if not stat.S_ISREG(mode):
        raise medium.error("it is a pipe, a socket or a device, not a file", "Give the path of a file, or its bytes")


def _read_stream(stream: Any, medium: Medium, max_bytes: int) -> bytes:
    """Read to the end in pieces: a `read(n)` may give less than asked, and the stream may not end at all."""
    chunks: list[bytes] = []
    total = 0
    while total <= max_bytes:
        try:
            chunk = stream.read(min(_CHUNK, max_bytes + 1 - total))
        except Exception:  # whatever a stranger's class raises
            raise medium.error("reading from it failed", "Check that it is open for reading, or give bytes") from None
        if chunk is None or isinstance(chunk, str) or not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise medium.error("reading from it gives no bytes", "Open the file with mode 'rb'")
        if not chunk:
            break
        chunks.append(bytes(chunk))
        total += len(chunks[-1])
    return b"".join(chunks)
