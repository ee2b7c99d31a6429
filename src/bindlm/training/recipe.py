"""Recipes: YAML read into checked dataclasses."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import StrEnum
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
        try:
            _set(values, key.split("."), yaml.safe_load(value), override)
        except yaml.YAMLError:
            raise ConfigError(f"Override {override!r}: the value is not valid YAML.") from None
    return _fill(recipe_class, values, str(path))


def plain(recipe: Any) -> Any:
    """A recipe, whole with its defaults, as what YAML and JSON can hold; `load_recipe` reads it back."""
    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        return {field.name: plain(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}
    if isinstance(recipe, Mapping):
        return {str(key): plain(value) for key, value in recipe.items()}
    if isinstance(recipe, (list, tuple)):
        return [plain(item) for item in recipe]
    return str(recipe) if isinstance(recipe, (Path, StrEnum)) else recipe


def _set(values: Any, names: Sequence[str], value: Any, override: str) -> None:
    """Set a value deep inside; a number picks an item of a list, as in `data.sources.0.path=…`."""
    *outer, last = names
    target = values
    for name in outer:
        target = _item(target, name, override) if isinstance(target, list) else target.setdefault(name, {})
        if not isinstance(target, (dict, list)):
            raise ConfigError(f"Override {override!r}: {name!r} holds a value, not a section.")
    if isinstance(target, list):
        _item(target, last, override)
        target[int(last)] = value
    else:
        target[last] = value


def _item(items: list[Any], name: str, override: str) -> Any:
    if not name.isdecimal() or int(name) >= len(items):
        raise ConfigError(f"Override {override!r}: {name!r} is no item of a list of {len(items)}, which count from 0.")
    return items[int(name)]


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
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _of_union(kind, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a section of keys, got {value!r}.")
        return _fill(kind, value, where)
    origin = typing.get_origin(kind) or kind
    if origin is tuple and isinstance(value, (list, tuple)):
        return _tuple(kind, value, where)
    if isinstance(origin, type) and issubclass(origin, StrEnum):
        return _choice(origin, value, where)
    if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if origin is float and isinstance(value, str):
        return _float(value, where)
    if origin is Path and isinstance(value, str):
        return Path(value)
    if origin is Any or (isinstance(value, origin) and not (origin is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{where} must be of type {getattr(origin, '__name__', origin)}, got {value!r}.")


def _of_union(kind: Any, value: Any, where: str) -> Any:
    choices = typing.get_args(kind)
    if value is None and type(None) in choices:
        return None
    named = [choice for choice in choices if choice is not type(None)]
    for choice in named[:-1]:
        try:
            return _checked(choice, value, where)
        except ConfigError:
            continue
    return _checked(named[-1], value, where)


def _tuple(kind: Any, value: Sequence[Any], where: str) -> tuple[Any, ...]:
    """Items of `tuple[X, ...]`, or of a tuple of known length."""
    kinds = typing.get_args(kind)
    if not kinds:
        return tuple(value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{where} must have {len(kinds)} items, got {len(value)}.")
    return tuple(_checked(kinds[i], item, f"{where}[{i}]") for i, item in enumerate(value))


def _choice(kind: type[StrEnum], value: Any, where: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(f"{where} must be one of {', '.join(kind)}, got {value!r}.") from None


def _float(value: str, where: str) -> float:
    """YAML 1.1 reads `1e-4` (no point) as a word."""
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{where} must be a number, got {value!r}.") from None
