"""`--quantize` reaches `bindlm.load`, and nothing else is sent there where it is not given."""

from typing import Any

import pytest

import bindlm
from bindlm.checkpoints import quantization
from bindlm.cli import options


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[dict[str, Any]]:
    """Keywords that `bindlm.load` was given, call by call."""
    calls: list[dict[str, Any]] = []

    def load(reference: Any = None, **given: Any) -> Any:
        calls.append(given)
        return model

    monkeypatch.setitem(bindlm.__dict__, "load", load)
    return calls


@pytest.mark.parametrize("verb", [["ask", "What is this?"], ["chat"]])
def test_quantize_reaches_the_loader(verb: list[str], asked: list[dict[str, Any]], bindlm_command: Any) -> None:
    assert bindlm_command(*verb, "--quantize", "int4", stdin=b"Hello?\n").code == 0
    assert bindlm_command(*verb, stdin=b"Hello?\n").code == 0
    assert asked == [{"quantization": "int4"}, {}]


def test_other_words_are_refused_before_anything_is_loaded(asked: list[dict[str, Any]], bindlm_command: Any) -> None:
    done = bindlm_command("ask", "What is this?", "--quantize", "int3")
    assert done.code == 2
    assert "int8" in done.err
    assert asked == []


def test_help_knows_the_words_that_the_loader_takes() -> None:
    assert options.QUANTIZATION_WORDS == quantization.QUANTIZATION_WORDS
