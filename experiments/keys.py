"""The keys of a configuration: type, value and meaning, out of the dataclasses and their docstrings."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import takewhile
from typing import Any, get_type_hints

from lightning import Trainer

from experiments.merging import sections_under_names
from experiments.trainer_config import COLLECTS, DECIDED
from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.settings.kinds import REGISTRY
from lumos_pl.settings.plain import type_words
from lumos_pl.settings.ranges import Noted, noting

ENTRY = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*)(?: \([^)]*\))?: *(.*)")  # of Args, or of Lightning's


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key: `name` with all its sections, type and range in words, the value as YAML has it, what it is about."""

    name: str
    type: str
    range: str = ""
    value: str
    about: str

    @property
    def kind(self) -> str:
        """The type, with the range of a number."""
        return f"{self.type}, {self.range}" if self.range else self.type


def keys_of(settings: object, section: str = "") -> list[Key]:
    """The keys of settings, or of one section of them, in the order in which they are written.

    Raises:
        ConfigError: there is no such section.
    """
    with noting() as ranges:
        _check(settings)
    found = list(_keys(settings, "", ranges))
    if not section:
        return found
    chosen = [key for key in found if key.name == section or key.name.startswith(f"{section}.")]
    if not chosen:
        sections = sorted({key.name.rpartition(".")[0] for key in found} - {""})
        expected, fix = f"one of {', '.join(sections)}", did_you_mean(section, sections)
        raise ConfigError("no such section", got=section, expected=expected, fix=fix)
    return chosen


def _check(settings: Any) -> None:
    """Once more, each section after those that it holds, as when they were made."""
    for item in fields(settings):
        if is_dataclass(value := getattr(settings, item.name)):
            _check(value)
    if hasattr(settings, "__post_init__"):
        settings.__post_init__()


def _keys(settings: Any, prefix: str, ranges: Noted) -> Iterator[Key]:
    schema: type = type(settings)
    hints, meanings = get_type_hints(schema), _meanings(schema)
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            yield from _keys(value, f"{prefix}{item.name}.", ranges)
        elif (each := sections_under_names(schema).get(item.name)) is not None:
            names, about = ", ".join(value) or "none", meanings.get(item.name, "")
            yield Key(name=prefix + item.name, type="sections by name", value=names, about=about)
            for name, section in (value or {"NAME": each()}).items():
                yield from _keys(section, f"{prefix}{item.name}.{name}.", ranges)
        elif COLLECTS in item.metadata:
            yield from _arguments(value, prefix, {field.name for field in fields(settings)})
        else:
            words = " or ".join(item.metadata[REGISTRY]) if REGISTRY in item.metadata else type_words(hints[item.name])
            about, within = meanings.get(item.name, ""), ranges.get((id(settings), item.name))
            yield Key(
                name=prefix + item.name,
                type=words,
                range="" if within is None else within.usual_words,
                value=json.dumps(value),
                about=about,
            )


def _arguments(given: dict[str, Any], prefix: str, own: set[str]) -> Iterator[Key]:
    """What may be added of the Trainer's arguments, in Lightning's words."""
    hints, meanings = get_type_hints(Trainer.__init__), _entries(inspect.cleandoc(Trainer.__init__.__doc__ or ""))
    for name, parameter in inspect.signature(Trainer).parameters.items():
        if name not in own and name not in DECIDED:
            value = json.dumps(given.get(name, parameter.default))
            about = f"Lightning's: {meanings.get(name, '')}"
            yield Key(name=prefix + name, type=type_words(hints[name]), value=value, about=about)


def _meanings(settings: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each field."""
    found: dict[str, str] = {}
    for one in reversed(settings.__mro__):
        found |= _entries(inspect.getdoc(one) or "") if is_dataclass(one) else {}
    return found


def _entries(docstring: str) -> dict[str, str]:
    """The entries of a docstring's Args, its indentation cleaned: each name and its text on one line."""
    _, _, rest = docstring.partition("Args:\n")
    lines = takewhile(lambda line: not line or line.startswith(" "), rest.splitlines())
    found: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent("\n".join(lines)).splitlines():
        if line and not line.startswith(" "):
            entry = ENTRY.fullmatch(line)
            names = [] if entry is None else entry[1].split(", ")
            found |= dict.fromkeys(names, "" if entry is None else entry[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names if line}
    return {name: text.partition(" Default: ")[0].strip() for name, text in found.items()}
