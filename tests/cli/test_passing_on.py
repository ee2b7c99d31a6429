"""`bindlm bench` hands its words to the function that does the work."""

import sys
from types import ModuleType

import pytest


@pytest.fixture
def received(monkeypatch):
    """The words that the stand-ins were called with."""
    calls = []
    for name in ("bindlm.evaluation", "bindlm.evaluation.bench"):
        module = ModuleType(name)
        module.main = lambda words, name=name: calls.append((name, words)) or 0
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_bench_hands_on_options_it_does_not_know(bindlm_command, received):
    assert bindlm_command("bench", "mini", "--part", "test", "--json").code == 0
    assert received == [("bindlm.evaluation.bench", ["mini", "--part", "test", "--json"])]
