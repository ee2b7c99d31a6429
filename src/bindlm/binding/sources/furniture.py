"""(being written)"""

from pathlib import Path

from bindlm.binding.sources.source import Source, Summary


def fetch_furniture(folder: Path, root: Path) -> Summary:
    raise NotImplementedError


FURNITURE = Source("furniture", (), "", "", {}, fetch_furniture)
