"""How much each sense is changed before a tower sees it; numbers as published where they are."""

from dataclasses import dataclass, field

from bindlm.errors import ConfigError

__all__ = ["AugmentRecipe", "ImuAugment", "MapAugment", "PointAugment", "SoundAugment"]


@dataclass(frozen=True)
class SoundAugment:
    """Waveforms, and the spectrograms made of them."""

    crop: float = 0.0
    """Seconds of a random stretch; 0 for the whole, from which the tower takes its own."""
    gain_db: float = 6.0
    """Louder or softer by at most so much."""
    noise_db: float | None = 30.0
    """White noise below the sound by this many decibels or up to 30 more; None for none."""
    speed: float = 0.0
    """Faster and higher, or slower and lower, by at most this share (0.1: 0.9 to 1.1 times)."""
    shift: float = 0.0
    """Rolled round in time by at most this share of its length."""
    mix: float = 0.0
    """How often another sound of the training split is laid under it."""
    mix_db: tuple[float, float] = (5.0, 20.0)
    """That sound is softer by this many decibels."""
    mask_frequencies: int = 12
    """Widest band of mel bins that is blanked (ImageBind, as reported)."""
    mask_frames: int = 48
    """Longest stretch of frames that is blanked (ImageBind, as reported)."""

    def __post_init__(self) -> None:
        _not_negative(self, "crop", "gain_db", "speed", "shift", "mask_frequencies", "mask_frames")
        _shares(self, "speed", "shift", "mix")
        if not 0 <= self.mix_db[0] <= self.mix_db[1]:
            raise ConfigError(f"SoundAugment.mix_db must be 0 <= least <= most, got {self.mix_db}.")


@dataclass(frozen=True)
class PointAugment:
    """Clouds, measured in their own radius; numbers of ULIP and Point-Bind."""

    up: int = 1
    """Axis that points up: 0, 1 or 2; the cloud is turned about it by any angle."""
    turn: float = 1.0
    """Share of the full circle that it is turned by at most; 0 for no turning."""
    tilt: float = 0.06
    """Standard deviation of small turns about all axes, in radians, clipped at three times that."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Smallest and largest factor along each axis on its own: one factor for all would be undone when the cloud is
    brought to radius 1, as a shift is."""
    jitter: float = 0.01
    """Standard deviation of each point's own move, clipped at five times that."""
    dropping: float = 0.875
    """Largest share of the points that the first point takes the place of."""

    def __post_init__(self) -> None:
        _not_negative(self, "tilt", "jitter")
        _shares(self, "turn", "dropping")
        if self.up not in (0, 1, 2):
            raise ConfigError(f"PointAugment.up must be 0, 1 or 2, got {self.up}.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"PointAugment.scale must be 0 < smallest <= largest, got {self.scale}.")


@dataclass(frozen=True)
class MapAugment:
    """Depth and thermal maps."""

    crop: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the area that a random crop keeps."""
    flip: float = 0.5
    """How often left and right change places."""
    erase: float = 0.25
    """How often a rectangle is blanked (ImageBind)."""
    erase_area: tuple[float, float] = (0.02, 0.33)
    """Its smallest and largest share of the area."""

    def __post_init__(self) -> None:
        _shares(self, "flip", "erase")
        for name in ("crop", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ConfigError(f"MapAugment.{name} must be 0 < smallest <= largest <= 1, got {(low, high)}.")


@dataclass(frozen=True)
class ImuAugment:
    """Motion records. ImageBind trains on them as they are."""

    noise: float = 0.0
    """Standard deviation of added noise, as a share of each channel's own."""
    scale: float = 0.0
    """Each channel is multiplied by 1 plus or minus at most so much."""

    def __post_init__(self) -> None:
        _not_negative(self, "noise")
        _shares(self, "scale")


@dataclass(frozen=True)
class AugmentRecipe:
    """What is done to media of the new sense while training; text is never changed."""

    is_on: bool = True
    """False trains on media as they are."""
    views: int = 4
    """Augmented copies of each medium that a tower with a frozen backbone has its features of; 0 for the plain one
    alone. Other towers see a fresh copy every time."""
    sound: SoundAugment = field(default_factory=SoundAugment)
    points: PointAugment = field(default_factory=PointAugment)
    maps: MapAugment = field(default_factory=MapAugment)
    imu: ImuAugment = field(default_factory=ImuAugment)

    def __post_init__(self) -> None:
        _not_negative(self, "views")


def _not_negative(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise ConfigError(f"{type(config).__name__}.{name} must be 0 or more, got {getattr(config, name)}.")


def _shares(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{type(config).__name__}.{name} must lie in 0..1, got {getattr(config, name)}.")
