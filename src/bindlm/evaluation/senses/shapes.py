"""Clouds of points and depth pictures of furniture: objects whose names no tower has met."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bindlm.evaluation.senses.exam import Exam, Item
from bindlm.evaluation.senses.names import names_of
from bindlm.evaluation.senses.tables import read_rows, source_folder

SOURCE = "furniture"
TABLES = {"point": "pairs.jsonl", "depth": "pairs-depth.jsonl"}


def shapes_exam(sense: str, split: str, *, root: Path | None = None, views: int = 1) -> Exam:
    """The furniture of one split.

    Args:
        sense: "point" or "depth".
        split: "validation" or "test".
        root: folder of the furniture; None fetches it.
        views: depth pictures of each object, 1 to 6; each counts as a medium.

    Raises:
        CheckpointError: the furniture is not to be had.
    """
    folder = source_folder(SOURCE, root)
    category = {row["object"]: row["category"] for row in read_rows(folder / "objects.jsonl")}
    rows = _first_views(read_rows(folder / TABLES[sense]), views)
    items = tuple(_item(row, sense, folder, category[row["object"]]) for row in rows if row["split"] == split)
    return Exam(
        sense=sense,
        items=items,
        categories=tuple(sorted({group for item in items for group in item.groups})),
        training=tuple((folder / row[sense], row["label"]) for row in rows if row["split"] == "train"),
        own_sources=(SOURCE,),
    )


def _item(row: dict[str, Any], sense: str, folder: Path, category: str) -> Item:
    names = names_of(SOURCE, row["label"])
    return Item(
        id=Path(row[sense]).stem,
        medium=folder / row[sense],
        label=row["label"],
        acceptable=names.acceptable,
        parents=names.parents,
        groups=(category,),
        pictures=(folder / row["image"],),
    )


def _first_views(rows: Sequence[dict[str, Any]], views: int) -> list[dict[str, Any]]:
    """The first so many rows of each object."""
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row["object"]] = seen.get(row["object"], 0) + 1
        if seen[row["object"]] <= views:
            kept.append(row)
    return kept
