"""Numbers that the released implementations gave, where they lie beside the checkout."""

from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@cache
def _load(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name)


def golden(name: str) -> dict[str, Tensor]:
    """Tensors of one golden file; skips the test where it is not to be had."""
    if not (GOLDEN / name).is_file():
        pytest.skip(f"../shared/golden/{name} is not beside this checkout")
    return _load(name)
