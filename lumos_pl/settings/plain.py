"""Settings as plain values, and back: what hyperparameters, checkpoints and exports hold of them.

Reading trusts nothing: every name and type is that of the settings' class, which checks the ranges.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lumos_pl.errors import ConfigError

Settings = TypeVar("Settings")


def is_plain(value: Any) -> bool:
    """Whether a value is of dicts, lists and scalars alone, which any checkpoint may hold and give back."""
    match value:
        case dict():
            return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
        case list() | tuple():
            return all(map(is_plain, value))
        case _:
            return value is None or type(value) in (str, int, float, bool)


def to_plain(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass as dicts, lists and scalars."""
    plain: dict[str, Any] = _plain(asdict(settings))
    return plain


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def from_plain(kind: type[Settings], values: Settings | Mapping[str, Any] | None, where: str) -> Settings:
    """Settings of a class from plain values; those that are its instance already are given back, None is its defaults.

    Args:
        where: what the values are called, for messages.
    Raises:
        ConfigError: a field that the class does not have, or a value of another type or out of range.
    """
    if isinstance(values, kind):
        return values
    if values is None:
        return kind()
    if not isinstance(values, Mapping):
        raise ConfigError("not settings", where=where, got=type(values).__name__, expected=kind.__name__)
    hints = get_type_hints(kind)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError("unknown key", where=where, got=str(name)[:100])
        fields[name] = _read(value, hints[name], f"{where}.{name}")
    return kind(**fields)


def _read(value: Any, hint: Any, where: str) -> Any:
    """A value of the type that a field has; lists become tuples, and mappings settings, where the field asks for it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_one_of(value, parts, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        each = [parts[0]] * len(value) if origin is list or parts[-1] is Ellipsis else list(parts)
        if len(each) == len(value):
            return origin(_read(item, part, f"{where}[{i}]") for i, (item, part) in enumerate(zip(value, each)))  # noqa: B905
    if _is_of(value, hint):
        return float(value) if hint is float else value
    raise ConfigError("value does not fit", where=where, got=repr(value)[:100], expected=_words(hint))


def _read_one_of(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    for hint in hints:
        try:
            return _read(value, hint, where)
        except ConfigError:
            continue
    raise ConfigError(
        "value does not fit", where=where, got=repr(value)[:100], expected=" or ".join(map(_words, hints))
    )


def _is_of(value: Any, hint: Any) -> bool:
    if hint is Any or hint is type(value):
        return True
    if get_origin(hint) is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint))
    if get_origin(hint) is dict:
        return isinstance(value, dict)
    return hint is float and type(value) is int and math.isfinite(value)


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if hint is type(None):
        return "nothing"
    return getattr(hint, "__name__", str(hint))
