"""Published `.pth` files, opened once and kept as safetensors."""

from pathlib import Path

from bindlm.checkpoints.home import home_path
from bindlm.checkpoints.locks import locked
from bindlm.checkpoints.state import load_pickled_state, save_state_atomic, sha256_of


def convert_pickled_state(path: Path) -> Path:
    """The tensors of a `.pth` file as safetensors, made on first use and named after the file's SHA-256.

    Raises:
        CheckpointError: the file is damaged or holds more than tensors.
    """
    digest = path.parent.name if len(path.parent.name) == 64 else sha256_of(path)
    target = home_path() / "converted" / digest / f"{path.stem}.safetensors"
    if not target.is_file():
        with locked(f"converted-{digest}", f"converting {path.name}"):
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                save_state_atomic(target, load_pickled_state(path))
    return target
