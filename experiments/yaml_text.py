"""YAML that a user or a stranger wrote: of bounded size, and of plain values under names alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_omega_conf_dumper
from omegaconf._yaml import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.settings.plain import is_plain

MOST_BYTES = 4 << 20
MOST_DEPTH = 32
MOST_VALUES = 100_000  # with all that aliases repeat
MISSING = "???"  # which OmegaConf takes for "to be given by somebody else"
EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where it is there, takes a twentieth of the time


def read_yaml_file(file: Path) -> dict[str, Any]:
    """The mapping of names to plain values in a YAML file.

    Raises:
        ConfigError: there is none, it is no regular file, or holds something else.
    """
    try:
        content = parse_yaml(read_regular(file, at_most=MOST_BYTES).decode("utf-8-sig"))
    except DataError as error:
        absent = isinstance(error.__cause__, FileNotFoundError)
        raise ConfigError(**error.parts | {"what": "no such file" if absent else error.what}) from error
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8", file=file, got=f"byte {error.object[error.start]:#04x}") from error
    except ConfigError as error:
        raise ConfigError(**error.parts | {"file": file}) from error
    if not isinstance(content, dict):
        raise ConfigError("not a mapping of keys to values", file=file)
    return content


def parse_yaml(text: str) -> Any:
    """What one YAML document says, as dicts, lists and scalars.

    Raises:
        ConfigError: it is no YAML, too large or nested too deep, or has what no setting is: a key that is no text, a
            date, `???`, half a character.
    """
    try:
        _check_depth(text)
        # A SafeLoader, for which 1e3 is a number, and which refuses keys that stand twice and aliases that multiply.
        value = yaml.load(text, Loader=get_yaml_loader(max_yaml_expanded_nodes=MOST_VALUES))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("not YAML", got=" ".join(str(error).split())[:300]) from error
    check_plain(value)
    return value


def to_yaml_text(value: Any) -> str:
    """Plain values as the YAML that `parse_yaml` reads."""
    text: str = yaml.dump(
        value, Dumper=get_omega_conf_dumper(), default_flow_style=False, allow_unicode=True, sort_keys=False
    )
    return text


def _check_depth(text: str) -> None:
    """Refuse what is nested so deep that reading it would be, too; nothing is built here."""
    depth = 0
    for event in yaml.parse(text, Loader=EVENTS):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ConfigError("nested too deep", got=f"more than {MOST_DEPTH} levels")


def check_plain(value: Any) -> None:
    """Raise ConfigError, with the key, unless a value is of dicts with text keys, of lists and of plain scalars."""
    for place, item in _scalars(value, ""):
        if not is_plain(item):
            raise ConfigError("not a plain value", where=place, got=repr(item)[:100], expected="put it in quotes")
        if isinstance(item, int) and abs(item) >= 2**63:
            raise ConfigError("too large a number", where=place, expected="a whole number of 64 bits")
        if isinstance(item, str):
            check_text(item, place)


def check_text(text: str, where: str | None) -> None:
    """Raise ConfigError unless a text can be a setting."""
    if text == MISSING:
        raise ConfigError("no value", where=where, got=MISSING)
    if "\0" in text or (not text.isascii() and text != text.encode("utf-8", "ignore").decode()):
        raise ConfigError("unusable text", where=where, got=ascii(text)[:100], expected="UTF-8 without NUL")


def _scalars(value: Any, where: str) -> Iterator[tuple[str | None, Any]]:
    """Every scalar with its key, and every key with that of its section."""
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ConfigError(
                        "a key that is not text", where=where or None, got=repr(key)[:100], fix="quote it"
                    )
                check_text(key, where or None)
                yield from _scalars(item, f"{where}.{key[:100]}" if where else key[:100])
        case list():
            for number, item in enumerate(value):
                yield from _scalars(item, f"{where}[{number}]")
        case _:
            yield where or None, value
