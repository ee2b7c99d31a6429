"""The folder of the user's cache where fetched and converted weights live."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bindlm.errors import CheckpointError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def home_path() -> Path:
    """Where the cache is or would be, without creating it.

    ``$BINDLM_HOME``, else ``$XDG_CACHE_HOME/bindlm``, else ``~/.cache/bindlm``.

    Raises:
        CheckpointError: none is set, and the user has no home directory.
    """
    if chosen := os.environ.get("BINDLM_HOME"):
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification: a relative value is to be ignored
        return Path(cache) / "bindlm"
    try:
        return Path.home() / ".cache" / "bindlm"
    except RuntimeError:
        raise CheckpointError(
            "no folder for weights: this user has no home directory; set BINDLM_HOME to a writable folder"
        ) from None


def home() -> Path:
    """The cache folder, created if missing.

    Raises:
        CheckpointError: the folder cannot be created.
    """
    folder = home_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk says no with, while the block writes in ``folder``, into a CheckpointError with the cure.

    An `OSError` about a file elsewhere goes through as it is.
    """
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        if isinstance(error.filename, str | os.PathLike) and not Path(error.filename).is_relative_to(folder):
            raise
        raise disk_error(error, folder) from error
    except Exception as error:
        # safetensors hides the number of a disk error in the text of an exception of its own.
        if type(error).__name__ == "SafetensorError" and (match := re.search(r"\(os error (\d+)\)", str(error))):
            raise disk_error(OSError(int(match[1]), ""), folder) from error
        raise


def disk_error(error: OSError, folder: Path) -> CheckpointError:
    """The CheckpointError for an `OSError` met while writing in ``folder``."""
    if error.errno in _FULL:
        reason, cure = "no space is left", "free some space, or use a folder on a bigger disk"
    elif error.errno in _FORBIDDEN:
        reason, cure = "it is not writable", "make it writable, or use a folder that is"
    elif error.errno in {errno.EEXIST, errno.ENOTDIR}:
        reason, cure = "a file is in the way", "remove that file, or use another folder"
    else:
        reason = os.strerror(error.errno) if error.errno else "the disk refused"
        cure = "check the disk, or use another folder"
    hint = " (BINDLM_HOME chooses it)" if folder.is_relative_to(home_path()) else ""
    return CheckpointError(f"cannot write in {folder}: {reason}; {cure}{hint}")
