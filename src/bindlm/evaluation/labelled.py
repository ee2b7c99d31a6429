"""Labelled files that nobody trains on: a table with checksums, and the files, fetched once out of packages.

`photographs` and `recordings` say what a row holds and how a package is read; all else is here.
"""

import hashlib
import os
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from bindlm.checkpoints.home import disk_errors, home_path
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.scratch import scratch_folder
from bindlm.errors import CheckpointError, ConfigError

SPLITS = ("validation", "test")
Folder = str | os.PathLike[str]

_SOURCES = {
    "deb:NAME": re.compile(r"deb:[a-z0-9][a-z0-9+.-]*"),
    "wheel:NAME==VERSION": re.compile(r"wheel:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*"),
    "npm:NAME@VERSION": re.compile(r"npm:(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*@[0-9][A-Za-z0-9.+-]*"),
}
"""Strict, because names go to apt, pip and npm as arguments."""


@dataclass(frozen=True)
class LabelledFile:
    """What a row of every label table holds."""

    id: str
    source: str
    """The package it comes out of: ``deb:NAME``, ``wheel:NAME==VERSION`` or ``npm:NAME@VERSION``."""
    inside: str
    """Path in the package; ``FILE.rcc!/INNER`` reaches into a Qt resource file."""
    split: str
    """``validation`` or ``test``."""
    acceptable: tuple[str, ...]
    """Names that are right for this file (strict count)."""
    parents: tuple[str, ...]
    """More general names, counted only in the lenient count."""
    sha256: str
    path: Path
    """Where the file lies once it is fetched."""

    def is_intact(self) -> bool:
        """Whether it is there and is the one that was labelled."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest() == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class Skipped:
    """Files of one source that could not be had, and why."""

    source: str
    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} of {self.source}: {self.reason}"


@dataclass(frozen=True)
class FetchReport:
    """What a fetch came to."""

    present: int
    """Files that were there before."""
    fetched: int
    skipped: tuple[Skipped, ...]
    files: str = field(default="files", compare=False)
    """What they are, in the plural."""

    def __str__(self) -> str:
        missing = sum(each.count for each in self.skipped)
        head = f"{self.present + self.fetched} {self.files} are there ({self.fetched} new), {missing} are missing"
        return "\n".join([head, *(f"  {each}" for each in self.skipped)])


FileT = TypeVar("FileT", bound=LabelledFile)
Bring = Callable[[str, Sequence[FileT], Path], Iterator[tuple[FileT, bytes]]]
"""From a source, its wanted files and a folder for scratch to the files that its package holds, with their bytes."""


@dataclass(frozen=True)
class LabelTable(Generic[FileT]):
    """How a table of labels is read, and where its files are kept."""

    files: str
    """What they are, in the plural: names the folder in bindlm's cache and the module that fetches them."""
    columns: tuple[str, ...]
    sources: tuple[str, ...]
    """Kinds of package, of `_SOURCES`."""
    choices: Mapping[str, Sequence[str]]
    """Column -> the values it may have."""
    label: str
    """The column of what is shown or heard; ``acceptable`` must hold it."""
    row: Callable[[Mapping[str, str], dict[str, Any]], FileT]
    """Makes a file of the cells and of the fields that every `LabelledFile` has."""
    suffix: Callable[[str], str] = lambda inside: PurePosixPath(inside).suffix.lower()
    """Of the file that is kept, by its path in the package."""

    @property
    def cure(self) -> str:
        return f"get the {self.files} with `python -m bindlm.evaluation.{self.files}`"

    def folder(self, root: Folder | None) -> Path:
        """``root``, or a folder in bindlm's cache, which ``BINDLM_HOME`` chooses."""
        return home_path() / self.files if root is None else Path(os.path.abspath(root))

    def read(self, table: Folder, root: Folder | None = None) -> list[FileT]:
        """Every row; `LabelledFile.path` points into ``root``, whether the file is there or not.

        Raises:
            ConfigError: the table is malformed; the message names the line and the column.
        """
        folder, table = self.folder(root), Path(table)
        try:
            header, *lines = table.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(
                f"{table} cannot be read; expected a UTF-8 table with tabs between its columns"
            ) from error
        if tuple(header.split("\t")) != self.columns:
            raise ConfigError(f"{table} has the columns {header.split(chr(9))}, expected {list(self.columns)}")
        rows = [self._parse(line, f"{table}, line {number}", folder) for number, line in enumerate(lines, start=2)]
        if twice := [id for id, count in Counter(each.id for each in rows).items() if count > 1]:
            raise ConfigError(f"{table} uses an id more than once: {_some(twice)}")
        return rows

    def _parse(self, line: str, where: str, folder: Path) -> FileT:
        cells = line.split("\t")
        if len(cells) != len(self.columns):
            raise ConfigError(f"{where} has {len(cells)} columns, expected {len(self.columns)}")
        row = dict(zip(self.columns, cells, strict=True))
        for column, values in {"split": SPLITS, **self.choices}.items():
            if row[column] not in values:
                raise ConfigError(f"{where}: {column}={row[column]!r}, expected one of {', '.join(values)}")
        # The id becomes a file name, so nothing but a slug may be one.
        if not re.fullmatch(r"[a-z0-9-]+", row["id"]):
            raise ConfigError(f"{where}: id={row['id']!r}, expected lower-case letters, digits and hyphens")
        if not re.fullmatch(r"[0-9a-f]{64}", row["sha256"]):
            raise ConfigError(f"{where}: sha256={row['sha256']!r}, expected 64 lower-case hexadecimal digits")
        if not any(_SOURCES[form].fullmatch(row["source"]) for form in self.sources):
            raise ConfigError(f"{where}: source={row['source']!r}, expected {' or '.join(self.sources)}")
        acceptable = tuple(filter(None, row["acceptable"].split("|")))
        if row[self.label] not in acceptable:
            raise ConfigError(f"{where}: acceptable does not hold the {self.label} {row[self.label]!r}")
        shared = {name: row[name] for name in ("id", "source", "split", "sha256")} | {
            "inside": row["path"],
            "acceptable": acceptable,
            "parents": tuple(filter(None, row["parents"].split("|"))),
            "path": folder / f"{row['id']}{self.suffix(row['path'])}",
        }
        return self.row(row, shared)

    def check(self, files: Sequence[FileT], root: Folder | None, *, allow_missing: bool) -> list[FileT]:
        """Those of ``files`` that are there.

        Args:
            allow_missing: Leave out what is not there, with a warning that counts it, instead of raising.

        Raises:
            CheckpointError: a file is missing, or is not the one that was labelled.
        """
        missing = Counter(each.source for each in files if not each.path.is_file())
        there = [each for each in files if each.path.is_file()]
        if damaged := [each.id for each in there if not each.is_intact()]:
            raise CheckpointError(
                f"{len(damaged)} {self.files} are not the files that were labelled ({_some(damaged)}): their SHA-256 "
                f"differs; {self.cure}, which replaces them"
            )
        if missing:
            counts = ", ".join(f"{count} of {source}" for source, count in sorted(missing.items()))
            said = f"{missing.total()} of {len(files)} {self.files} are not in {self.folder(root)} ({counts})"
            if not (allow_missing and there):
                raise CheckpointError(f"{said}; {self.cure}")
            warnings.warn(f"{said}; scores on the rest compare with nothing else", stacklevel=3)
        return there

    def fetch(self, files: Sequence[FileT], bring: Bring[FileT], root: Folder | None, progress: bool) -> FetchReport:
        """Bring what is not there, one package after the other, and keep what has the right checksum.

        A file appears by one rename, after its hash was checked, so a call that was interrupted goes on where it
        stopped.

        Returns:
            The counts; a source that cannot be had is skipped, counted here, and warned about.

        Raises:
            CheckpointError: not one file is to be had, or the disk refuses.
        """
        from tqdm import tqdm

        folder, fetched, skipped = self.folder(root), 0, []
        with locked(self.files, f"fetching {self.files}", progress=progress), disk_errors(folder):
            wanted: dict[str, list[FileT]] = defaultdict(list)
            for each in files:
                if not each.is_intact():
                    wanted[each.source].append(each)
            total = sum(map(len, wanted.values()))
            with tqdm(total=total, unit="file", desc="bindlm", disable=None if progress else True, leave=False) as bar:
                for source, those in wanted.items():
                    say(f"fetching {source} for {len(those)} of the {self.files} ...", progress=progress)
                    done, reason = _keep(source, those, bring, folder, bar.update)
                    fetched += done
                    if done < len(those):
                        skipped.append(Skipped(source, len(those) - done, reason))
        report = FetchReport(len(files) - total, fetched, tuple(skipped), self.files)
        if skipped and report.present + report.fetched == 0:
            raise CheckpointError(f"none of the {self.files} could be fetched: {report}")
        if skipped:
            warnings.warn(str(report), stacklevel=3)
        return report


def _keep(
    source: str, files: Sequence[FileT], bring: Bring[FileT], folder: Path, count: Callable[[], Any]
) -> tuple[int, str]:
    """How many of a source's files were written, and why not the others."""
    done = 0
    try:
        with scratch_folder(folder, ".package") as scratch:
            for each, data in bring(source, files, scratch):
                if hashlib.sha256(data).hexdigest() == each.sha256:
                    temporary = scratch / each.path.name
                    temporary.write_bytes(data)
                    os.replace(temporary, each.path)
                    done += 1
                    count()
    except CheckpointError as error:
        return done, str(error)
    return done, "the package does not hold the files that were labelled; it is another version"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def fetch_and_say(fetch: Callable[[], FetchReport]) -> int:
    """Run a fetch and say what came of it; the exit code is that of the command line."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the report says it
            report = fetch()
    except CheckpointError as error:
        print(f"bindlm: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    print(report)
    return 4 if report.skipped else 0
