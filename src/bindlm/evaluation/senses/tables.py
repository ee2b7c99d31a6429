"""Tables of pairs, as the data scripts write them."""

import json
import os
from pathlib import Path
from typing import Any

from bindlm.checkpoints.home import home, home_path
from bindlm.errors import CheckpointError


def source_folder(name: str, root: str | os.PathLike[str] | None) -> Path:
    """The folder of a data source, fetched where the user names none.

    Args:
        name: a row of `bindlm.binding.sources.SOURCES`.
        root: the folder that `bindlm data fetch NAME` filled, or one that holds it under its name.

    Raises:
        CheckpointError: that folder holds no such data, or a package cannot be had.
    """
    from bindlm.binding.sources import SOURCES

    if root is not None:
        given = Path(os.path.abspath(root))
        for folder in (given, given / name):
            if (folder / "pairs.jsonl").is_file():
                return folder
        raise CheckpointError(
            f"{given} holds no {name}; fill a folder with `bindlm data fetch {name} -o FOLDER`, or leave out --root"
        )
    folder = home_path() / "sources" / name
    if not (folder / "pairs.jsonl").is_file():
        SOURCES[name].fetch(folder, home() / "debian")
    return folder


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Every row of a table of JSON lines.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with table.open(encoding="utf-8") as stream:
            return [json.loads(line) for line in stream if line.strip()]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{table} is missing or damaged; expected JSON lines, as `bindlm data fetch` writes them"
        ) from error


def training_media(table: Path, sense: str) -> list[tuple[Path, str]]:
    """Media and labels of a table's training part.

    Raises:
        CheckpointError: the table cannot be read, or has no such column.
    """
    rows = [row for row in read_rows(table) if row.get("split", "train") == "train"]
    if not rows or not all(sense in row and "label" in row for row in rows):
        raise CheckpointError(f"{table} has no training rows with the columns {sense!r} and 'label'")
    return [(table.parent / row[sense], row["label"]) for row in rows]
