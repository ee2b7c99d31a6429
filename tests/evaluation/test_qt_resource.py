"""A compiled Qt resource gives what it holds, or is refused as damaged."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindlm.errors import CheckpointError
from bindlm.evaluation.qt_resource import resource_files

from .label_case import qt_resource

RESOURCE = qt_resource({"a.webp": b"first", "b.webp": b"second" * 20}, packed=frozenset({"b.webp"}))


def test_resource_gives_the_wanted_files_only() -> None:
    found = resource_files(RESOURCE, {"pictures/b.webp", "pictures/none.webp"})
    assert found == {"pictures/b.webp": b"second" * 20}


def test_resource_whose_tree_is_a_circle_ends() -> None:
    circle = struct.pack(">4s5I", b"qres", 3, 24, 24, 24, 0) + struct.pack(">IHIIQ", 0, 2, 1, 0, 0)
    with pytest.raises(CheckpointError, match="damaged"):
        resource_files(circle, {"a"})


@given(at=st.integers(0, len(RESOURCE) - 1), value=st.integers(0, 255), cut=st.integers(0, len(RESOURCE)))
def test_damaged_resource_never_raises_anything_but_a_checkpoint_error(at: int, value: int, cut: int) -> None:
    wanted = {"pictures/a.webp", "pictures/b.webp"}
    damaged = bytearray(RESOURCE)
    damaged[at] = value
    for data in (bytes(damaged), bytes(damaged[:cut])):
        with contextlib.suppress(CheckpointError):
            assert set(resource_files(data, wanted)) <= wanted
