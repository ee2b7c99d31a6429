"""How long the samples of a data set are, as a picture."""

import os
from collections.abc import Sequence

from bindlm.space.figures import new_figure, save_figure
from bindlm.space.plot import check_plot_path

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
        CheckpointError: The disk refuses.
    """
    check_plot_path(path)
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    axes.hist(lengths, bins=min(_BINS, max(1, len(set(lengths)))), color="#0072b2")
    axes.axvline(max_tokens, color="#d55e00", linestyle="--", label=f"cut at {max_tokens} tokens")
    axes.set(xlabel="tokens a sample", ylabel="samples")
    axes.set_title("".join(char if char.isprintable() else "?" for char in title), parse_math=False)
    axes.legend(frameon=False)
    save_figure(figure, path, dpi=150)
