"""Weight files opened in place: names first, tensors where asked for, nothing cleared that is not a file's."""

import pytest
import torch
from safetensors.torch import save_file

from bindlm.checkpoints.mapped import _mapped_files, open_mapped
from bindlm.errors import CheckpointError

STATE = {"a": torch.arange(6000.0).view(3, 2000), "b": torch.arange(4), "c": torch.ones(2, 2, dtype=torch.float16)}


def write(folder, kind):
    path = folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_shapes_and_tensors_are_those_of_the_file(tmp_path, kind):
    state = open_mapped(write(tmp_path, kind))
    assert state.shapes == {"a": (3, 2000), "b": (4,), "c": (2, 2)}
    taken = state.take(["a", "b"])
    assert set(taken) == {"a", "b"}
    assert torch.equal(taken["a"], STATE["a"])


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_tensor_can_be_converted_twice(tmp_path, kind):
    """Giving back the pages of memory that is no file's would leave zeros behind."""
    state = open_mapped(write(tmp_path, kind))
    for _ in range(2):
        taken = state.take(["a", "b"], torch.bfloat16)
        assert torch.equal(taken["a"], STATE["a"].bfloat16())
        assert taken["b"].dtype == torch.int64  # only floating-point tensors are converted
    assert torch.equal(state.take(["a"])["a"], STATE["a"])


def test_memory_of_our_own_is_not_taken_for_a_file():
    tensor = torch.ones(1_000_000)
    begin = -(-tensor.data_ptr() // 4096) * 4096
    assert not any(low <= begin and begin + 4096 <= high for low, high in _mapped_files())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_what_is_no_weight_file_is_one_error(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(CheckpointError, match="missing"):
        open_mapped(path)
    path.write_bytes(b"hello" * 100)
    with pytest.raises(CheckpointError, match="damaged"):
        open_mapped(path)
