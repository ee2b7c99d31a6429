"""Which files a data set has, and the number that tells two data sets apart."""

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bindlm.errors import ConfigError
from bindlm.media.names import printable

_EDGE = 1 << 20
_MOST_READ = 100
"""Files whose content goes into the fingerprint; of more, these many evenly spaced ones: LAION has 10,000 shards."""
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tgz", ".7z")


@dataclass(frozen=True)
class DataFile:
    """One file of a data set; of img2dataset's `files` layout one folder."""

    path: Path
    """Where it is."""
    label: str
    """Its name within the data set, with forward slashes: it stands in ids, media names and messages."""

    def open(self) -> IO[bytes]:
        """Open it for reading.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{printable(str(self.path))} cannot be read: {error.strerror}.") from error


def find_files(path: str, suffixes: Sequence[str]) -> tuple[Path, list[DataFile]]:
    """The files of a data set, in the order of their names.

    Args:
        path: A file, which may have any suffix; a folder, whose files with one of the suffixes count, however deep;
            or a glob, whose matches are files or such folders.
        suffixes: Lower case, with the dot.

    Returns:
        The folder that holds the data, and its files; links to folders are not followed.

    Raises:
        ConfigError: There is no such file, or none with such a suffix.
    """
    root, starts = _starts(path)
    found = dict.fromkeys(file for start in starts for file in _files_below(start, suffixes))
    if not found:
        expected = " or ".join(suffixes)
        raise ConfigError(
            f"there is no data at {printable(path)!r}: expected a file, or a folder or glob of {expected}"
        )
    if packed := next((file for file in found if file.suffix.lower() in _PACKED), None):
        raise ConfigError(f"{printable(str(packed))} is compressed; unpack it, and give the result.")
    return root, [_data_file(file, root) for file in found]


def find_folders(path: str, suffixes: Sequence[str]) -> tuple[Path, list[DataFile]]:
    """The folders, however deep, that hold files with one of the suffixes: img2dataset's `files` layout."""
    root, starts = _starts(path)
    found = dict.fromkeys(file.parent for start in starts for file in _files_below(start, suffixes) if file != start)
    return root, [_data_file(folder, root) for folder in found]


def fingerprint_of(files: Iterable[DataFile], settings: str) -> str:
    """16 hexadecimal digits that change with names, sizes, the first and last MiB of each file, and the settings.

    Where the data lie does not matter, so that a copy on another machine has the same number.
    """
    files = list(files)
    digest = hashlib.sha256(settings.encode())
    step = max(1, -(-len(files) // _MOST_READ))
    for number, file in enumerate(files):
        digest.update(f"\0{file.label}\0".encode("utf-8", "surrogateescape"))
        if file.path.is_dir():
            digest.update("\0".join(sorted(os.listdir(file.path))).encode("utf-8", "surrogateescape"))
            continue
        size = file.path.stat().st_size
        digest.update(str(size).encode())
        if number % step == 0:
            with file.open() as stream:
                digest.update(stream.read(_EDGE))
                stream.seek(max(size - _EDGE, 0))
                digest.update(stream.read(_EDGE))
    return digest.hexdigest()[:16]


def stamp_of(files: Iterable[DataFile]) -> str:
    """What changes when a file is replaced or edited: paths, sizes and times."""
    stats = ((file.path, file.path.stat()) for file in files)
    return "\0".join(f"{os.path.realpath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in stats)


def _data_file(path: Path, root: Path) -> DataFile:
    label = path.relative_to(root).as_posix()
    try:
        label.encode()
    except UnicodeEncodeError:  # it becomes part of ids and of the feature store's keys, which are UTF-8
        raise ConfigError(f"the name of {printable(str(path))} is no UTF-8; rename it.") from None
    return DataFile(path, label)


def _starts(path: str) -> tuple[Path, list[Path]]:
    """The folder that names count from, and where to look."""
    start = Path(os.path.expanduser(path))
    if start.is_dir():
        return start, [start]
    if start.exists():
        return start.parent, [start]
    matches = sorted(Path(match) for match in glob.glob(str(start), recursive=True))
    magic = next((number for number, part in enumerate(start.parts) if glob.has_magic(part)), len(start.parts) - 1)
    return Path(*start.parts[:magic]), matches


def _files_below(start: Path, suffixes: Sequence[str]) -> Iterable[Path]:
    if not start.is_dir():
        if not start.is_file():
            raise ConfigError(f"{printable(str(start))} is neither a file nor a folder.")
        yield start
        return
    for folder, subfolders, names in os.walk(start):
        subfolders.sort()
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(tuple(suffixes)):
                yield Path(folder, name)
