"""From points in any number and place to what a 3-D encoder reads: as many as it wants, centred, of radius 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bindlm.errors import ConfigError, MediaError


@dataclass(frozen=True)
class PointPreprocessConfig:
    """How clouds become input of one encoder; travels with its weights. Defaults: Point-Bind's."""

    num_points: int = 8192
    """Points of the result."""
    start: int = 0
    """Index of the first point taken when a cloud has more; the released code draws it at random."""
    max_candidates: int = 32_768
    """A cloud of more points is first thinned to as many, by a draw with `seed`: farthest point sampling takes time in
    proportion, about 1 second for these."""
    seed: int = 0
    """Of that draw."""

    def __post_init__(self) -> None:
        for name, least in (("num_points", 1), ("start", 0), ("max_candidates", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"PointPreprocessConfig.{name} must be a whole number of at least {least}, got {value!r}."
                )
        if self.max_candidates < self.num_points:
            raise ConfigError(
                f"PointPreprocessConfig.max_candidates must be at least num_points, got {self.max_candidates} and "
                f"{self.num_points}."
            )


def preprocess_points(points: np.ndarray, config: PointPreprocessConfig = PointPreprocessConfig()) -> np.ndarray:
    """Sample a cloud, then centre it and bring it to radius 1.

    A cloud of more points than wanted is sampled by farthest point sampling. One of fewer has its points repeated, in
    their order and from the first on. That makes clouds of any number fit into one batch, which the released code
    refuses; but an encoder's groups, of 32 or 48 points, then reach less far, since copies fill them. Then the
    centroid of what was sampled goes to the origin, and the point farthest from it to distance 1. Axes stay as they
    are.

    Args:
        points: float32 `(P, 3)`, as `load_points` gives them.
        config: how many points, and the start.

    Returns:
        float32 `(num_points, 3)`, mean 0, largest norm 1.

    Raises:
        MediaError: points of another shape, not finite, or all the same.
        ConfigError: `start` is not among the points.

    Source:
        The data set code of Point-BERT (arXiv 2111.14819) and Point-Bind (arXiv 2309.00615): sample, then normalise.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points) or points.dtype.kind not in "fiu":
        raise MediaError(
            f"Cannot preprocess points of shape {points.shape} and type {points.dtype}: numbers (P, 3) are expected. "
            "Read them with bindlm.media.points.load_points."
        )
    points = points.astype(np.float32, copy=False)
    if not np.isfinite(points).all() or (points == points[0]).all():
        raise MediaError(
            "Cannot preprocess points that are NaN, infinite, or all the same. Drop such points: "
            "points[np.isfinite(points).all(axis=1)]."
        )
    sampled = _sampled(points, config)  # (num_points, 3)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        centred = sampled - sampled.mean(axis=0)
        radius = np.sqrt((centred * centred).sum(axis=1)).max()
    if not 0 < radius < np.inf:
        raise MediaError(
            "Cannot preprocess points so near to each other or so far. Scale them to a radius of about 1."
        )
    return np.ascontiguousarray(centred / radius, dtype=np.float32)


def _sampled(points: np.ndarray, config: PointPreprocessConfig) -> np.ndarray:
    if len(points) <= config.num_points:
        return points[np.arange(config.num_points) % len(points)]
    if len(points) > config.max_candidates:
        rng = np.random.default_rng(config.seed)
        points = points[np.sort(rng.choice(len(points), config.max_candidates, replace=False))]
    if config.start >= len(points):
        raise ConfigError(f"PointPreprocessConfig.start must lie below the {len(points)} points, got {config.start}.")
    import torch

    from bindlm.media.points_sampling import farthest_point_indices

    indices = farthest_point_indices(torch.from_numpy(points.copy())[None], config.num_points, config.start)
    return points[indices[0].numpy()]
