"""Every limit on what is read from outside: plain numbers, checked at birth."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from bindlm.errors import ConfigError
from bindlm.media.names import Medium

_MEBIBYTE = 1024 * 1024

_RATIO_FREE_PIXELS = 4_000_000
"""Below this many pixels no picture is called a bomb: blank pages compress well and 16 MB of memory harm nobody."""


def _check_positive_ints(limits: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(limits, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{type(limits).__name__}.{name} must be a whole number of at least 1, got {value!r}.")


def _check_finite(limits: object, name: str, least: float) -> None:
    value = getattr(limits, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        raise ConfigError(f"{type(limits).__name__}.{name} must be a finite number >= {least}, got {value!r}.")


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may measure. A picture at all the limits needs up to 0.9 GB while it is decoded."""

    max_bytes: int = 64 * _MEBIBYTE
    """Size of the file, of the bytes given, or of the body of a web answer."""
    max_pixels: int = 64_000_000
    """Width times height, read from the header before anything is decoded."""
    max_side: int = 65_535
    """Width, and height."""
    min_side: int = 1
    """Width, and height."""
    max_ratio: float = 200.0
    """Longer side divided by the shorter one."""
    max_decompression_ratio: float = 5_000.0
    """Bytes of the decoded picture (4 a pixel) for each byte of the file; asked only above 4 million pixels."""

    def __post_init__(self) -> None:
        _check_positive_ints(self, ("max_bytes", "max_pixels", "max_side", "min_side"))
        _check_finite(self, "max_ratio", 1)
        _check_finite(self, "max_decompression_ratio", 1)
        if self.min_side > self.max_side:
            raise ConfigError(
                f"ImageLimits.min_side must not exceed max_side, got {self.min_side!r} and {self.max_side!r}."
            )

    def check(self, medium: Medium, width: int, height: int, num_bytes: int | None = None) -> None:
        """Refuse a picture of `width` x `height` pixels, from a file of `num_bytes` bytes, that is out of bounds.

        Raises:
            MediaError: With the size and the limit that it breaks.
        """
        size = f"it is {width} x {height} pixels"
        if min(width, height) < self.min_side:
            raise medium.error(f"{size}, and a side of at least {self.min_side} is needed", "Give a larger picture")
        if max(width, height) > self.max_side:
            raise medium.error(
                f"{size}, and a side of at most {self.max_side} is allowed",
                "Shrink the picture, or raise ImageLimits(max_side=...)",
            )
        if max(width, height) > self.max_ratio * min(width, height):
            raise medium.error(
                f"{size}, and the longer side may be at most {self.max_ratio:g} times the shorter one",
                "Cut the picture into parts, or raise ImageLimits(max_ratio=...)",
            )
        pixels = width * height
        if pixels > self.max_pixels:
            raise medium.error(
                f"{size}, {pixels / 1e6:.1f} million, and at most {self.max_pixels / 1e6:.1f} million are allowed",
                "Shrink the picture, or raise ImageLimits(max_pixels=...)",
            )
        if num_bytes is not None and pixels > _RATIO_FREE_PIXELS:
            if 4 * pixels > self.max_decompression_ratio * num_bytes:
                raise medium.error(
                    f"{size} in only {num_bytes} bytes, as in a decompression bomb",
                    "Shrink the picture, or raise ImageLimits(max_decompression_ratio=...)",
                )


@dataclass(frozen=True)
class TextLimits:
    """How long a text may be."""

    max_bytes: int = 4 * _MEBIBYTE
    """Size of the file or of the bytes given."""
    max_characters: int = 1_000_000
    """Unicode code points, whatever the source."""

    def __post_init__(self) -> None:
        _check_positive_ints(self, tuple(field.name for field in fields(self)))


@dataclass(frozen=True)
class UrlLimits:
    """What may be fetched from the web once fetching is allowed at all."""

    timeout_s: float = 20.0
    """Seconds for everything together: looking up names, connecting, redirects, and reading the body."""
    max_redirects: int = 3
    """Redirects followed; each target is checked like the first address."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that an address may name."""
    allow_private_hosts: tuple[str, ...] = ()
    """Exact `host:port` pairs exempt from the port rule and from the rule that a host must be on the public internet,
    for a test server or a picture store in one's own network. A redirect to any other private host stays refused."""

    def __post_init__(self) -> None:
        _check_finite(self, "timeout_s", 0.001)
        if isinstance(self.max_redirects, bool) or not isinstance(self.max_redirects, int) or self.max_redirects < 0:
            raise ConfigError(f"UrlLimits.max_redirects must be a whole number >= 0, got {self.max_redirects!r}.")
        if not isinstance(self.ports, tuple) or not all(
            isinstance(port, int) and 0 < port < 65_536 for port in self.ports
        ):
            raise ConfigError(f"UrlLimits.ports must be a tuple of numbers from 1 to 65535, got {self.ports!r}.")
        if not isinstance(self.allow_private_hosts, tuple) or not all(
            isinstance(host, str) and host.rpartition(":")[0] and host.rpartition(":")[2].isdecimal()
            for host in self.allow_private_hosts
        ):
            raise ConfigError(
                'UrlLimits.allow_private_hosts must be a tuple of "host:port" texts, '
                f"got {self.allow_private_hosts!r}."
            )
