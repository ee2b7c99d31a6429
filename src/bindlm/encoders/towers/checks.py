"""Checks that the towers' configurations share."""

import math
from typing import Any

from bindlm.errors import ConfigError


def check_whole(config: object, least: int, *names: str) -> None:
    """Refuse fields that are no whole numbers of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise fault(config, name, f"a whole number of at least {least}")


def check_number(config: object, name: str, least: float, most: float = math.inf) -> None:
    """Refuse a field that is no finite number from `least` to `most`."""
    value = getattr(config, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise fault(config, name, f"a finite number from {least:g} to {most:g}")


def check_heads(config: Any) -> None:
    """Refuse a width that its heads do not divide."""
    if config.width % config.num_heads:
        raise fault(config, "num_heads", f"a divisor of width, {config.width}")


def check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a field that is none of `choices`."""
    if getattr(config, name) not in choices:
        raise fault(config, name, f"one of {', '.join(choices)}")


def fault(config: object, name: str, expected: str) -> ConfigError:
    """The error of one field."""
    return ConfigError(f"{type(config).__name__}.{name} must be {expected}, got {getattr(config, name)!r}.")
