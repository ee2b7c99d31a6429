"""How much memory a conversion takes: that of its largest tensors, whatever the size of the model."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bindlm.checkpoints.convert.adapter import Shapes
from bindlm.checkpoints.convert.imagebind_llm import imagebind_llm_shapes
from bindlm.checkpoints.convert.llama import LlamaSizes

SIZES = LlamaSizes(2048, 5504, 4, 16, 16, 32000)
"""Half as wide as 7B, and an eighth as deep: 0.7 GB in half precision."""
BIND = {"image_dim": 1024, "hidden": 8192}
ROWS = {"query_layer": 4, "query_len": 1}
MOST = 350e6
"""Bytes above what the imports take; each of input and output is several times that."""

PROGRAM = """
import resource, sys, torch
from bindlm.checkpoints import convert_imagebind_llm

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
convert_imagebind_llm(sys.argv[1], sys.argv[2], sys.argv[3], progress=False)
print(before, peak())
"""


def write_sparse(path: Path, shapes: Shapes) -> Path:
    """A safetensors file of zeros in single precision that takes no room on the disk, and pages when it is read."""
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system gives mapped pages back as it likes")
@pytest.mark.parametrize("kind", [pytest.param("pth", marks=pytest.mark.exhaustive), "safetensors"])
def test_conversion_holds_one_tensor_at_a_time(kind: str, tmp_path: Path) -> None:
    adapter = write_sparse(tmp_path / "adapter.safetensors", imagebind_llm_shapes(SIZES, BIND, ROWS))
    if kind == "pth":
        (tmp_path / "llama").mkdir()
        shapes = SIZES.meta_shapes()
        state = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
        torch.save(state, tmp_path / "llama" / "consolidated.00.pth")
        del state
        llama = tmp_path / "llama"
    else:
        llama = write_sparse(tmp_path / "llama.safetensors", SIZES.meta_shapes())
    command = [sys.executable, "-c", PROGRAM, str(adapter), str(llama), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1.2e9
    assert peak - before < MOST
