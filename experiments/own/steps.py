"""The steps of the way from a folder to a film: each an ordinary command, said before it is run, and done once.

own.json says what was asked for, what was decided on the way, and which steps are done in how many seconds.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from experiments.environment import restored_environment
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.json_file import Number, as_json, read_json
from lumos_pl.settings.differences import differences

FILE = "own.json"


@with_config(extra="forbid")
class StepRecord(TypedDict):
    """A step that is done."""

    command: list[str]
    seconds: Number


@with_config(extra="forbid")
class OwnRecord(TypedDict):
    """What own.json holds."""

    asked: dict[str, Any]
    decided: dict[str, Any]
    steps: dict[str, StepRecord]


def read_begun(folder: Path) -> OwnRecord | None:
    """What is done in a folder; None: nothing yet. Raises DataError for a damaged record."""
    if not (folder / FILE).is_file():
        return None
    begun = read_json(folder / FILE, OwnRecord, fix=f"remove {folder}, or write elsewhere with --out")
    return begun if begun["steps"] else None


class Steps:
    """What is done in a folder, and what is left.

    Args:
        folder: which is there, and locked.
        asked: what the result depends on, as plain values.
        say: what to do with a line.
        execute: runs a command of `lumos`; returns its exit status, or raises what it fails at.
    Raises:
        ConfigError: the folder was begun otherwise.
        DataError: its record is damaged.
    """

    def __init__(
        self,
        folder: Path,
        asked: Mapping[str, Any],
        *,
        say: Callable[[str], None] = print,
        execute: Callable[[Sequence[str]], int] | None = None,
    ) -> None:
        self.folder, self.say, self._execute = folder, say, execute or run_command
        self._file = folder / FILE
        self.record = OwnRecord(asked=as_json(asked), decided={}, steps={})
        begun = read_begun(folder)
        if begun is not None:
            for where, before, now in differences(begun["asked"], self.record["asked"]):
                fix = "ask for the same, or write elsewhere with --out"
                raise ConfigError("begun otherwise", file=self._file, where=where, got=now, expected=before, fix=fix)
            self.record = begun
        self._write()

    @property
    def seconds(self) -> float:
        """That the steps took which are done."""
        return sum(step["seconds"] for step in self.record["steps"].values())

    def run(self, name: str, about: str, *words: object) -> None:
        """Do a step unless it is done; what it prints is the user's.

        Args:
            about: what it is for, in a line.
            words: of the command, after `lumos`.
        Raises:
            ConfigError: it was done with another command.
        SystemExit: the command was stopped, or ended with another status than 0.
        """
        command = [str(word) for word in words]
        done = self.record["steps"].get(name)
        if done is not None and done["command"] != command:  # as an earlier version did it
            was, fix = shlex.join(["lumos", *done["command"]]), f"write elsewhere with --out, or remove {self.folder}"
            raise ConfigError("a step was done otherwise before", file=self._file, where=name, got=was[:300], fix=fix)
        self.say(f"\n{about}{'' if done is None else ' (done before)'}\n  $ {shlex.join(['lumos', *command])}")
        if done is not None:
            return
        begun = time.monotonic()
        if status := self._execute(command):
            raise SystemExit(status)
        self._note(name, command, time.monotonic() - begun)

    def decide(self, name: str, work: Callable[[], Any]) -> Any:
        """A value that is settled once: what `work` gives, as JSON has it; its time counts as a step's."""
        if name not in self.record["decided"]:
            begun = time.monotonic()
            self.record["decided"][name] = as_json(work())
            self._note(name, [], time.monotonic() - begun)
        return self.record["decided"][name]

    def _note(self, name: str, command: list[str], seconds: float) -> None:
        self.record["steps"][name] = StepRecord(command=command, seconds=round(seconds, 3))
        self._write()

    def _write(self) -> None:
        write_atomically(self._file, json.dumps(self.record, indent=1) + "\n")


def run_command(words: Sequence[str]) -> int:
    """A command of `lumos` in this process; returns its exit status, and raises what it fails at."""
    from experiments.cli import parse

    with restored_environment():
        options = parse(words)
        status: int = options.command(options)
        return status
