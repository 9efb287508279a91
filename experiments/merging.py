"""Settings out of YAML and `key=value`: merged strictly, one line for whatever does not fit."""

from __future__ import annotations

import copy
import difflib
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from experiments.trainer_config import COLLECTS
from experiments.yaml_text import MOST_DEPTH, check_plain, check_text, parse_yaml
from lumos_pl.checkpoints.earlier_keys import current_key
from lumos_pl.errors import ConfigError

Settings = TypeVar("Settings")
_QUOTED = """a text with signs of YAML's stands in quotes, and they in the shell's: 'key=["*.mlp.*", b]'"""


def of_file(content: dict[str, Any], file: Path) -> DictConfig:
    """What a YAML file of the user's says; what its `${..}` stand for is found once all is merged."""
    try:
        return OmegaConf.create(content)
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError("cannot be read", file=file, got=first_line(error)) from error


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
        changes = unresolved(OmegaConf.from_dotlist([override]))
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
    joined = _joined(map(parse_override, overrides))
    return joined[0] if len(joined) == 1 else unresolved(cast(DictConfig, OmegaConf.merge(OmegaConf.create(), *joined)))


def defaults(schema: type) -> DictConfig:
    """The settings as they are where nobody says anything; the caller's own, to be changed."""
    return copy.deepcopy(_defaults(schema))  # a sixth of the time that they take to be made


@cache
def _defaults(schema: type) -> DictConfig:
    return cast(DictConfig, OmegaConf.structured(schema))


@cache
def _plain_defaults(schema: type) -> dict[str, Any]:
    return unresolved(defaults(schema))


def merge_with_defaults(schema: type, content: Mapping[str, Any], *, source: str) -> DictConfig:
    """All settings out of what may be a file of them all: see `merge`."""
    return _merged(defaults(schema), _other_than(_plain_defaults(schema), _checked(schema, content, source)), source)


def _other_than(there: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes without those that change nothing, as merging takes long for each."""
    found = {}
    for name, value in changes.items():
        before = there.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            if inner := _other_than(before, value):
                found[name] = inner
        elif name not in there or type(before) is not type(value) or before != value:
            found[name] = value
    return found


def merge(schema: type, merged: DictConfig, changes: DictConfig | Mapping[str, Any], *, source: str) -> DictConfig:
    """The settings with changes, whose keys the schema all knows; `merged` itself is changed, and given back.

    Raises:
        ConfigError: unknown key (the nearest is named), or a value of another type.
    """
    plain = unresolved(changes) if isinstance(changes, DictConfig) else changes
    return _merged(merged, _checked(schema, plain, source), source)


def _checked(schema: type, changes: Mapping[str, Any], source: str) -> dict[str, Any]:
    plain = _collected(schema, changes)
    _refuse_unknown(schema, plain, source)
    _refuse_for_text_or_list(schema, plain, source)
    return plain


def _merged(merged: DictConfig, changes: dict[str, Any], source: str) -> DictConfig:
    try:
        return cast(DictConfig, OmegaConf.unsafe_merge(merged, changes))  # which copies nothing: they are ours
    except ConfigKeyError as error:
        raise ConfigError("unknown key", file=source, got=error.full_key or first_line(error)) from None
    except OmegaConfBaseException as error:
        raise ConfigError("value does not fit", file=source, where=error.full_key, got=first_line(error)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError("values do not fit", file=source, got=first_line(error)) from None


def merge_overrides(schema: type, merged: DictConfig, overrides: Sequence[str]) -> DictConfig:
    source = "command line"
    parsed = [parse_override(override) for override in overrides]
    for changes in _joined(_checked(schema, changes, source) for changes in parsed):
        merged = _merged(merged, changes, source)
    return merged


def _joined(changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The changes, each joined to those before unless it changes what they do, as merging takes long for each."""
    joined: list[dict[str, Any]] = []
    for change in changes:
        if joined and _are_apart(joined[-1], change):
            joined[-1] = _both(joined[-1], change)
        else:
            joined.append(change)
    return joined


def _are_apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    common = [(one[name], other[name]) for name in one.keys() & other.keys()]
    return all(isinstance(a, dict) and isinstance(b, dict) and _are_apart(a, b) for a, b in common)


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return one | {name: _both(one[name], value) if name in one else value for name, value in other.items()}


def unresolved(merged: DictConfig) -> dict[str, Any]:
    """As plain values, with `${..}` as it was written."""
    return cast(dict[str, Any], OmegaConf.to_container(merged))


def resolved(merged: DictConfig) -> dict[str, Any]:
    """The settings as plain values, before anything is built of them."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError("configuration does not resolve", got=first_line(error)) from None


def build(schema: type[Settings], merged: DictConfig) -> Settings:
    """The settings themselves, which check their values."""
    try:
        return cast(Settings, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError("configuration does not resolve", got=first_line(error)) from None


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
    found = {name: _section_of_each(hint) for name, hint in _hints(schema).items()}
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


def _refuse_unknown(schema: type, changes: dict[str, Any], source: str) -> None:
    known = _keys(schema) | set(_keys_under_names(schema, changes))
    if unknown := list(_unknown(schema, changes)):
        renamed = [key for key in unknown if current_key(key) in known]
        key = renamed[-1] if renamed else unknown[0]  # the last one is no section
        near = _nearest(key, known)
        raise ConfigError("unknown key", file=source, got=key, fix=f"did you mean {near}?" if near else None)


def _refuse_for_text_or_list(schema: type, changes: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Raise ConfigError where a list belongs and none stands, or a text, and a value that OmegaConf would write out.

    For instance `1e5` as 100000.0.
    """
    hints = _hints(schema)
    for name, section in sections(schema).items():
        if name not in changes:
            continue
        value, hint = changes[name], hints[name]
        if isinstance(value, dict) and section is not None:
            _refuse_for_text_or_list(section, value, source, f"{prefix}{name}.")
            continue
        if isinstance(value, dict) and (section := sections_under_names(schema).get(name)) is not None:
            for given, entry in value.items():
                there = entry if isinstance(entry, dict) else {}
                _refuse_for_text_or_list(section, there, source, f"{prefix}{name}.{given}.")
            continue
        if get_origin(hint) is list and not isinstance(value, list) and not _stands_for_another(value):
            got, fix = reprlib.repr(value), f"write [{value}]" if isinstance(value, str | int | float) else None
            raise ConfigError("not a list", file=source, where=f"{prefix}{name}", got=got, fix=fix)
        texts = [value] if hint in (str, str | None) else value if hint == list[str] and isinstance(value, list) else []
        odd = [text for text in texts if isinstance(text, bool | float | list | dict)]
        if odd:
            where, fix = f"{prefix}{name}", "put it in quotes"
            raise ConfigError("not a text", file=source, where=where, got=reprlib.repr(odd[0]), fix=fix)


def _stands_for_another(value: object) -> bool:
    """Whether it is one of OmegaConf's `${key}` or `???`."""
    return isinstance(value, str) and (value.startswith("${") or value == "???")


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


_hints = cache(get_type_hints)


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
