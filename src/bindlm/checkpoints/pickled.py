"""Published `.pth` files, opened once and kept as safetensors."""

from pathlib import Path
from typing import Any

from bindlm.checkpoints.home import home_path
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.state import load_pickled_state, save_state_atomic
from bindlm.checkpoints.wheel import digest_of


def convert_pickled_state(
    path: Path, *, entry: str | int | None = None, numpy_scalars: bool = False, progress: bool = True
) -> Path:
    """The tensors of a `.pth` file as safetensors, made on first use and named after the file's SHA-256.

    Args:
        path: the file.
        entry: where it holds more than one thing, the key (or the index, for a tuple) of the state to take.
        numpy_scalars: whether numbers of numpy may lie beside the state, as scripts leave them there.
        progress: whether to say on stderr what happens.

    Returns:
        ``$BINDLM_HOME/converted/<sha256>/<stem>.safetensors``.

    Raises:
        CheckpointError: the file is missing, damaged or holds more than tensors, or the disk is full.
    """
    digest = digest_of(path, progress=progress)
    target = home_path() / "converted" / digest / f"{path.stem}.safetensors"
    if not target.is_file():
        with locked(f"converted-{digest}", f"converting {path.name}", progress=progress):
            if not target.is_file():
                settings: dict[str, Any] = {} if entry is None else {"entry": entry}
                if numpy_scalars:
                    settings["allowed_globals"] = _numpy_scalars()
                save_state_atomic(target, load_pickled_state(path, **settings))
    return target


def _numpy_scalars() -> list[Any]:
    """What a pickle names for a number of numpy: how it is made, and the types of number. None of them runs code."""
    import numpy as np
    from numpy._core.multiarray import scalar

    kinds = [type(np.dtype(kind)) for kind in ("int32", "int64", "float32", "float64")]
    # files from before numpy 2 name the function by its old place
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds]
