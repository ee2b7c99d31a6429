"""How long the samples of a data set are, as a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

from bindlm.space.plot import check_plot_path, save_figure

_BINS = 50


def plot_lengths(path: str | os.PathLike[str], lengths: Sequence[int], max_tokens: int, title: str = "") -> None:
    """Draw a histogram of token counts with a line where samples are cut.

    Args:
        path: `.png`, `.svg` or `.pdf`.
        lengths: Tokens of each sample, before the cut.
        max_tokens: Where the cut is.
        title: Above the picture.

    Raises:
        ConfigError: Another suffix, matplotlib is missing, or the folder is missing or not writable.
        BindLMError: The disk refuses.
    """
    check_plot_path(path)
    # Not pyplot: it would pick a window system, and keep every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(lengths, bins=min(_BINS, max(1, len(set(lengths)))), color="#0072b2")
    axes.axvline(max_tokens, color="#d55e00", linestyle="--", label=f"cut at {max_tokens} tokens")
    axes.set(xlabel="tokens a sample", ylabel="samples")
    axes.set_title("".join(char if char.isprintable() else "?" for char in title), parse_math=False)
    axes.legend(frameon=False)
    save_figure(figure, Path(path))
