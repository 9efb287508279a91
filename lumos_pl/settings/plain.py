"""Settings as plain values, and back: what hyperparameters, checkpoints and exports hold of them.

Reading trusts nothing: every name and type is that of the settings' class, which checks the ranges.
"""

from __future__ import annotations

import json
import reprlib
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from datetime import timedelta
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from lumos_pl.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")


_evaluated_hints = cache(get_type_hints)


def hints_of(kind: type) -> dict[str, Any]:
    """The types of a class's fields, which are texts: evaluated once."""
    return _evaluated_hints(kind)


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
    return cast(dict[str, Any], json.loads(json.dumps(asdict(settings), default=_number)))


def _number(value: Any) -> int | float:
    """One of numpy's as Python's own."""
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"{type(value).__name__} is no plain value")


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
    hints = hints_of(kind)
    read = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError("unknown key", where=where, got=str(name)[:100], fix=did_you_mean(str(name), hints))
        read[name] = read_value(value, hints[name], f"{where}.{name}" if where else name)
    return kind(**read)


def read_value(value: Any, hint: Any, where: str) -> Any:
    """A value of the type that a field has; lists become tuples, and mappings settings, where the field asks for it.

    Raises:
        ConfigError: it is of another type.
    """
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    if get_origin(hint) is list and isinstance(value, list | tuple) and is_dataclass(each := get_args(hint)[0]):
        return [read_value(item, each, f"{where}[{place}]") for place, item in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, Mapping) and is_dataclass(each := get_args(hint)[1]):
        return {name: read_value(item, each, f"{where}.{name}") for name, item in value.items()}
    if fits(value, hint):
        return _as(value, hint)
    raise _misfit(value, hint, where)


def _misfit(value: Any, hint: Any, where: str) -> ConfigError:
    """Of a value, or of the first item of a list, that is not of its type."""
    if get_origin(hint) is list and isinstance(value, list | tuple):
        (of_items,) = get_args(hint)
        place = next(place for place, item in enumerate(value) if not fits(item, of_items))
        return _misfit(value[place], of_items, f"{where}[{place}]")
    return ConfigError("value does not fit", where=where, got=reprlib.repr(value), expected=type_words(hint))


def _as(value: Any, hint: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _as(value, next(part for part in parts if fits(value, part)))
    if origin in (list, tuple):
        return origin(_as(item, part) for item, part in zip(value, item_types(value, hint), strict=True))
    return hint(value) if hint in (int, float) else value


def item_types(value: Any, hint: Any) -> tuple[Any, ...]:
    """The type of each item of a list, or of a tuple."""
    parts = get_args(hint)
    return parts[:1] * len(value) if get_origin(hint) is list or parts[-1] is Ellipsis else parts


def check_types(where: str, settings: Any) -> None:
    """Raise ConfigError at the first field of a dataclass that is not of the type that it says.

    What a file says is read by its types; settings that are made in Python would take any value.

    Args:
        where: what the fields belong to, see `check_ranges`.
    """
    hints = hints_of(type(settings))
    for item in fields(settings):
        value, hint = getattr(settings, item.name), hints[item.name]
        if not fits(value, hint):
            raise _misfit(value, hint, f"{where}.{item.name}" if where else item.name)


def check_instance(value: object, kind: type, where: str, fix: str | None = None) -> None:
    """Raise ConfigError unless an argument is of a class."""
    if not isinstance(value, kind):
        raise ConfigError("of another class", where=where, got=type(value).__name__, expected=kind.__name__, fix=fix)


def check_function(value: object, where: str) -> None:
    """Raise ConfigError unless an argument is None or can be called."""
    if not (value is None or callable(value)):
        raise ConfigError("cannot be called", where=where, got=reprlib.repr(value), expected="a function, or None")


def check_list(value: Any, where: str, *, length: int | None = None, expected: str = "a list of them") -> list[Any]:
    """The items of an argument; raise ConfigError where it has none, as a single text, or not as many as it should.

    Args:
        expected: what belongs there, in words.
    """
    try:
        items = None if isinstance(value, str | bytes | Mapping) else list(value)
    except TypeError:  # which cannot be gone through
        items = None
    if items is None:
        raise ConfigError("value does not fit", where=where, got=reprlib.repr(value), expected=expected)
    if length is not None and len(items) != length:
        raise ConfigError("not one for each", where=where, got=len(items), expected=length)
    return items


def check_texts(value: Any, where: str) -> list[str]:
    """The texts of an argument, of whatever library, as Python's own.

    Raises:
        ConfigError: it is no list of them: one alone would be taken by letters.
    """
    texts = check_list(value, where, expected="a list of texts")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise _misfit(text, str, f"{where}[{place}]")
    return [str(text) for text in texts]  # numpy's are of a class of its own


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; of a class that is no plain value's it is an object, or given by its class path."""
    match get_origin(hint) or hint:
        case kind if kind in (Union, types.UnionType):
            return any(fits(value, part) for part in get_args(hint))
        case kind if kind is Literal:
            return any(value == option and type(value) is type(option) for option in get_args(hint))
        case kind if kind in (list, tuple):
            each = item_types(value, hint) if isinstance(value, list | tuple) else ()
            return isinstance(value, list | tuple) and len(each) == len(value) and all(map(fits, value, each))
        case kind if kind is dict:
            return isinstance(value, Mapping) and all(fits(item, get_args(hint)[1]) for item in value.values())
        case kind if kind is float:
            is_number = isinstance(value, Real) and not isinstance(value, bool)  # numpy's too
            return is_number and (not isinstance(value, Integral) or abs(int(value)) <= sys.float_info.max)
        case kind if kind is int:
            return isinstance(value, Integral) and not isinstance(value, bool)
        case kind if kind in (bool, str, type(None)):
            return type(value) is kind
        case kind:
            is_one = kind is Any or (isinstance(kind, type) and isinstance(value, kind))
            return is_one or (isinstance(value, Mapping) and "class_path" in value)


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
            of = [part.__name__ for part in get_args(hint)[-1:] if isinstance(part, type) and is_dataclass(part)]
            return " of ".join((f"a {kind.__name__}", *of))
        case kind if kind in (int, float, bool, str):
            return str(kind.__name__)
        case kind if kind is Path:
            return "a path"
        case kind if isinstance(kind, type) and is_dataclass(kind):
            return f"a {kind.__name__}"
        case kind:
            return f"a {getattr(kind, '__name__', kind)} by class_path and init_args"
