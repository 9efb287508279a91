"""Settings that nothing reads as the others stand: said on the command line, such a one is most likely a slip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from lumos_pl.errors import ConfigError


@runtime_checkable
class CanIdle(Protocol):
    """A section of settings some of which are read in some cases only."""

    def idle(self) -> Mapping[str, str]:
        """The names of those that nothing reads now, each with the one of the section that decides so."""


def refuse_idle(settings: Any, said: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError at the first setting that was said and changes nothing, unless what decides so was said too.

    Args:
        settings: a section, with those in it.
        said: what the user's command line says of it.
    """
    idle = settings.idle() if isinstance(settings, CanIdle) else {}
    for name, decided_by in idle.items():
        if name in said and decided_by not in said:
            got = f"{said[name]}, with {where}{decided_by}={getattr(settings, decided_by)}"
            fix = f"leave it out, or say {where}{decided_by} beside it"
            raise ConfigError("changes nothing", where=f"{where}{name}", got=got[:200], fix=fix)
    for item in fields(settings):
        section, inner = getattr(settings, item.name), said.get(item.name)
        if isinstance(inner, Mapping) and is_dataclass(section):
            refuse_idle(section, inner, f"{where}{item.name}.")
