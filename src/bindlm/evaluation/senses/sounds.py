"""Real recordings from sources that nobody trains on: instruments, animals, effects."""

from collections.abc import Sequence
from pathlib import Path

from bindlm.binding.sources.sound_labels import load_sound_labels
from bindlm.evaluation.recordings import GROUPS, Recording, fetch_recordings, load_recordings
from bindlm.evaluation.senses.exam import Exam, Item
from bindlm.evaluation.senses.tables import training_media
from bindlm.space.entry_names import NamedEntry


def sounds_exam(
    split: str, *, root: Path | None = None, training: Sequence[Path] = (), without: Sequence[str] = ()
) -> Exam:
    """The recordings of one split.

    Args:
        split: "validation" or "test".
        root: folder of the recordings; what it lacks is fetched into it.
        training: tables of pairs that the tower was trained on, for the nearest training clip.
        without: beginnings of sources to leave out, for a tower that was trained on them.

    Raises:
        CheckpointError: no recording is to be had, or a table of `training` cannot be read.
    """
    fetch_recordings(root)
    recordings = load_recordings(split, root=root, without=without, allow_missing=True)
    return Exam(
        sense="audio",
        items=tuple(map(_item, recordings)),
        groups=(*GROUPS, *(f"{group}, named" for group in GROUPS), "unnamed"),
        training=tuple(pair for table in training for pair in training_media(table, "audio")),
        entries_of=entries_of,
    )


def _item(recording: Recording) -> Item:
    named = f"{recording.group}, named" if recording.named else "unnamed"
    return Item(
        id=recording.id,
        medium=recording.path,
        label=recording.label,
        acceptable=recording.acceptable,
        parents=recording.parents,
        groups=(recording.group, named),
    )


def entries_of(item: Item, entries: Sequence[NamedEntry]) -> list[int]:
    """The cache entries that stand for a recording's name, as the towers' own targets choose them.

    A label that no tower is trained on has the entries that carry one of its right names, or are a kind of it; where
    there is none, those whose name ends in one: a pipe organ for an organ.
    """
    if "unnamed" in item.groups:
        return []
    known = load_sound_labels().get(item.label)
    if known is not None and known.exact:
        return known.entries((entry.name, entry.kind, entry.source) for entry in entries)
    right = tuple(word.casefold() for word in item.acceptable)
    named = [[entry.name.casefold(), entry.kind.casefold()] for entry in entries]
    exact = [number for number, words in enumerate(named) if set(words) & set(right)]
    return exact or [
        number for number, (name, _) in enumerate(named) if name.endswith(tuple(f" {word}" for word in right))
    ]
