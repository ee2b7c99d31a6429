"""(being written)"""

from pathlib import Path

from bindlm.binding.sources.source import Source, Summary


def fetch_stamps(folder: Path, root: Path) -> Summary:
    raise NotImplementedError


STAMPS = Source("stamps", (), "", "", {}, fetch_stamps)
