"""Names as text that are to find their pictures: names that no tower has met."""

from collections import defaultdict
from pathlib import Path

from bindlm.evaluation.senses.exam import Exam, Item
from bindlm.evaluation.senses.names import names_of
from bindlm.evaluation.senses.tables import read_rows, source_folder

SOURCES = ("emoji", "furniture")


def texts_exam(split: str, *, root: Path | None = None) -> Exam:
    """The names of one split; a name of several sources or pictures is one text, and each of its pictures is right.

    Raises:
        CheckpointError: a source is not to be had.
    """
    pictures: dict[str, list[Path]] = defaultdict(list)
    sources: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, str] = {}
    training: dict[str, str] = {}
    for source in SOURCES:
        folder = source_folder(source, root)
        for row in read_rows(folder / "pairs.jsonl"):
            label = row["label"]
            if row["split"] == split:
                key = label.casefold()
                labels.setdefault(key, label)
                pictures[key].append(folder / row["image"])
                sources[key] += [source] * (source not in sources[key])
            elif row["split"] == "train":
                training.setdefault(label.casefold(), label)
    return Exam(
        sense="text",
        items=tuple(_item(labels[key], tuple(sources[key]), tuple(pictures[key])) for key in labels),
        groups=SOURCES,
        training=tuple((label, label) for label in training.values()),
        own_sources=SOURCES,
    )


def _item(label: str, sources: tuple[str, ...], pictures: tuple[Path, ...]) -> Item:
    names = [names_of(source, label) for source in sources]
    return Item(
        id=label,
        medium=label,
        label=label,
        acceptable=tuple(dict.fromkeys(word for each in names for word in each.acceptable)),
        parents=tuple(dict.fromkeys(word for each in names for word in each.parents)),
        groups=sources,
        pictures=pictures,
    )
