"""Loss curves of runs, drawn from their `metrics.jsonl`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bindlm.errors import ConfigError
from bindlm.space.figures import new_figure, save_figure
from bindlm.training.journal import read_journal

METRICS_FILE = "metrics.jsonl"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which stay apart for colour-blind readers; one for each run."""
_PathLike = str | os.PathLike[str]


def smooth(values: Sequence[float], span: int | None = None) -> list[float]:
    """Exponential moving average, without the pull toward zero at its start.

    Args:
        values: in order.
        span: how many values an average is made of, about; None for a tenth of them, at most 50.
    """
    span = span or max(1, min(50, len(values) // 10))
    keep = 1 - 2 / (span + 1)
    total = weight = 0.0
    averages = []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        averages.append(total / weight)
    return averages


def plot_curves(
    metrics: Sequence[_PathLike],
    out: _PathLike,
    labels: Sequence[str] | None = None,
    *,
    title: str = "Training loss",
) -> None:
    """Draw the loss of one run or several, raw and smoothed, and the learning rate on an axis of its own.

    Args:
        metrics: files of runs, or the folders that hold a `metrics.jsonl`.
        out: picture to write, `.png`, `.svg` or `.pdf`; it appears whole or not at all.
        labels: name of each run; None for its folder's.
        title: above the picture.

    Raises:
        ConfigError: a run has no finite loss yet, the labels are not as many as the runs, or matplotlib is missing.
        CheckpointError: the disk is full or not writable.

    Example:
        >>> plot_curves(["runs/pretrain", "runs/instruct"], "docs/curves.png")
    """
    if labels is not None and len(labels) != len(metrics):
        raise ConfigError(f"plot_curves got {len(metrics)} runs and {len(labels)} labels; give one for each.")
    if not metrics:
        raise ConfigError("plot_curves needs at least one run's metrics.jsonl.")
    files = [_metrics_file(Path(path)) for path in metrics]
    runs = [_losses(path) for path in files]
    figure = _figure(runs, list(labels or (path.parent.name or path.stem for path in files)), title)
    save_figure(figure, out)


def _metrics_file(path: Path) -> Path:
    return path / METRICS_FILE if path.is_dir() else path


def _losses(path: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_journal(path) if isinstance(row.get("loss"), float | int) and "step" in row]
    if not rows:
        raise ConfigError(f"{path} holds no step with a finite loss; train for a few steps first.")
    return rows


def _figure(runs: Sequence[list[dict[str, Any]]], labels: Sequence[str], title: str) -> Any:
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    rates = axes.twinx()
    for number, (rows, label) in enumerate(zip(runs, labels, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        few = "." if len(rows) < 3 else None  # a line needs two points to be seen
        axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=1, marker=few)
        # A dollar sign would start a formula, which a folder's name is not.
        axes.plot(steps, smooth(losses), color=colour, linewidth=1.8, label=label.replace("$", r"\$"))
        sloped = [row for row in rows if isinstance(row.get("learning_rate"), float | int)]
        rates.plot(
            [row["step"] for row in sloped],
            [row["learning_rate"] for row in sloped],
            color="0.45" if len(runs) == 1 else colour,
            linewidth=1,
            linestyle=":",
        )
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token): raw pale, smoothed bold")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.25)
    rates.set_ylabel("learning rate (dotted)", color="0.3")
    rates.set_ylim(bottom=0)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    if len(runs) > 1:
        axes.legend(frameon=False)
    return figure
