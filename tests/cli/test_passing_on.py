"""`bindlm train` and `bindlm bench` hand their words to the functions that do the work."""

import sys
from types import ModuleType

import pytest


@pytest.fixture
def received(monkeypatch):
    """The words that the stand-ins were called with."""
    calls = []
    for name in ("bindlm.training", "bindlm.evaluation", "bindlm.evaluation.bench"):
        module = ModuleType(name)
        module.main = lambda words, name=name: calls.append((name, words)) or 0
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_train_gets_the_recipe_and_its_overrides(bindlm_command, received):
    assert bindlm_command("train", "bind.yaml", "steps=200", "lr=1e-3").code == 0
    assert received == [("bindlm.training", ["bind.yaml", "steps=200", "lr=1e-3"])]


@pytest.mark.parametrize("override", ["steps", "=200", " =1"])
def test_train_refuses_an_override_without_key_or_value(bindlm_command, received, override):
    run = bindlm_command("train", "bind.yaml", override)
    assert run.code == 2
    assert "KEY=VALUE" in run.err
    assert received == []


def test_bench_hands_on_options_it_does_not_know(bindlm_command, received):
    assert bindlm_command("bench", "mini", "--part", "test", "--json").code == 0
    assert received == [("bindlm.evaluation.bench", ["mini", "--part", "test", "--json"])]
