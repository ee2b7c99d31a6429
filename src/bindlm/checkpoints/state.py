"""Reading and writing tensors and folders so that nobody ever sees half a file."""

import contextlib
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.notice import byte_bar
from bindlm.checkpoints.scratch import remove_stale, scratch_folder, scratch_name
from bindlm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CHUNK = 1 << 22
_PathLike = str | os.PathLike[str]


def load_state(path: _PathLike, *, expected: Mapping[str, Sequence[int]] | None = None) -> dict[str, "Tensor"]:
    """Load a safetensors file on the CPU, memory-mapped.

    Args:
        expected: Names and shapes that the file must hold, no more and no less; None takes what is there.

    Raises:
        CheckpointError: the file is missing, truncated, no safetensors, or does not hold what was expected.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _existing_file(path)
    try:
        state = load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is truncated, damaged or no safetensors file; get it again") from error
    if expected is not None:
        check_shapes(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, expected)
    return state


def load_pickled_state(
    path: _PathLike, *, entry: str | int | None = None, allowed_globals: Sequence[Callable[..., Any]] = ()
) -> dict[str, "Tensor"]:
    """Load the tensors of a published ``.pth`` file; of its pickle only tensors and plain containers are let through.

    Args:
        entry: Where the file holds more than one thing: the key (or the index, for a tuple) of the state to take.
        allowed_globals: Further harmless classes that the pickle may name, as for `torch.serialization.safe_globals`.

    Returns:
        Tensors by name, on the CPU, memory-mapped where the file's format allows.

    Raises:
        CheckpointError: the file is missing, damaged, names code, or is not a mapping of names to tensors.
    """
    import torch

    path = _existing_file(path)
    try:
        with torch.serialization.safe_globals(list(allowed_globals)):
            # Files from before torch 1.6 are bare pickles, which cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises whatever a hostile file makes it raise
        raise CheckpointError(
            f"{path} is damaged, or its pickle holds more than tensors, which may be code and is never run; "
            "get the file from its publisher again, or convert it to safetensors where you trust it"
        ) from error
    if entry is not None:
        content = _entry(path, content, entry)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected tensors by name; give entry=")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if others or not content:
        raise CheckpointError(
            f"{path} is no mapping of names to tensors: {_some(others) or 'it is empty'}; if one of these holds the "
            "tensors, give it as entry="
        )
    return dict(content)


def save_state_atomic(
    path: _PathLike, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` to ``path`` as safetensors; a reader sees the old file or the new one, never a part.

    Tensors that share memory are stored once each.

    Raises:
        CheckpointError: the disk is full or not writable; the old file is as it was.
    """
    from safetensors.torch import save_file

    path = Path(path)
    with disk_errors(path.parent), replacing_file(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(_independent(tensors), temporary, metadata=dict(metadata or {}))
        temporary.chmod(mode)  # safetensors makes 0600, which locks out the group that shares a folder


def sha256_of(path: _PathLike, *, progress: bool = False) -> str:
    """The SHA-256 of a file, 64 lower-case hexadecimal digits.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    path = _existing_file(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream, byte_bar(path.stat().st_size, progress=progress) as bar:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read; check its permissions and the disk") from error
    return digest.hexdigest()


@contextmanager
def atomic_folder(path: _PathLike) -> Iterator[Path]:
    """Write a folder as a whole: yields a scratch sibling, which takes the place of ``path`` when the block ends well.

    On an error, or a kill, the old folder stays as it was.

    Raises:
        CheckpointError: the disk is full or not writable.

    Example:
        >>> with atomic_folder("checkpoint") as folder:
        ...     (folder / "config.json").write_text("{}")
    """
    path = Path(os.path.abspath(path))
    aside = path.with_name(f".{path.name}.replaced")
    with disk_errors(path.parent), scratch_folder(path.parent, f".{path.name}") as folder:
        if aside.exists() and not path.exists():
            os.replace(aside, path)  # a run was killed between the two renames below
        new = folder / "new"
        new.mkdir()
        yield new
        sync_folder(new)
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)  # no system call of POSIX replaces a folder that is not empty
            try:
                os.replace(new, path)
            except OSError:
                os.replace(aside, path)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(new, path)
        _sync(path.parent)


def sync_folder(folder: Path) -> None:
    """Push everything under ``folder`` to the disk, so that a rename never shows names without their bytes."""
    for each in folder.rglob("*"):
        if not each.is_symlink():
            _sync(each)
    _sync(folder)


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: _PathLike, text: str) -> None:
    """Write a small text file as UTF-8; a reader sees the old file or the new one, never a part.

    Raises:
        CheckpointError: the disk is full or not writable; the old file is as it was.
    """
    path = Path(path)
    with disk_errors(path.parent), replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # half of a surrogate pair in a name


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A scratch sibling to write, which takes the place of ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, f".{path.name}")
    temporary = path.with_name(scratch_name(f".{path.name}"))
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _independent(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Contiguous CPU tensors with storage of their own each, as safetensors demands."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        if address in seen:
            tensor = tensor.clone()
        seen.add(address)
        result[name] = tensor
    return result


def _existing_file(path: _PathLike) -> Path:
    path = Path(path)
    try:
        what = "" if path.is_file() else "a folder" if path.is_dir() else "missing"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be reached; check the permissions of its folder") from error
    if what:
        raise CheckpointError(f"{path} is {what}; expected a file with weights")
    return path


def _entry(path: Path, content: Any, entry: str | int) -> Any:
    try:
        return content[entry]
    except (KeyError, IndexError, TypeError):
        held = _some([str(key) for key in content]) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} holds no entry {entry!r}; it holds: {held}") from None


def check_shapes(path: _PathLike, held: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """Compare the names and shapes that a file holds with those that a model has.

    Raises:
        CheckpointError: how many and which are missing, not expected, or of another shape.
    """
    missing = [name for name in expected if name not in held]
    surplus = [name for name in held if name not in expected]
    other = [
        f"{name} has {tuple(held[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in held and tuple(held[name]) != tuple(shape)
    ]
    found = {"missing": missing, "not expected": surplus, "of another shape": other}
    if any(found.values()):
        faults = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in found.items() if names)
        raise CheckpointError(f"{path} does not fit this model ({faults}); get the weights made for it")


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def dtype_of(name: "torch.dtype | str | None") -> "torch.dtype":
    """A floating-point type by its name; None is fp32.

    Raises:
        ConfigError: torch has no such type.
    """
    import torch

    dtype = getattr(torch, name, None) if isinstance(name, str) else torch.float32 if name is None else name
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype={name!r} is no floating-point type of torch; expected float32, bfloat16 or float16.")
    return dtype


def without_ties(state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Drop names that share storage with an earlier one (tied heads): safetensors keeps one copy."""
    seen: set[tuple[Any, ...]] = set()
    kept = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.device.type != "meta" and tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor
    return kept
