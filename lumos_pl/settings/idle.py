"""Settings that nothing reads as the others stand: said on the command line, such a one is most likely a slip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import reduce
from typing import Any, Protocol, runtime_checkable

from lumos_pl.errors import ConfigError


@runtime_checkable
class CanIdle(Protocol):
    """A section of settings some of which are read in some cases only."""

    def idle(self) -> Mapping[str, str | None]:
        """The names of those that nothing reads now, each with the one that decides so; `a.b`: b of the section a.

        None instead: none does, the settings of this kind never read it.
        """


def refuse_idle(settings: Any, said: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError at the first setting that was said and changes nothing, unless what decides so was said too.

    Args:
        settings: a section, with those in it.
        said: what the user's command line says of it.
    """
    idle = settings.idle() if isinstance(settings, CanIdle) else {}
    for name, decided_by in idle.items():
        got, fix = _said(said, name), "leave it out"
        if got is None or (decided_by is not None and _said(said, decided_by) is not None):
            continue
        if decided_by is not None:
            got += f", with {where}{decided_by}={reduce(getattr, decided_by.split('.'), settings)}"
            fix += f", or say {where}{decided_by} beside it"
        raise ConfigError("changes nothing", where=f"{where}{name}", got=got[:200], fix=fix)
    for item in fields(settings):
        section, inner = getattr(settings, item.name), said.get(item.name)
        if isinstance(inner, Mapping) and is_dataclass(section):
            refuse_idle(section, inner, f"{where}{item.name}.")


def _said(said: Mapping[str, Any], name: str) -> str | None:
    """What was said of a setting, as words; None: nothing."""
    section, _, rest = name.partition(".")
    inner = said.get(section)
    if rest:
        return _said(inner, rest) if isinstance(inner, Mapping) else None
    return str(inner) if section in said else None
