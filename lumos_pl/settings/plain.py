"""Settings as plain values, and back: what hyperparameters, checkpoints and exports hold of them.

Reading trusts nothing: every name and type is that of the settings' class, which checks the ranges.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

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
    return cast(dict[str, Any], json.loads(json.dumps(asdict(settings))))


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
        fields[name] = read_value(value, hints[name], f"{where}.{name}")
    return kind(**fields)


def read_value(value: Any, hint: Any, where: str) -> Any:
    """A value of the type that a field has; lists become tuples, and mappings settings, where the field asks for it.

    Raises:
        ConfigError: it is of another type.
    """
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    if fits(value, hint):
        return _as(value, hint)
    raise ConfigError("value does not fit", where=where, got=repr(value)[:100], expected=type_words(hint))


def _as(value: Any, hint: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _as(value, next(part for part in parts if fits(value, part)))
    if origin in (list, tuple):
        return origin(_as(item, part) for item, part in zip(value, _items(value, hint), strict=True))
    return float(value) if hint is float else value


def _items(value: Any, hint: Any) -> tuple[Any, ...]:
    """The type of each item of a list, or of a tuple."""
    parts = get_args(hint)
    return parts[:1] * len(value) if get_origin(hint) is list or parts[-1] is Ellipsis else parts


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type; an object of a class that is no plain value's is given by its class path."""
    match get_origin(hint) or hint:
        case kind if kind in (Union, types.UnionType):
            return any(fits(value, part) for part in get_args(hint))
        case kind if kind is Literal:
            return any(value == option and type(value) is type(option) for option in get_args(hint))
        case kind if kind in (list, tuple):
            each = _items(value, hint) if isinstance(value, list | tuple) else ()
            return isinstance(value, list | tuple) and len(each) == len(value) and all(map(fits, value, each))
        case kind if kind is dict:
            return isinstance(value, Mapping) and all(fits(item, get_args(hint)[1]) for item in value.values())
        case kind if kind is float:
            return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)
        case kind if kind in (int, bool, str, type(None)):
            return type(value) is kind
        case kind:
            return kind is Any or (isinstance(value, Mapping) and "class_path" in value)


def type_words(hint: Any) -> str:
    """A type in words: `int or float`, `simple or advanced`, `class_path and init_args`."""
    match get_origin(hint) or hint:
        case kind if kind in (Union, types.UnionType):
            return " or ".join(dict.fromkeys(type_words(part) for part in get_args(hint) if part is not timedelta))
        case kind if kind is Literal:
            return " or ".join("null" if part is None else str(part) for part in get_args(hint))
        case kind if kind is type(None):
            return "null"
        case kind if kind is Any:
            return "any value"
        case kind if kind in (list, dict, tuple):
            return f"a {kind.__name__}"
        case kind if kind in (int, float, bool, str):
            return str(kind.__name__)
        case kind:
            return f"a {getattr(kind, '__name__', kind)} by class_path and init_args"
