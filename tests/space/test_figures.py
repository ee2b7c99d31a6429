"""Figures without pyplot, written whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from bindlm.errors import ConfigError
from bindlm.space.figures import new_figure, save_figure


@pytest.mark.parametrize(
    ("name", "magic"), [("plot", b"\x89PNG"), ("plot.SVG", b"<?xml"), ("new/plot.png", b"\x89PNG")]
)
def test_the_suffix_names_the_format_and_none_stands_for_png(tmp_path: Path, name: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    figure = new_figure(2, 1)
    figure.add_subplot().plot([1, 2], [2, 1])
    out = tmp_path / name
    for _ in range(2):  # over an old one, too
        save_figure(figure, out, dpi=50)
        assert out.read_bytes().startswith(magic)
        assert [each.name for each in out.parent.iterdir()] == [out.name]


def test_no_window_system_is_looked_for() -> None:
    pytest.importorskip("matplotlib")
    code = (
        "import sys; from bindlm.space.figures import new_figure; new_figure(2, 1); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match=r"needs the package matplotlib; .*pip install 'bindlm\[train\]'"):
        new_figure(2, 1)
