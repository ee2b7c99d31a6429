"""A picture of the joint space in two dimensions."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bindlm.errors import ConfigError
from bindlm.space.figures import new_figure, save_figure

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
MOST_LABELS = 40
"""Points that get their name written beside them; more would cover each other."""

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's colours, which stay apart for colour-blind readers; one for each sense."""


def project_2d(embeddings: Tensor) -> Tensor:
    """The two directions in which embeddings differ most (principal components).

    Args:
        embeddings: `(N, D_joint)`.

    Returns:
        `(N, 2)`, fp32, mean 0, the larger spread first. Of each axis the sign is fixed: the weight of the direction
        that is largest in size is positive, so that two runs give one picture.

    Raises:
        ConfigError: no rows, or another shape.
    """
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ConfigError(f"embeddings must be (N, D) with at least one row, got {tuple(embeddings.shape)}.")
    centred = embeddings.double() - embeddings.double().mean(dim=0)  # (N, D)
    # Of many rows the SVD of the D x D scatter gives the same directions at a fraction of the cost.
    matrix = centred.T @ centred if len(centred) > centred.shape[1] else centred
    directions = torch.linalg.svd(matrix, full_matrices=False).Vh[:2]  # (<=2, D)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    points = centred @ (directions * torch.where(largest < 0, -1.0, 1.0)).T  # (N, <=2)
    return torch.nn.functional.pad(points, (0, 2 - points.shape[1])).float()  # (N, 2): one row or one column has less


def check_plot_path(path: str | os.PathLike[str]) -> None:
    """Refuse a plot that could not be written in the end, before minutes of work.

    Raises:
        ConfigError: matplotlib is missing, the suffix is unknown, or the folder is missing or not writable.
    """
    path = Path(path)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a plot needs the package matplotlib\ninstall it with: pip install 'bindlm[train]'")
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise ConfigError(f"plot {path} has no known suffix; expected one of {', '.join(PLOT_SUFFIXES)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"plot {path} cannot be written; name a file in a folder that exists and is writable")


def plot_embeddings(
    path: str | os.PathLike[str],
    embeddings: Tensor,
    modalities: Sequence[str],
    names: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Draw embeddings as points, coloured by sense, and write the picture.

    Args:
        path: `.png`, `.svg` or `.pdf`.
        embeddings: `(N, D_joint)`.
        modalities: the sense of each row.
        names: of each row; written beside the points where there are few.
        title: above the picture.

    Raises:
        ConfigError: see `check_plot_path`, or lists of another length than the rows.
        CheckpointError: the disk refuses.
    """
    check_plot_path(path)
    if len(modalities) != len(embeddings) or (names is not None and len(names) != len(embeddings)):
        raise ConfigError(f"Each of the {len(embeddings)} rows needs one modality, and one name where there are any.")
    points = project_2d(embeddings)
    figure = new_figure(7, 6)
    axes = figure.add_subplot()
    for number, modality in enumerate(dict.fromkeys(modalities)):
        rows = [row for row, sense in enumerate(modalities) if sense == modality]
        x, y = points[rows].T.tolist()
        colour = _COLOURS[number % len(_COLOURS)]
        axes.scatter(x, y, s=18, color=colour, alpha=0.8, linewidths=0, label=f"{modality} ({len(rows)})")
    if names is not None and len(names) <= MOST_LABELS:
        for name, (x, y) in zip(names, points.tolist(), strict=True):
            # A dollar sign would start a formula, which a file's name is not.
            axes.annotate(
                _plain(name), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, parse_math=False
            )
    axes.set(xlabel="first component", ylabel="second component")
    axes.set_aspect("equal", adjustable="datalim")  # a distance counts the same in both directions
    axes.margins(0.15)  # room for names at the edge
    if title:
        axes.set_title(title, parse_math=False)
    axes.legend(frameon=False)
    save_figure(figure, path, dpi=150)


def _plain(name: str) -> str:
    """``name`` as a font can show it; what no font has, half of a surrogate pair among it, is a question mark."""
    return "".join(char if char.isprintable() else "?" for char in name)
