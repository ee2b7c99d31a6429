"""What a waiting person sees: one line on stderr for each step that takes time, and a bar on a terminal."""

import sys
from typing import Any


def say(text: str, *, progress: bool = True) -> None:
    """Print ``bindlm: text`` on stderr, or nothing with ``progress=False``."""
    if progress:
        print(f"bindlm: {text}", file=sys.stderr, flush=True)


def byte_bar(total: int | None, *, progress: bool = True) -> Any:
    """A tqdm bar that counts bytes on stderr; silent with ``progress=False`` and where stderr is no terminal.

    Args:
        total: Bytes to come, or None where nobody knows.
    """
    from tqdm import tqdm

    # disable=None lets tqdm ask whether stderr is a terminal: a log file gets the line of `say`, not a thousand bars.
    disable = None if progress else True
    return tqdm(total=total, unit="B", unit_scale=True, desc="bindlm", leave=False, file=sys.stderr, disable=disable)


def human_size(num_bytes: int) -> str:
    """``92871040`` -> ``"93 MB"``: powers of ten, as download pages count."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
