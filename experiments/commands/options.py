"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lumos_pl.settings.places import check_local
from lumos_pl.settings.ranges import between

Command = Callable[[argparse.Namespace], int]  # returns the exit status
Flag = tuple[str, Callable[[str], Any], str, str]  # name, type, metavar, help


class Add(Protocol):
    """Adds a command to `lumos`."""

    def __call__(
        self, name: str, command: Command, about: str, /, *, help: str | type[argparse.Action] = "help"
    ) -> argparse.ArgumentParser:
        """The parser of the new command, to add its options to.

        Args:
            command: the function that runs it.
            help: the action of --help.
        """
        ...


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    """Add flags that are fields of some settings; flags not given keep the defaults of the settings."""
    for flag, kind, metavar, about in flags:
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=about)


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """For commands that load a model, which may have parts of the user's own."""
    about = "a RoPE kind or schedule of your own that the model needs, from FILE.py here; may be repeated"
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="FILE.NAME", help=about)


def add_adapter_flag(parser: argparse.ArgumentParser) -> None:
    """For commands that load a model, to which adapters may be added."""
    about = "an adapter of this model: its folder or the run that trained it; W: its weight; may be repeated, to add up"
    parser.add_argument(
        "--adapter", dest="adapters", action="append", default=[], type=_adapter, metavar="DIR[=W]", help=about
    )


def _adapter(text: str) -> tuple[Path, float]:
    path, _, weight = text.rpartition("=")
    try:
        found = (Path(path), float(weight)) if path else (Path(text), 1.0)
    except ValueError:
        found = (Path(text), 1.0)
    between(-100, 100).check("--adapter", found[1])
    check_local("--adapter", str(found[0]))
    return found


def given_flags(options: argparse.Namespace, flags: Sequence[Flag]) -> dict[str, Any]:
    """The settings' fields whose flags were given."""
    names = [flag.removeprefix("--").replace("-", "_") for flag, *_ in flags]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
