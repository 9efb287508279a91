"""Settings out of YAML and `key=value`: merged strictly, one line for whatever does not fit."""

from __future__ import annotations

import copy
import difflib
import math
import re
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from functools import cache, lru_cache, reduce
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.trainer_config import COLLECTS
from experiments.yaml_text import MOST_DEPTH, check_plain, check_text, parse_yaml
from lumos_pl.checkpoints.earlier_keys import current_key
from lumos_pl.errors import ConfigError
from lumos_pl.settings.plain import fits, from_plain, hints_of, item_types, read_value, to_plain

Settings = TypeVar("Settings")
TRUTHS = {
    **dict.fromkeys(("yes", "y", "on", "true", "1"), True),
    **dict.fromkeys(("no", "n", "off", "false", "0"), False),
}
INTERPOLATION = re.compile(r"(\\*)\$\{")
_QUOTED = """a text with signs of YAML's stands in quotes, and they in the shell's: 'key=["*.mlp.*", b]'"""


@lru_cache(maxsize=4096)  # a word is asked for several times, and a study's cells have most of theirs in common
def parse_override(override: str) -> dict[str, Any]:
    """The settings that a `key=value` changes, as plain values that are not to be changed."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError("not an override", got=ascii(override)[:200], expected="key=value")
    check_text(key, None)
    if key.count(".") >= MOST_DEPTH:
        raise ConfigError("unknown key", file="command line", got=key[:200])
    try:
        parse_yaml(value)
        changes = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist([override])))
        check_plain(changes)
    except ConfigError as error:
        is_not_yaml = error.what == "not YAML"
        said = {"what": "value cannot be read", "fix": error.fix or _QUOTED} if is_not_yaml else {}
        raise ConfigError(**error.parts | said | {"where": key}) from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise ConfigError("value cannot be read", where=key, got=first_line(error), fix=_QUOTED) from None
    return changes


def text_override(key: str, text: str) -> str:
    """The word `key=value` by which a setting is this text, whatever signs of YAML's are in it.

    Raises:
        ConfigError: no setting can be it: it is no UTF-8, or has a `${`, which stands for another setting.
    """
    check_text(text, key)
    if "${" in text:
        raise ConfigError("stands for another setting", where=key, got=text[:200], expected="a name without ${")
    with suppress(ConfigError):
        if parse_yaml(text) == text:
            return f"{key}={text}"
    quoted = yaml.dump(text, default_style='"', width=math.inf, allow_unicode=True)
    return f"{key}={quoted.removesuffix(chr(10))}"


def changed_by(overrides: Sequence[str]) -> dict[str, Any]:
    """What `key=value` words say, as plain values that are not to be changed."""
    return reduce(_joined, map(parse_override, overrides), {})


def defaults(schema: type) -> dict[str, Any]:
    """The settings as they are where nobody says anything, as plain values that are not to be changed."""
    return _defaults(schema)


@cache
def _defaults(schema: type) -> dict[str, Any]:
    return to_plain(schema())


def merge(
    schema: type, settings: Mapping[str, Any], changes: Mapping[str, Any], *, source: str | Path
) -> dict[str, Any]:
    """Plain settings with changes, whose keys the schema all knows, and whose values are read as its fields' types.

    Sections are joined key by key; a list takes the place of the one before. What a `${..}` stands for is looked up
    later, by `resolved`.

    Raises:
        ConfigError: unknown key (the nearest is named), or a value of another type.
    """
    changes = _collected(schema, changes)
    _refuse_unknown(schema, changes, source)
    return _joined(settings, _read(schema, changes, source))


def merge_overrides(schema: type, settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Plain settings with `key=value` words: see `merge`."""
    for override in overrides:
        settings = merge(schema, settings, parse_override(override), source="command line")
    return dict(settings)


def _joined(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name for name, value in changes.items() if isinstance(value, dict)}
    inner = {name: _joined(before[name], changes[name]) for name in sections if isinstance(before.get(name), dict)}
    return {**before, **changes, **inner}


def resolved(schema: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The plain settings with what their `${..}` stand for, before anything is built of them; the caller's own.

    Raises:
        ConfigError: one stands for nothing, or for a value of another type.
    """
    if not any(map(_stands_for_another, _leaves(settings))):
        return copy.deepcopy(dict(settings))
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(dict(settings)), resolve=True))
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError("configuration does not resolve", got=first_line(error)) from None
    return _read(schema, values, None)


def build(schema: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The settings themselves, which check their values."""
    return from_plain(schema, values, "")


def check_interpolations(content: Mapping[str, Any], file: Path) -> None:
    """Raise ConfigError where a `${..}` of a file is none; what it stands for is looked up once all is merged."""
    if any(map(_stands_for_another, _leaves(content))):
        try:
            OmegaConf.create(dict(content))
        except (OmegaConfBaseException, RecursionError) as error:
            raise ConfigError("cannot be read", file=file, got=first_line(error)) from error


def as_it_stands(value: Any) -> Any:
    """Texts that a file of a run holds are that, and nothing to be filled in: no variable of the environment is."""
    match value:
        case dict():
            return {key: as_it_stands(item) for key, item in value.items()}
        case list():
            return [as_it_stands(item) for item in value]
        case str():
            return INTERPOLATION.sub(r"\1\1\\${", value)  # backslashes before it count double
    return value


def _leaves(value: Any) -> Iterator[Any]:
    match value:
        case Mapping():
            for item in value.values():
                yield from _leaves(item)
        case list() | tuple():
            for item in value:
                yield from _leaves(item)
        case _:
            yield value


@cache
def sections(schema: type) -> dict[str, type | None]:
    """The fields of a dataclass by name, each with the dataclass that it is, where it is a section."""
    return {item.name: _section_of(item) for item in fields(schema)}


def _section_of(item: Field[Any]) -> type | None:
    default = item.default_factory() if callable(item.default_factory) else item.default
    return type(default) if is_dataclass(default) and not isinstance(default, type) else None


@cache
def sections_under_names(schema: type) -> dict[str, type]:
    """The fields of a dataclass that hold sections under names of the user's, each with what the sections are."""
    found = {name: _section_of_each(hint) for name, hint in hints_of(schema).items()}
    return {name: section for name, section in found.items() if section is not None}


def _section_of_each(hint: Any) -> type | None:
    of_value = get_args(hint)[1:] if get_origin(hint) is dict else ()
    return next((kind for kind in of_value if isinstance(kind, type) and is_dataclass(kind)), None)


def _collected(schema: type, changes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The changes with the keys that a field of their section collects in that field, see `COLLECTS`.

    Where sections stand under names, a list of them, each with its `name`, means the same.
    """
    named, under_names = sections(schema), sections_under_names(schema)
    changes = dict(changes)
    for item in fields(schema):
        value = changes.get(item.name)
        if isinstance(value, dict) and (section := named[item.name]) is not None:
            changes[item.name] = _collected(section, value, f"{prefix}{item.name}.")
        elif isinstance(value, list | dict) and item.name in under_names:
            changes[item.name] = _by_name(value, f"{prefix}{item.name}")
        there = changes.get(item.name) or {}
        others = [key for key in changes if key in item.metadata.get(COLLECTS, ()) and key not in named]
        if others and isinstance(there, dict):
            changes[item.name] = there | {key: changes.pop(key) for key in others}
    return changes


def _by_name(entries: list[Any] | dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Sections under their names."""
    found: dict[str, dict[str, Any]] = {}
    for place, entry in entries.items() if isinstance(entries, dict) else enumerate(entries):
        key = f"{where}.{place}" if isinstance(entries, dict) else f"{where}[{place}]"
        name = place if isinstance(entries, dict) else entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict):
            raise ConfigError("no settings", where=key, got=reprlib.repr(entry), expected="a mapping of keys to values")
        if not isinstance(name, str):
            raise ConfigError("an entry without a name", where=key, expected="{name: ..., ...}")
        if name in found:
            raise ConfigError("two entries of one name", where=f"{key}.name", got=repr(name)[:100])
        found[name] = {key: value for key, value in entry.items() if isinstance(entries, dict) or key != "name"}
    return found


def _refuse_unknown(schema: type, changes: dict[str, Any], source: str | Path) -> None:
    known = _keys(schema) | set(_keys_under_names(schema, changes))
    if unknown := list(_unknown(schema, changes)):
        renamed = [key for key in unknown if current_key(key) in known]
        key = renamed[-1] if renamed else unknown[0]  # the last one is no section
        near = _nearest(key, known)
        raise ConfigError("unknown key", file=source, got=key, fix=f"did you mean {near}?" if near else None)


def _read(schema: type, values: Mapping[str, Any], source: str | Path | None, prefix: str = "") -> dict[str, Any]:
    """Values under keys that the schema knows, each of its field's type, or a `${..}`."""
    hints, named, under_names = hints_of(schema), sections(schema), sections_under_names(schema)
    found: dict[str, Any] = {}
    for name, value in values.items():
        where, section, each = f"{prefix}{name}", named[name], under_names.get(name)
        if section is not None and isinstance(value, dict):
            found[name] = _read(section, value, source, f"{where}.")
        elif each is not None and isinstance(value, dict):
            found[name] = {given: _read(each, entry, source, f"{where}.{given}.") for given, entry in value.items()}
        else:
            found[name] = _read_value(value, hints[name] if section is None else section, source, where)
    return found


def _read_value(value: Any, hint: Any, source: str | Path | None, where: str) -> Any:
    """A value of this type, or the number, text or truth of this type that YAML or the environment spells otherwise."""
    if _stands_for_another(value):
        return value
    if is_dataclass(hint):
        if isinstance(value, dict):
            return value  # one of a list of them: read when it is built
        raise ConfigError("value does not fit", file=source, where=where, got=reprlib.repr(value), expected="a mapping")
    if get_origin(hint) in (list, tuple):
        if not isinstance(value, list | tuple):
            fix = f"write [{value}]" if isinstance(value, str | int | float) else None
            raise ConfigError("not a list", file=source, where=where, got=reprlib.repr(value), fix=fix)
        each = item_types(value, hint)
        if len(each) == len(value):
            return [_read_value(item, each[place], source, f"{where}[{place}]") for place, item in enumerate(value)]
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if set(kinds) <= {str, type(None)} and isinstance(value, bool | float | list | dict):
        raise ConfigError("not a text", file=source, where=where, got=reprlib.repr(value), fix="put it in quotes")
    spelled = value if fits(value, hint) else next((new for kind in kinds for new in _spelled(value, kind)), value)
    try:
        return read_value(spelled, hint, where)
    except ConfigError as error:
        raise ConfigError(**error.parts | {"file": source}) from None


def _spelled(value: Any, kind: Any) -> Iterator[Any]:
    """The value as this type, if that is what it says."""
    if kind is str and type(value) is int:
        yield str(value)
    if kind is Path and isinstance(value, str):
        yield Path(value)
    if kind in (int, float) and isinstance(value, str):
        with suppress(ValueError):
            yield kind(value)
    if kind is bool and (truth := TRUTHS.get(str(value).lower())) is not None:
        yield truth


def _stands_for_another(value: object) -> bool:
    """Whether OmegaConf looks up something in its place, or undoes what kept it from that."""
    return isinstance(value, str) and "${" in value


def _unknown(schema: type | None, changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that a schema does not have, with all that stands below them."""
    named = {} if schema is None else sections(schema)
    under_names = {} if schema is None else sections_under_names(schema)
    for key, value in changes.items():
        section = named.get(key)
        if isinstance(value, dict) and (each := under_names.get(key)) is not None:
            for name, entry in value.items():
                yield from _unknown(each, entry, f"{prefix}{key}.{name}.")
        if key not in named:
            yield f"{prefix}{key}"
        if isinstance(value, dict) and (section is not None or key not in named):
            yield from _unknown(section, value, f"{prefix}{key}.")


def _nearest(key: str, known: Set[str]) -> str | None:
    """The key that was meant: its spelling of today, the one that ends so, or what looks most like it."""
    endings = [name for name in known if name.endswith(f".{key}")]
    alike = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    candidates = [current_key(key), *(endings if len(endings) == 1 else []), *alike]
    return next((name for name in candidates if name in known), None)


@cache
def _keys(schema: type) -> frozenset[str]:
    """Every dotted key of a dataclass, sections and what a field collects included."""
    named = {name for item in fields(schema) for name in (item.name, *item.metadata.get(COLLECTS, ()))}
    below = {f"{name}.{key}" for name, section in sections(schema).items() if section for key in _keys(section)}
    return frozenset(named | below)


def _keys_under_names(schema: type, changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of sections that stand under names of the user's, which are those of the changes."""
    for name, value in changes.items():
        if isinstance(value, dict) and (each := sections_under_names(schema).get(name)) is not None:
            yield from (f"{prefix}{name}.{given}.{key}" for given in value for key in _keys(each))
        elif isinstance(value, dict) and (section := sections(schema).get(name)) is not None:
            yield from _keys_under_names(section, value, f"{prefix}{name}.")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
