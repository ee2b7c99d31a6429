"""(being written)"""

from pathlib import Path

from bindlm.binding.sources.source import Source, Summary


def fetch_emoji(folder: Path, root: Path) -> Summary:
    raise NotImplementedError


EMOJI = Source("emoji", (), "", "", {}, fetch_emoji)
