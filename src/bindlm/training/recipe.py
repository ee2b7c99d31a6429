"""Recipes: YAML read into checked dataclasses."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from bindlm.errors import ConfigError

Recipe = TypeVar("Recipe")


def load_recipe(path: Path, recipe_class: type[Recipe], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; what it does not name keeps the dataclass's default.

    Args:
        path: a YAML file.
        recipe_class: dataclass that the file must fit, dataclasses inside it included.
        overrides: `key=value` or `key.inner=value`, the value read as YAML; they win over the file.

    Raises:
        ConfigError: the file is missing or no mapping, or a key is unknown, or a value has the wrong type.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError:
        raise ConfigError(f"There is no recipe {path}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"Recipe {path}{where} is not valid YAML.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"Recipe {path} must hold key: value lines, got a {type(values).__name__}.")
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"An override is written key=value, got {override!r}.")
        target = values
        *outer, last = key.split(".")
        for name in outer:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise ConfigError(f"Override {override!r}: {name!r} holds a value, not a section.")
        target[last] = yaml.safe_load(value)
    return _fill(recipe_class, values, str(path))


def _fill(recipe_class: type[Recipe], values: Mapping[str, Any], where: str) -> Recipe:
    hints = typing.get_type_hints(recipe_class)
    known = [field.name for field in dataclasses.fields(recipe_class)]  # type: ignore[arg-type]
    filled: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(known)}.")
        filled[key] = _checked(hints[key], value, f"{where}: {key}")
    try:
        return recipe_class(**filled)
    except TypeError:
        missing = [
            field.name
            for field in dataclasses.fields(recipe_class)  # type: ignore[arg-type]
            if field.name not in filled
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        raise ConfigError(f"{where} lacks {', '.join(missing)}.") from None


def _checked(kind: Any, value: Any, where: str) -> Any:
    """The value as the field's type, or an error that says what was expected."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a section of keys, got {value!r}.")
        return _fill(kind, value, where)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        choices = typing.get_args(kind)
        if value is None and type(None) in choices:
            return None
        kind = next(choice for choice in choices if choice is not type(None))
    origin = typing.get_origin(kind) or kind
    if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if origin is Path and isinstance(value, str):
        return Path(value)
    if origin in (tuple, list) and isinstance(value, list):
        return origin(value)
    if origin is Any or (isinstance(value, origin) and not (origin is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{where} must be of type {getattr(origin, '__name__', origin)}, got {value!r}.")
