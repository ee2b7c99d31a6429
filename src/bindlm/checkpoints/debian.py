"""Files out of Debian packages, for recipes and benchmarks: fetched once through the user's own apt.

Only `apt-get download` and `dpkg-deb` are used, neither of which needs root. Nothing at run time depends on this.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from bindlm.errors import CheckpointError


def fetch_debian_package(package: str, root: Path) -> Path:
    """The unpacked tree of a Debian package, fetched into `root/package` unless it is there already.

    Args:
        package: name in the user's apt sources, for example "sweethome3d-furniture".
        root: folder that keeps unpacked packages.

    Raises:
        CheckpointError: apt-get or dpkg-deb is missing, or the package is not to be had.
    """
    target = root / package
    if target.is_dir():
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CheckpointError(
                f"Debian package {package!r} is needed, and {tool} is not on this machine. Unpack the package into "
                f"{target} by hand (its .deb is an `ar` archive whose data.tar holds the files), or run on Debian or "
                "Ubuntu."
            )
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{package}-") as scratch:
        command = ["apt-get", "download", package]
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        archives = list(Path(scratch).glob("*.deb"))
        if result.returncode != 0 or not archives:
            raise CheckpointError(
                f"Debian package {package!r} could not be downloaded with `apt-get download {package}`. "
                "Run `apt-get update` first; on another system unpack the package into "
                f"{target} by hand."
            )
        unpacked = Path(scratch) / "unpacked"
        result = subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], capture_output=True, text=True)
        if result.returncode != 0:
            raise CheckpointError(f"Debian package {package!r} was downloaded but could not be unpacked.")
        unpacked.rename(target)
    return target
