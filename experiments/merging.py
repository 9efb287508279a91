"""Settings out of YAML and `key=value`: merged strictly, one line for whatever does not fit."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from experiments.trainer_config import COLLECTS
from experiments.yaml_text import MOST_DEPTH, check_plain, check_text, parse_yaml, read_yaml_file
from lumos_pl.checkpoints.earlier_keys import current_key
from lumos_pl.errors import ConfigError

Settings = TypeVar("Settings")


def read_yaml(file: Path, *, without: str | None = None) -> DictConfig:
    """A YAML file of the user's without one of its keys; what its `${..}` stand for is found once all is merged."""
    content = read_yaml_file(file)
    try:
        return OmegaConf.create({key: value for key, value in content.items() if key != without})
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError("cannot be read", file=file, got=first_line(error)) from error


def parse_overrides(overrides: Sequence[str]) -> list[DictConfig]:
    """Each `key=value` as the settings that it changes."""
    parsed = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError("not an override", got=ascii(override)[:200], expected="key=value")
        check_text(key, None)
        if key.count(".") >= MOST_DEPTH:
            raise ConfigError("unknown key", file="command line", got=key[:200])
        try:
            parse_yaml(value)
            changes = OmegaConf.from_dotlist([override])
            check_plain(OmegaConf.to_container(changes))
        except ConfigError as error:
            what = "value cannot be read" if error.what == "not YAML" else error.what
            raise ConfigError(**error.parts | {"what": what, "where": key}) from None
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
            raise ConfigError("value cannot be read", where=key, got=first_line(error)) from None
        parsed.append(changes)
    return parsed


def changed_by(overrides: Sequence[str]) -> dict[str, Any]:
    """What `key=value` words say, as plain values."""
    changes = OmegaConf.merge(OmegaConf.create(), *parse_overrides(overrides))
    return cast(dict[str, Any], OmegaConf.to_container(changes))


def merge(schema: type, merged: DictConfig, changes: DictConfig, *, source: str) -> DictConfig:
    """The settings with changes, whose keys the schema all knows.

    Raises:
        ConfigError: unknown key (the nearest is named), or a value of another type.
    """
    plain = cast(dict[str, Any], OmegaConf.to_container(changes))
    plain = _collected(schema, plain)
    _refuse_unknown(schema, plain, source)
    _refuse_for_text(schema, plain, source)
    try:
        return cast(DictConfig, OmegaConf.merge(merged, plain))
    except ConfigKeyError as error:
        raise ConfigError("unknown key", file=source, got=error.full_key or first_line(error)) from None
    except OmegaConfBaseException as error:
        raise ConfigError("value does not fit", file=source, where=error.full_key, got=first_line(error)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError("values do not fit", file=source, got=first_line(error)) from None


def merge_overrides(schema: type, merged: DictConfig, overrides: Sequence[str]) -> DictConfig:
    for changes in parse_overrides(overrides):
        merged = merge(schema, merged, changes, source="command line")
    return merged


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


def section_of(item: Field[Any]) -> type | None:
    """The dataclass of a field that is a section."""
    default = item.default_factory() if callable(item.default_factory) else item.default
    return type(default) if is_dataclass(default) and not isinstance(default, type) else None


def section_of_each(hint: Any) -> type | None:
    """The dataclass of the values of a field that holds sections under names of the user's."""
    of_value = get_args(hint)[1:] if get_origin(hint) is dict else ()
    return next((kind for kind in of_value if isinstance(kind, type) and is_dataclass(kind)), None)


def _collected(schema: type, changes: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The changes with the keys that a field of their section collects in that field, see `COLLECTS`.

    Where sections stand under names, a list of them, each with its `name`, means the same.
    """
    hints, named = get_type_hints(schema), {item.name: item for item in fields(schema)}
    changes = dict(changes)
    for item in named.values():
        if isinstance(value := changes.get(item.name), dict) and (section := section_of(item)) is not None:
            changes[item.name] = _collected(section, value, f"{prefix}{item.name}.")
        elif isinstance(value, list | dict) and section_of_each(hints[item.name]) is not None:
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
    known = set(_keys(schema, changes))
    if unknown := list(_unknown(schema, changes)):
        renamed = [key for key in unknown if current_key(key) in known]
        key = renamed[-1] if renamed else unknown[0]  # the last one is no section
        near = _nearest(key, known)
        raise ConfigError("unknown key", file=source, got=key, fix=f"did you mean {near}?" if near else None)


def _refuse_for_text(schema: type, changes: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Raise ConfigError where a text belongs and a value stands that OmegaConf would write out: `1e5` as 100000.0."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        value, hint = changes.get(item.name), hints[item.name]
        if isinstance(value, dict) and (section := section_of(item)) is not None:
            _refuse_for_text(section, value, source, f"{prefix}{item.name}.")
            continue
        if isinstance(value, dict) and (section := section_of_each(hint)) is not None:
            for name, entry in value.items():
                _refuse_for_text(section, entry, source, f"{prefix}{item.name}.{name}.")
            continue
        texts = [value] if hint in (str, str | None) else value if hint == list[str] and isinstance(value, list) else []
        odd = [text for text in texts if isinstance(text, bool | float | list | dict)]
        if odd:
            where, fix = f"{prefix}{item.name}", "put it in quotes"
            raise ConfigError("not a text", file=source, where=where, got=reprlib.repr(odd[0]), fix=fix)


def _unknown(schema: type | None, changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that a schema does not have, with all that stands below them."""
    named = {} if schema is None else {item.name: item for item in fields(schema)}
    hints = {} if schema is None else get_type_hints(schema)
    for key, value in changes.items():
        section = section_of(named[key]) if key in named else None
        if isinstance(value, dict) and (each := section_of_each(hints.get(key))) is not None:
            for name, entry in value.items():
                yield from _unknown(each, entry, f"{prefix}{key}.{name}.")
        if key not in named:
            yield f"{prefix}{key}"
        if isinstance(value, dict) and (section is not None or key not in named):
            yield from _unknown(section, value, f"{prefix}{key}.")


def _nearest(key: str, known: set[str]) -> str | None:
    """The key that was meant: its spelling of today, the one that ends so, or what looks most like it."""
    endings = [name for name in known if name.endswith(f".{key}")]
    alike = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    candidates = [current_key(key), *(endings if len(endings) == 1 else []), *alike]
    return next((name for name in candidates if name in known), None)


def _keys(schema: type, changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass, sections and what a field collects included.

    Args:
        changes: in which the user's own names for sections stand.
    """
    hints = get_type_hints(schema)
    for item in fields(schema):
        yield prefix + item.name
        below = changes.get(item.name)
        below = below if isinstance(below, dict) else {}
        if (each := section_of_each(hints[item.name])) is not None:
            for name in below:
                yield from _keys(each, {}, f"{prefix}{item.name}.{name}.")
        yield from (prefix + name for name in item.metadata.get(COLLECTS, ()))
        if (section := section_of(item)) is not None:
            yield from _keys(section, below, f"{prefix}{item.name}.")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
