"""Loss curves from metrics files."""

import json

import pytest
from PIL import Image

from bindlm.errors import ConfigError
from bindlm.training.curve import plot_curves, smooth


def write_metrics(folder, losses):
    folder.mkdir()
    rows = [
        {"step": 10 * (number + 1), "loss": loss, "learning_rate": 1e-4 * number} for number, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_curve_is_a_picture_and_nothing_else_is_left(tmp_path):
    run = write_metrics(tmp_path / "run", [5.0, 4.0, 3.5, 3.0])
    plot_curves([run / "metrics.jsonl"], run / "loss.png", title="stage $1 of 3")
    assert Image.open(run / "loss.png").size == (960, 540)
    assert sorted(path.name for path in run.iterdir()) == ["loss.png", "metrics.jsonl"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_several_runs_share_a_picture_in_any_format(tmp_path, suffix):
    runs = [write_metrics(tmp_path / name, [5.0, 4.0, start]) for name, start in (("a$", 3.0), ("b", 2.0))]
    out = tmp_path / f"both{suffix}"
    plot_curves(runs, out, ["first $5", "second"])
    assert out.stat().st_size > 1000
    if suffix == ".svg":
        assert "optimizer step" in out.read_text() or "<path" in out.read_text()


def test_labels_and_axes_say_what_is_drawn(tmp_path):
    from bindlm.training.curve import _figure

    rows = [{"step": step, "loss": 5.0 / step, "learning_rate": 1e-4} for step in range(1, 40)]
    axes, rates = _figure([rows, rows], ["first", "second"], "Both").axes
    assert axes.get_title() == "Both"
    assert axes.get_xlabel() == "optimizer step"
    assert "loss" in axes.get_ylabel()
    assert "learning rate" in rates.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first", "second"]
    assert len(axes.lines) == 4  # raw and smoothed of each
    assert len(rates.lines) == 2


def test_lines_without_a_finite_loss_are_left_out(tmp_path):
    run = write_metrics(tmp_path / "run", [5.0, None, 3.0])
    plot_curves([run], run / "loss.png")
    empty = write_metrics(tmp_path / "empty", [None])
    with pytest.raises(ConfigError, match="no step with a finite loss"):
        plot_curves([empty], empty / "loss.png")
    assert not (empty / "loss.png").exists()


def test_wrong_numbers_of_runs_and_labels_are_refused(tmp_path):
    run = write_metrics(tmp_path / "run", [5.0])
    with pytest.raises(ConfigError, match="1 runs and 2 labels"):
        plot_curves([run], tmp_path / "x.png", ["a", "b"])
    with pytest.raises(ConfigError, match="at least one"):
        plot_curves([], tmp_path / "x.png")
    with pytest.raises(ConfigError, match="holds no step"):
        plot_curves([tmp_path / "missing.jsonl"], tmp_path / "x.png")


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert smooth([3.0] * 40) == pytest.approx([3.0] * 40)
    averages = smooth([4.0, 2.0, 2.0, 2.0], span=3)
    assert averages[0] == pytest.approx(4.0)
    assert averages == sorted(averages, reverse=True)
    assert smooth([1.0, 5.0]) == [1.0, 5.0]  # so few that every value counts alone
