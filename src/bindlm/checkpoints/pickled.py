"""Published `.pth` files, opened once and kept as safetensors."""

from pathlib import Path

from bindlm.checkpoints.home import home_path
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.state import load_pickled_state, save_state_atomic
from bindlm.checkpoints.wheel import digest_of


def convert_pickled_state(path: Path, *, progress: bool = True) -> Path:
    """The tensors of a `.pth` file as safetensors, made on first use and named after the file's SHA-256.

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
                save_state_atomic(target, load_pickled_state(path))
    return target
