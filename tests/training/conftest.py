"""The run that others are compared with, made once."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from .training_case import run, trained_model, weights


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in another order differ in their last bit, and the runs that are killed have one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of one thread, started quickly: accelerate collects garbage at every start, a third of a tiny run."""
    monkeypatch.setattr("accelerate.utils.memory.gc", SimpleNamespace(collect=lambda: 0))
    with _one_thread():
        yield


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], list[tuple[int, float]]]:
    """Weights and losses of a run that nothing stops."""
    model = trained_model()
    with _one_thread():
        result = run(model, tmp_path_factory.mktemp("uninterrupted"))
    return weights(model), result.losses
