"""What a build has done so far, so that a killed one goes on: `.bindlm-build/journal.json` beside what it makes.

A file counts from the moment that the journal names it. The cache itself changes in one step, when its `config.json`
is replaced; the journal goes after that.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.scratch import remove_stale
from bindlm.checkpoints.state import write_text_atomic
from bindlm.errors import CheckpointError, ConfigError
from bindlm.space.cache_format import CONFIG, CacheFile, CacheIndexFile, CacheRecord, read_record, unnamed_files

WORK = ".bindlm-build"
"""Folder of what is needed only while a cache is built or changed."""
JOURNAL = "journal.json"
_PARTS = ("values", "entries")
VERSION = 1


@dataclass
class Plan:
    """What is to be made: a killed build may go on only with the same."""

    action: str
    """`build`, `add` or `merge`."""
    source: str
    """How messages call where the rows come from."""
    digest: str
    """Of the source: another one means that it has changed."""
    num_rows: int
    """Rows that it has."""
    dim: int
    """D_joint."""
    settings: str
    """All else that the files depend on, as JSON."""
    base: str = ""
    """Of the cache that it starts from, a digest of its record."""


@dataclass
class Journal:
    """A plan, and the files that are made for it."""

    plan: Plan
    first: int = 0
    """Number of the first file of values that is made."""
    generation: int = 0
    """Of the index."""
    values: list[CacheFile] = field(default_factory=list)
    entries: list[CacheFile] = field(default_factory=list)
    choice: dict[str, Any] | None = None
    """The kind of index, once it is chosen."""
    trained: int = 0
    """Bytes of the trained index without rows, once it is there."""
    parts: list[int] = field(default_factory=list)
    """Bytes of each part of coded rows."""
    index: CacheIndexFile | None = None

    def save(self, folder: Path) -> None:
        """Write it.

        Raises:
            CheckpointError: the disk refuses; the journal is as it was.
        """
        text = json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=1)
        write_text_atomic(folder / WORK / JOURNAL, text)

    def own_files(self) -> set[str]:
        """Files in the cache's folder that belong to it."""
        return {file.file for file in (*self.values, *self.entries, *([self.index] if self.index else []))}


def read_journal(folder: Path) -> Journal | None:
    """The journal of an unfinished build, None where there is none.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    path = folder / WORK / JOURNAL
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("version") != VERSION:
            raise ValueError
        parts: dict[str, Any] = {name: [CacheFile(**file) for file in content.pop(name)] for name in _PARTS}
        index = content.pop("index")
        return Journal(
            Plan(**content.pop("plan")), **parts, index=CacheIndexFile(**index) if index else None, **content
        )
    except FileNotFoundError:
        return None
    except OSError:
        raise CheckpointError(f"{path} cannot be read; check its permissions and the disk") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path} is damaged, or of another bindlm; begin again with --fresh") from None


def record_digest(folder: Path) -> str:
    """What tells one state of a cache from another; empty where there is no cache."""
    try:
        return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    except OSError:
        return ""


def work_folder(folder: str | os.PathLike[str]) -> Path:
    """Where a cache's folder keeps what is needed only while it is built; gone once the cache is whole."""
    return Path(folder) / WORK


@contextmanager
def writing(folder: str | os.PathLike[str], doing: str, *, progress: bool = True) -> Iterator[Path]:
    """Be the only one who writes in a cache's folder while the block runs; others wait.

    Raises:
        CheckpointError: the folder cannot be made, or its lock.
    """
    path = Path(os.path.abspath(folder))
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    name = f"cache-{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]}"
    with locked(name, f"{doing} {path}", progress=progress):
        yield path


def start(folder: Path, plan: Plan, *, is_fresh: bool) -> Journal:
    """Go on with an unfinished build of the same plan, or begin.

    Args:
        folder: of the cache; `writing` it.
        plan: what is wanted.
        is_fresh: whether what an unfinished build has made is thrown away.

    Raises:
        ConfigError: an unfinished build is there, of something else.
        CheckpointError: its journal is damaged, or the disk refuses.
    """
    journal = None if is_fresh else read_journal(folder)
    if journal is None:
        clear(folder, keep_store=True)
        journal = Journal(plan, first=_next_number(folder, "values-*.npy"), generation=next_generation(folder))
        journal.save(folder)  # before the first file, by which a killed build could not be told from something else
        return journal
    if journal.plan != plan:
        raise ConfigError(_difference(folder, journal.plan, plan))
    remove_unnamed(folder, journal)
    return journal


def check_free(folder: Path, doing: str) -> None:
    """Refuse to change a cache that an unfinished build works at.

    Raises:
        ConfigError: there is one.
    """
    if (journal := read_journal(folder)) is not None and not is_done(folder, journal):
        raise ConfigError(
            f"an unfinished {journal.plan.action} of {journal.plan.source} is in {folder}: run that command again to "
            f"finish it, or with --fresh to begin it anew, before {doing}"
        )


def is_done(folder: Path, journal: Journal) -> bool:
    """Whether the cache is already what the journal was to make of it: only the tidying was missing."""
    if journal.index is None or not (folder / CONFIG).is_file():
        return False
    return read_record(folder).index.file == journal.index.file


def clear(folder: Path, *, keep_store: bool = False) -> None:
    """Remove everything that an unfinished build has left, and files that the cache no longer names.

    Args:
        folder: of the cache; `writing` it.
        keep_store: whether pictures that are embedded already stay so.
    """
    work = folder / WORK
    with suppress(OSError):
        (work / JOURNAL).unlink(missing_ok=True)  # first: from here on nothing is named
    if keep_store and work.is_dir():
        for each in work.iterdir():
            if each.is_file():
                with suppress(OSError):
                    each.unlink()
    else:
        shutil.rmtree(work, ignore_errors=True)
    remove_unnamed(folder, None)


def remove_unnamed(folder: Path, journal: Journal | None) -> None:
    """Remove files of a cache's that neither its record nor a journal names; who has them open keeps them."""
    named = journal.own_files() if journal is not None else set()
    record = read_record(folder) if (folder / CONFIG).is_file() else None
    for path in unnamed_files(folder, record):
        if path.name not in named:
            with suppress(OSError):
                path.unlink()
    remove_stale(folder, "")


def is_whole(folder: Path, file: CacheFile) -> bool:
    """Whether a file is there and as long as it was written."""
    try:
        return (folder / file.file).stat().st_size == file.bytes
    except OSError:
        return False


def base_record(folder: Path) -> CacheRecord | None:
    """The record of the cache that is in a folder, None where there is none."""
    return read_record(folder) if (folder / CONFIG).is_file() else None


def next_generation(folder: Path) -> int:
    """A number that no index in a cache's folder has."""
    return _next_number(folder, "index-*.faiss")


def _next_number(folder: Path, pattern: str) -> int:
    numbers = [path.stem.partition("-")[2] for path in folder.glob(pattern)]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1


def _difference(folder: Path, old: Plan, new: Plan) -> str:
    """What is not as it was when the build began."""
    fresh = "begin again with --fresh, which throws away what is done"
    if (old.action, old.source) != (new.action, new.source):
        what = f"an unfinished {old.action} of {old.source}"
        return f"{folder} holds {what}; run that command again to finish it, or {fresh}"
    if old.base != new.base:
        return f"the cache {folder} has changed since this {old.action} was stopped; {fresh}"
    if (old.digest, old.num_rows, old.dim) != (new.digest, new.num_rows, new.dim):
        return (
            f"{old.source} has changed since this {old.action} was stopped ({old.num_rows} rows then, {new.num_rows} "
            f"now), and the cache would mix both; {fresh}"
        )
    return (
        f"this {old.action} was begun with other settings ({old.settings}; now {new.settings}); use those, or {fresh}"
    )
