"""Random changes to a decoded medium, sense by sense; each a pure function of the medium and a generator.

Sources: ImageBind (arXiv 2305.05665), appendix, for sound and maps; ULIP (arXiv 2212.05171) and Point-Bind
(arXiv 2309.00615) for points; SpecAugment (arXiv 1904.08779) for spectrograms.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindlm.binding.augment_settings import AugmentRecipe, ImuAugment, MapAugment, PointAugment, SoundAugment

__all__ = ["augment", "augment_imu", "augment_map", "augment_points", "augment_sound", "mask_spectrogram"]

Floats = NDArray[np.floating[Any]]
Other = Callable[[], Any]
"""Gives another medium of the same sense."""


def augment(
    modality: str, raw: Any, random: np.random.Generator, recipe: AugmentRecipe, *, rate: int, other: Other
) -> Any:
    """A decoded medium, changed.

    Args:
        modality: the sense.
        raw: as `Tower.load` gives it.
        random: draws everything.
        recipe: how much.
        rate: samples a second, of sound.
        other: gives another medium to mix in; called at most once.
    """
    if not recipe.is_on:
        return raw
    if modality == "audio":
        return augment_sound(raw, random, recipe.sound, rate=rate, other=other)
    if modality == "point":
        return augment_points(raw, random, recipe.points)
    if modality in ("depth", "thermal"):
        return augment_map(raw, random, recipe.maps, blank=0.0 if modality == "depth" else None)
    if modality == "imu":
        return augment_imu(raw, random, recipe.imu)
    return raw


# -- sound ------------------------------------------------------------------------------------------------------------


def augment_sound(
    waveform: Floats,
    random: np.random.Generator,
    config: SoundAugment,
    *,
    rate: int = 16_000,
    other: Other | None = None,
) -> Floats:
    """Speed, crop, shift, mix, gain and noise, in this order.

    Args:
        waveform: `(S,)`, any range.
        random: draws everything.
        config: how much.
        rate: samples a second.
        other: gives another waveform at the same rate.

    Returns:
        `(S',)` of the same type.
    """
    sound = np.asarray(waveform)
    if config.speed:
        sound = _at_speed(sound, random.uniform(1 - config.speed, 1 + config.speed))
    if config.crop and len(sound) > (wanted := max(1, round(config.crop * rate))):
        start = int(random.integers(len(sound) - wanted + 1))
        sound = sound[start : start + wanted]
    if config.shift and len(sound):
        most = config.shift * len(sound)
        sound = np.roll(sound, int(random.uniform(-most, most)))
    if config.mix and random.random() < config.mix and other is not None:
        sound = _laid_under(sound, np.asarray(other()), random, config.mix_db)
    if config.gain_db:
        sound = sound * _amplitude(random.uniform(-config.gain_db, config.gain_db))
    if config.noise_db is not None:
        below = random.uniform(config.noise_db, config.noise_db + 30)
        sound = sound + random.standard_normal(len(sound)) * _level(sound) * _amplitude(-below)
    return sound.astype(waveform.dtype, copy=False)


def mask_spectrogram(
    values: Floats, random: np.random.Generator, config: SoundAugment, axes: tuple[int, int]
) -> Floats:
    """A band of frequencies and a stretch of frames set to the mean (SpecAugment, one mask each).

    Args:
        values: a spectrogram.
        random: draws widths and places.
        config: widest masks.
        axes: of the frequencies and of the frames.
    """
    values = np.array(values)
    mean = values.mean()
    for axis, widest in zip(axes, (config.mask_frequencies, config.mask_frames), strict=True):
        length = values.shape[axis]
        width = int(random.integers(min(widest, length // 2) + 1))
        start = int(random.integers(length - width + 1))
        np.moveaxis(values, axis, 0)[start : start + width] = mean
    return values


def _at_speed(sound: Floats, speed: float) -> Floats:
    """Read `speed` times as fast, between samples by straight lines: pitch and length change together."""
    places = np.arange(0, max(len(sound) - 1, 0) + 1e-9, speed)
    return np.interp(places, np.arange(len(sound)), sound) if len(sound) else sound


def _laid_under(sound: Floats, other: Floats, random: np.random.Generator, below_db: tuple[float, float]) -> Floats:
    if not len(other) or not _level(other) or not len(sound):
        return sound
    start = int(random.integers(len(other)))
    repeated = np.resize(np.roll(other, -start), len(sound))
    return sound + repeated * (_level(sound) / _level(other) * _amplitude(-random.uniform(*below_db)))


def _level(sound: Floats) -> float:
    """Root mean square."""
    return math.sqrt(float(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0


def _amplitude(decibels: float) -> float:
    return 10.0 ** (decibels / 20)


# -- points -----------------------------------------------------------------------------------------------------------


def augment_points(points: Floats, random: np.random.Generator, config: PointAugment) -> Floats:
    """Dropping, scale, jitter and turning, in ULIP's order, of a cloud brought to radius 1.

    The points are shuffled too, so that a tower which samples them takes others each time.

    Args:
        points: `(P, 3 + C)`: coordinates, and what each point carries along, such as its colour.
        random: draws everything.
        config: how much.

    Returns:
        As many points.
    """
    points = np.asarray(points)[random.permutation(len(points))]
    if config.dropping:
        share = random.uniform(0, config.dropping)
        points[random.random(len(points)) < share] = points[0]
    places = _of_radius_1(points[:, :3].astype(np.float64)) * random.uniform(*config.scale, 3)
    if config.jitter:
        places += _clipped_normal(random, places.shape, config.jitter, 5)
    if config.tilt:
        for axis, angle in enumerate(_clipped_normal(random, (3,), config.tilt, 3)):
            places = places @ _turn(axis, angle).T
    if config.turn:
        places = places @ _turn(config.up, 2 * math.pi * config.turn * random.random()).T
    points[:, :3] = places
    return points


def _of_radius_1(places: NDArray[np.float64]) -> NDArray[np.float64]:
    places = places - places.mean(axis=0)
    radius = np.linalg.norm(places, axis=1).max()
    return places / radius if radius > 0 else places


def _turn(axis: int, angle: float) -> NDArray[np.float64]:
    """`(3, 3)`, a turn about an axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[second, first] = math.sin(angle)
    matrix[first, second] = -matrix[second, first]
    return matrix


def _clipped_normal(
    random: np.random.Generator, shape: tuple[int, ...], deviation: float, most: float
) -> NDArray[np.float64]:
    return np.clip(random.standard_normal(shape), -most, most) * deviation


# -- maps -------------------------------------------------------------------------------------------------------------


def augment_map(
    values: Floats, random: np.random.Generator, config: MapAugment, *, blank: float | None = None
) -> Floats:
    """Crop, mirror, and a blank rectangle; what is cropped keeps its own size, for the tower brings it to its own.

    Args:
        values: `(H, W)` or `(H, W, C)`.
        random: draws everything.
        config: how much.
        blank: what a blank place holds, such as the 0 of a depth that was not measured; None for the mean.

    Returns:
        `(H', W')` or `(H', W', C)`.
    """
    area = random.uniform(*config.crop)
    values = values[_box(values.shape[:2], area, 1.0, random)]
    if random.random() < config.flip:
        values = values[:, ::-1]
    values = np.array(values)
    if random.random() < config.erase:
        shape = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        values[_box(values.shape[:2], random.uniform(*config.erase_area), shape, random)] = (
            values.mean() if blank is None else blank
        )
    return values


def _box(size: tuple[int, ...], area: float, shape: float, random: np.random.Generator) -> tuple[slice, slice]:
    """A rectangle with this share of the area; `shape` times as wide as the map is to its height."""
    slices = []
    for length, side in zip(size, (math.sqrt(area / shape), math.sqrt(area * shape)), strict=True):
        kept = min(length, max(1, round(side * length)))
        start = int(random.integers(length - kept + 1))
        slices.append(slice(start, start + kept))
    return slices[0], slices[1]


# -- motion -----------------------------------------------------------------------------------------------------------


def augment_imu(values: Floats, random: np.random.Generator, config: ImuAugment) -> Floats:
    """Scale and noise, channel by channel: `(6, S)` -> `(6, S)`."""
    record = np.asarray(values)
    if config.scale:
        record = record * random.uniform(1 - config.scale, 1 + config.scale, (len(record), 1))
    if config.noise:
        own = record.std(axis=1, keepdims=True)
        record = record + random.standard_normal(record.shape) * own * config.noise
    return record.astype(values.dtype, copy=False)
