"""How a medium is called in messages, and the one shape of its errors."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from bindlm.errors import MediaError

_MAX_LABEL = 200
"""Longest label in a message; a longer one loses its middle, since both ends of a path tell the most."""


def printable(text: str) -> str:
    """`text` with every control, bidirectional and unpaired character written as an escape, shortened to 200.

    A file name is chosen by strangers: printed raw it could clear a terminal or forge a line of a log.
    """
    if len(text) > _MAX_LABEL:
        half = _MAX_LABEL // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def url_label(url: str) -> str:
    """`url` without what is often secret: user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:  # for example an unclosed IPv6 bracket
        return "<URL>"
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


@dataclass(frozen=True)
class Medium:
    """What messages call one given medium."""

    kind: str
    """What it should be: "picture" or "text"."""
    label: str
    """Which one it is, printable: `'cat.jpg'` in quotes, or a description such as `<bytes, 123 bytes>`."""

    def error(self, reason: str, cure: str) -> MediaError:
        """The error that names this medium, why it cannot be used, and what to do."""
        return MediaError(f"Cannot use {self.kind} {self.label}: {reason}. {cure}.")

    def unknown_format(self, head: bytes, what: str, *, give: str, convert: str) -> MediaError:
        """The error for bytes in no format that is read; the message tells text from other data.

        Args:
            head: first bytes.
            what: which format was looked for: "picture".
            give: the cure for text, which is often a path given as bytes.
            convert: the cure for other data.
        """
        # A character cut in two at the end of the head is no reason to call a text binary, hence "ignore" and a count.
        readable = head.decode("utf-8", "ignore")
        is_whole = len(head) - len(readable.encode()) < 4
        if is_whole and all(char.isprintable() or char.isspace() for char in readable):
            return self.error(f"it holds text, not a {what}", give)
        return self.error(f"it is in no known {what} format", convert)
