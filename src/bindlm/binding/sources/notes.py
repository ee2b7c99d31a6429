"""The note of licences that lies beside fetched data."""

from collections.abc import Iterable, Mapping
from typing import Any


def licence_note(title: str, about: str, parts: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: what the data are, and for each part its licence and its creators.

    Args:
        title: heading.
        about: a sentence or two.
        parts: `what`, `licence`, `url` (may be empty) and `creators` (names, may be empty) of each part.
    """
    lines = [f"# {title}", "", about, ""]
    for part in parts:
        licence = f"[{part['licence']}]({part['url']})" if part["url"] else part["licence"]
        creators = sorted(part["creators"], key=str.casefold)
        made_by = f" Creators: {', '.join(creators).removesuffix('.')}." if creators else ""
        lines.append(f"- **{part['what']}** ({licence}).{made_by}")
    return "\n".join(lines) + "\n"
