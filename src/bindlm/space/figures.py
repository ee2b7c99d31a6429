"""Figures of matplotlib, made and written without pyplot."""

import os
from pathlib import Path
from typing import Any

from bindlm.checkpoints.home import disk_errors
from bindlm.checkpoints.state import replacing_file
from bindlm.errors import ConfigError


def new_figure(width: float, height: float) -> Any:
    """An empty figure that lays itself out.

    Args:
        width, height: in inches.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:  # Not pyplot: it would pick a window system, and keep every figure alive.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "A plot needs the package matplotlib; install it with: pip install 'bindlm[train]'"
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, out: str | os.PathLike[str], *, dpi: int = 120) -> None:
    """Write a figure; a reader sees the old file or the new one, never a part.

    Args:
        figure: of `new_figure`.
        out: picture to write; its suffix names the format, none stands for PNG.
        dpi: dots an inch.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    out = Path(out)
    with disk_errors(out.parent), replacing_file(out) as scratch:
        figure.savefig(scratch, format=out.suffix[1:].lower() or "png", dpi=dpi)
