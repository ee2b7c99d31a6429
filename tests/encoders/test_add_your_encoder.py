"""The page "add your encoder" runs, block after block, and prints what it says."""

import re
import sys
import types
from pathlib import Path

import pytest

from bindlm.encoders import ENCODER_FAMILIES

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-your-encoder.md"


def _blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", _PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENCODER_FAMILIES, "colours", None)  # the page sets it; afterwards it is gone again
    blocks = _blocks()
    assert len(blocks) == 7
    names: dict[str, object] = {"__name__": "add_your_encoder"}
    # Dataclasses look their module up by name.
    monkeypatch.setitem(sys.modules, "add_your_encoder", types.ModuleType("add_your_encoder"))
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{_PAGE.name} block {number}", "exec"), names)
        # A comment on a line of its own, at the left edge, is what was printed.
        promised = re.findall(r"^# (.*)$", block, flags=re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == promised, f"block {number}"


def test_the_page_names_every_method_of_the_protocol() -> None:
    page = _PAGE.read_text(encoding="utf-8")
    for member in ("modalities", "dim", "embed(", "encode(", "preprocess("):
        assert f"| `{member}" in page


def test_files_that_the_page_names_exist() -> None:
    root = _PAGE.parents[1]
    page = _PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:src|tests)/[\w/.]+\.py)`", page):
        assert (root / name).is_file(), name
