"""A plain table of pairs: a medium of the new sense, what it is bound to, and where it belongs.

    audio,image,label,object
    bark.wav,dog.jpg,dog,dog-1

One column has the new sense's name and holds paths (of `text`, the text itself), relative to the table. The anchor's
columns are named after its senses, or `feature` for row numbers of ready embeddings. `label`, `object` (nothing of an
object is in two splits) and `split` may be left out.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.binding.recipe import AnchorColumn, SplitRecipe
from bindlm.errors import ConfigError

__all__ = ["SPLITS", "AnchorSide", "PairTable", "read_pairs"]

SPLITS = ("train", "validation", "test")
ABSENT = -1
_SENSES = ("image", "text", "audio", "point", "depth", "thermal", "imu", "video")
_TEXT = "text"
_LONGEST = 16 << 20

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class AnchorSide:
    """One anchor column: its different anchors, and which a row has."""

    column: AnchorColumn
    anchors: list[str]
    """Paths, texts, or `TABLE#ROW` for ready embeddings; each once."""
    rows: Numbers
    """`(N,)`: number of a row's anchor, -1 where it has none."""


@dataclass(frozen=True)
class PairTable:
    """N pairs, in order."""

    modality: str
    """The new sense."""
    media: list[str]
    """Paths, or texts; each once."""
    medium: Numbers
    """`(N,)`: number of a row's medium."""
    sides: list[AnchorSide]
    labels: list[str]
    """Each once."""
    label: Numbers
    """`(N,)`: number of a row's label, -1 where it has none."""
    objects: list[str]
    """`(N,)`: what a row is about."""
    split: NDArray[np.int8]
    """`(N,)`: number in `SPLITS`."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Media and anchors that cannot be used, and why."""

    def __len__(self) -> int:
        return len(self.medium)

    def rows_of(self, split: str) -> Numbers:
        """Numbers of the rows of a split."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def without(self, media: dict[int, str], anchors: Sequence[dict[int, str]] = ()) -> "PairTable":
        """The rows that are left when some media, and some anchors of each side, cannot be used.

        A row stays while it has its medium and one anchor.

        Args:
            media: number -> why.
            anchors: the same for each side.

        Raises:
            ConfigError: nothing is left.
        """
        sides = []
        left_out = dict(self.left_out) | {self.media[number]: why for number, why in media.items()}
        has_anchor = np.zeros(len(self), dtype=bool)
        for side, bad in zip(self.sides, anchors or [{}] * len(self.sides), strict=True):
            rows = np.where(np.isin(side.rows, list(bad)), ABSENT, side.rows)
            left_out |= {side.anchors[number]: why for number, why in bad.items()}
            has_anchor |= rows != ABSENT
            sides.append(replace(side, rows=rows))
        kept = has_anchor & ~np.isin(self.medium, list(media))
        if not kept.any():
            name, why = next(iter(left_out.items()))
            raise ConfigError(f"None of the {len(self)} pairs can be used; {name!r}, for one: {why}")
        return PairTable(
            self.modality,
            self.media,
            self.medium[kept],
            [replace(side, rows=side.rows[kept]) for side in sides],
            self.labels,
            self.label[kept],
            [name for name, stays in zip(self.objects, kept, strict=True) if stays],
            self.split[kept],
            left_out,
        )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of what the pairs are, without the folder that they are in."""
        digest = hashlib.sha256(self.modality.encode())
        shared = _common_folder([*self.media, *(name for side in self.sides for name in side.anchors)])
        for names in (self.media, *(side.anchors for side in self.sides), self.labels):
            digest.update("\n".join(name.removeprefix(shared) for name in names).encode("utf-8", "surrogatepass"))
        for numbers in (self.medium, *(side.rows for side in self.sides), self.label, self.split):
            digest.update(np.ascontiguousarray(numbers).tobytes())
        return digest.hexdigest()[:16]


def read_pairs(
    tables: Sequence[Path],
    modality: str,
    columns: Sequence[AnchorColumn] = (),
    *,
    split: SplitRecipe | None = None,
    limit: int | None = None,
) -> PairTable:
    """Read tables of pairs into one.

    Args:
        tables: jsonl, csv, tsv or parquet files.
        modality: the new sense, whose name a column has.
        columns: of the anchor; empty takes the one that the tables have.
        split: how objects are dealt out; None takes the tables' `split` column, or a tenth each where there is none.
        limit: of rows, for each table.

    Raises:
        ConfigError: a table is missing or no table, a column or a cell is; an object is in two splits.
    """
    rows = [row for path in tables for row in _rows(Path(path), modality, limit)]
    if not rows:
        raise ConfigError(f"There are no pairs in {', '.join(map(str, tables))}.")
    present = {key for row in rows for key, value in row.cells.items() if value is not None}
    if modality not in present:
        raise ConfigError(
            f"{rows[0].path} has no column {modality!r}, the sense to be bound; its columns are "
            f"{', '.join(sorted(present))}."
        )
    sides = [_side(rows, column, present) for column in columns or [_only_anchor(present, modality, rows[0].path)]]
    media, medium = _numbered([_place(row, modality, modality) for row in rows])
    labels, label = _numbered([row.text("label") for row in rows])
    objects = [row.text("object") or str(media[number]) for row, number in zip(rows, medium, strict=True)]
    pairs = PairTable(
        modality, media, medium, sides, labels, label, objects, _split(rows, objects, split, "split" in present)
    )
    return _complete(pairs, rows)


@dataclass(frozen=True)
class _Row:
    """A line of a table, for messages too."""

    path: Path
    number: int
    cells: dict[str, Any]

    def text(self, column: str) -> str | None:
        value = self.cells.get(column)
        return None if value is None else str(value)

    @property
    def where(self) -> str:
        return f"{self.path}, row {self.number}"


def _only_anchor(present: set[str], modality: str, path: Path) -> AnchorColumn:
    """The anchor column of a table, where the recipe names none."""
    found = [name for name in ("feature", *_SENSES) if name in present and name != modality]
    if len(found) == 1:
        return AnchorColumn(found[0])
    if not found:
        raise ConfigError(
            f"{path} has no column to bind {modality!r} to: image, text or another sense of the anchor, or feature; "
            f"its columns are {', '.join(sorted(present))}."
        )
    raise ConfigError(f"{path} has several columns to bind to ({', '.join(found)}); choose with anchor.columns.")


def _side(rows: Sequence[_Row], column: AnchorColumn, present: set[str]) -> AnchorSide:
    if column.column not in present:
        raise ConfigError(
            f"{rows[0].path} has no column {column.column!r} that anchor.columns names; its columns are "
            f"{', '.join(sorted(present))}."
        )
    find: Callable[[_Row], str | None] = _feature_place(column) if column.is_feature else _anchor_place(column.column)
    anchors, numbers = _numbered([find(row) for row in rows])
    return AnchorSide(column, anchors, numbers)


def _feature_place(column: AnchorColumn) -> Callable[[_Row], str | None]:
    def place(row: _Row) -> str | None:
        value = row.cells.get(column.column)
        if value is None:
            return None
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = -1
        if number < 0 or (isinstance(value, float) and value != number):
            raise ConfigError(f"{row.where}: {column.column} must be a row number from 0, got {value!r}.")
        return f"{_feature_file(row.path, column)}#{number}"

    return place


def _feature_file(table: Path, column: AnchorColumn) -> Path:
    names = (column.file,) if column.file is not None else ("features.safetensors", "features.npy")
    for name in names:
        if (table.parent / name).is_file():
            return table.parent / name
    raise ConfigError(f"{table} counts the rows of {' or '.join(names)}, which is not beside it.")


def _anchor_place(column: str) -> Callable[[_Row], str | None]:
    return lambda row: _place(row, column, column)


def _place(row: _Row, column: str, modality: str) -> str | None:
    """A cell as a path that works from anywhere, or as the text."""
    value = row.cells.get(column)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{row.where}: {column} must be a {'text' if modality == _TEXT else 'path'}, got {value!r}.")
    return value if modality == _TEXT else str(row.path.parent / value)


def _numbered(values: Sequence[str | None]) -> tuple[list[str], Numbers]:
    """Different values in order of their first appearance, and the number of each row's, -1 for None."""
    known: dict[str, int] = {}
    numbers = [ABSENT if value is None else known.setdefault(value, len(known)) for value in values]
    return list(known), np.array(numbers, dtype=np.int64)


def _complete(pairs: PairTable, rows: Sequence[_Row]) -> PairTable:
    """The pairs, after a check that every row has a medium and an anchor."""
    lacks_medium = pairs.medium == ABSENT
    lacks_anchor = np.all([side.rows == ABSENT for side in pairs.sides], axis=0)
    for lacks, what in ((lacks_medium, pairs.modality), (lacks_anchor, "anchor")):
        if lacks.any():
            first = rows[int(np.argmax(lacks))]
            raise ConfigError(f"{first.where}: the cell of the {what} is empty ({int(lacks.sum())} rows in all).")
    return pairs


# -- splits -----------------------------------------------------------------------------------------------------------


def _split(
    rows: Sequence[_Row], objects: Sequence[str], recipe: SplitRecipe | None, has_column: bool
) -> NDArray[np.int8]:
    if recipe is None and has_column:
        return _own_split(rows, objects)
    deal = _dealt(objects, recipe or SplitRecipe())
    return np.array([deal[name] for name in objects], dtype=np.int8)


def _own_split(rows: Sequence[_Row], objects: Sequence[str]) -> NDArray[np.int8]:
    """The tables' own split, which must not tear an object apart."""
    seen: dict[str, str] = {}
    for row, name in zip(rows, objects, strict=True):
        split = row.text("split")
        if split not in SPLITS:
            raise ConfigError(f"{row.where}: split must be one of {', '.join(SPLITS)}, got {split!r}.")
        if seen.setdefault(name, split) != split:
            raise ConfigError(
                f"{row.where}: object {name!r} is in {seen[name]} and in {split}; what is tested would have been "
                "trained on. Put all its rows into one split, or set data.split, which deals objects out anew."
            )
    return np.array([SPLITS.index(row.text("split") or "") for row in rows], dtype=np.int8)


def _dealt(objects: Sequence[str], recipe: SplitRecipe) -> dict[str, int]:
    """Object -> number of its split; the same for the same objects in any order.

    Names of files are reduced to what tells them apart, so that a moved folder is dealt out as before.
    """
    names = sorted(set(objects))
    shared = _common_folder(names)

    def lot(name: str) -> bytes:
        text = f"{recipe.seed} {name.removeprefix(shared)}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    drawn = sorted(names, key=lot)
    num_validation = round(recipe.validation * len(drawn))
    num_test = round(recipe.test * len(drawn))
    borders = {"validation": drawn[:num_validation], "test": drawn[num_validation : num_validation + num_test]}
    deal = dict.fromkeys(drawn, SPLITS.index("train"))
    for split, members in borders.items():
        deal |= dict.fromkeys(members, SPLITS.index(split))
    return deal


def _common_folder(names: Sequence[str]) -> str:
    """The folder that all names start with, as text, or nothing."""
    first, last = min(names, default=""), max(names, default="")
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, length) + 1]


# -- formats ----------------------------------------------------------------------------------------------------------


def _rows(path: Path, modality: str, limit: int | None) -> Iterator[_Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} is no table of pairs: its name must end in {', '.join(sorted(_READERS))}.")
    if not path.is_file():
        raise ConfigError(f"There is no table {path}.")
    try:
        for number, cells in enumerate(reader(path), start=1):
            if limit is not None and number > limit:
                return
            yield _Row(path, number, {key: value for key, value in cells.items() if key and _is_given(value)})
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8; save it as UTF-8.") from None


def _is_given(value: Any) -> bool:
    return value is not None and value != "" and value == value  # NaN stands for nothing in some tables


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except ValueError:
                cells = None
            if not isinstance(cells, dict):
                raise ConfigError(f"{path}, line {number} is no JSON object.")
            yield cells


def _separated(separator: str) -> Callable[[Path], Iterator[dict[str, Any]]]:
    def read(path: Path) -> Iterator[dict[str, Any]]:
        before = csv.field_size_limit(_LONGEST)
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                for number, cells in enumerate(csv.DictReader(stream, delimiter=separator), start=1):
                    if None in cells:
                        raise ConfigError(f"{path}, row {number} has more cells than the first line names columns.")
                    yield cells
        except csv.Error as error:
            raise ConfigError(f"{path} is no table: {error}.") from None
        finally:
            csv.field_size_limit(before)

    return read


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except pa.ArrowInvalid:
        raise ConfigError(f"{path} is no Parquet file, or a damaged one.") from None


_READERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
