"""Files out of Debian packages, for recipes and benchmarks: fetched once through the user's own apt.

Only `apt-get download` and `dpkg-deb` are used, neither of which needs root. Nothing at run time depends on this.
"""

import os
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path

from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.scratch import scratch_folder
from bindlm.checkpoints.state import sha256_of
from bindlm.errors import CheckpointError


def fetch_debian_package(package: str, root: Path, *, sha256: Mapping[str, str] | None = None) -> Path:
    """The unpacked tree of a Debian package, put into `root/package` unless it is there already.

    A `package_*.deb` that lies in `root` is taken before anything is downloaded.

    Args:
        package: name in the user's apt sources, for example "sweethome3d-furniture".
        root: folder that keeps unpacked packages.
        sha256: checksums of the known versions, by file name; another version, or another checksum, is a warning.

    Raises:
        CheckpointError: apt-get or dpkg-deb is missing, or the package is not to be had.
    """
    target = root / package
    if target.is_dir():
        return target
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with scratch_folder(root, f".{package}") as scratch:
            archive = debian_package_file(package, scratch, packages=root)
            if sha256:
                _compare(archive, sha256)
            unpacked = scratch / "unpacked"
            _unpack(archive, unpacked, target)
            unpacked.rename(target)
    return target


def debian_package_file(package: str, scratch: Path, *, packages: str | os.PathLike[str] | None = None) -> Path:
    """The .deb of a package: out of the user's own folder where it holds one, else downloaded.

    Args:
        package: name in the user's apt sources.
        scratch: where a download goes.
        packages: folder that may hold it already.

    Raises:
        CheckpointError: apt-get is missing, or the package is not to be had.
    """
    pattern = f"{package}_*.deb"
    if packages is not None and (found := sorted(Path(packages).glob(pattern))):
        return found[-1]
    if shutil.which("apt-get") is None:
        where = packages or "a folder, to be given as packages="
        raise CheckpointError(
            f"apt-get is not on this machine, and the Debian package {package!r} is needed; run on Debian 12 or "
            f"Ubuntu, or get {pattern} from a Debian mirror and put it into {where}"
        )
    try:
        # Nobody is there to be asked.
        done = subprocess.run(
            ["apt-get", "download", package], cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True
        )
    except OSError as error:
        raise CheckpointError("apt-get cannot be started; check that it is installed and may be run") from error
    found = sorted(scratch.glob(pattern))
    if done.returncode != 0 or not found:
        # Its own words may hold the address, and the password, of a private mirror.
        raise CheckpointError(
            f"Debian package {package!r} could not be downloaded; run `apt-get update` as root if apt does not know "
            f"the package; `apt-get download {package}` shows the reason"
        )
    return found[-1]


def _compare(archive: Path, sha256: Mapping[str, str]) -> None:
    """Say where a package is not one of those that are known."""
    if archive.name not in sha256:
        said = f"is not one of the versions that are known ({', '.join(sha256)}); its counts may differ"
    elif sha256_of(archive) != sha256[archive.name]:
        said = "has another checksum than the package of that version in Debian; check that its mirror can be trusted"
    else:
        return
    warnings.warn(f"{archive.name} {said}", stacklevel=3)


def _unpack(archive: Path, folder: Path, target: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        raise CheckpointError(
            f"{archive.name} has to be unpacked, and dpkg-deb is not on this machine; unpack it into {target} by hand "
            "(a .deb is an `ar` archive, and its data.tar holds the files)"
        )
    done = subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], capture_output=True)
    if done.returncode != 0:
        raise CheckpointError(f"{archive.name} could not be unpacked; get it again")
