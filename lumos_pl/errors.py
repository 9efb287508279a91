"""Expected failures: one line for the user, one exit status per kind.

What is over by itself, or on another machine, has a status that says so to whatever started the command: the same
command once more goes on. All others are for a person to look at.

A message answers, in this order and separated by ` | `: what is wrong, the file, the sample or
field, what was got and expected, and the fix. Parts that do not apply are left out.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self


class LumosError(Exception):
    """An expected failure, shown as one line without a traceback (unless `--debug`).

    Args:
        what: what is wrong.
        file: the file it was found in, a path or a URL.
        where: the sample, field, flag or position.
        got: what was found there.
        expected: what belongs there.
        fix: what the user can do.
    """

    exit_status = 1
    is_told = False  # by another process, or already: then nobody says it again

    def __init__(
        self,
        what: str,
        *,
        file: object = None,
        where: str | None = None,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.file, self.where = what, file, where
        self.got, self.expected, self.fix = got, expected, fix
        super().__init__(self._line())

    @classmethod
    def told_elsewhere(cls, line: str, exit_status: int) -> Self:
        """The failure of another process, whose line it is to tell."""
        failure = cls(line)
        failure.exit_status, failure.is_told = exit_status, True
        return failure

    @property
    def parts(self) -> dict[str, Any]:
        """What it was made with, for one that says it in other words."""
        return {name: getattr(self, name) for name in ("what", "file", "where", "got", "expected", "fix")}

    def _line(self) -> str:
        parts = [self.what]
        if self.file is not None:
            parts.append(str(self.file))
        if self.where is not None:
            parts.append(self.where)
        compared = []
        if self.got is not None:
            compared.append(f"got {self.got}")
        if self.expected is not None:
            compared.append(f"expected {self.expected}")
        if compared:
            parts.append(", ".join(compared))
        if self.fix is not None:
            parts.append(self.fix)
        return " ".join(" | ".join(parts).split())


class ConfigError(LumosError, ValueError):
    """A wrong command line, configuration or argument."""

    exit_status = 2


class DataError(LumosError, ValueError):
    """A shard, sample, manifest or token sequence that is not what it should be."""

    exit_status = 3


class FileError(DataError, OSError):
    """A file that cannot be read or written, with what the operating system says of it."""

    @classmethod
    def of(
        cls,
        error: OSError,
        *,
        what: str = "cannot be read or written",
        file: str | Path | None = None,
        fix: str = "see that it may be, and that there is space",
    ) -> Self:
        """The failure that an OSError stands for; a full disk does not say which `file` it met."""
        said = error.strerror or str(error)
        made = cls(what, file=error.filename if file is None else file, got=said, fix=fix)
        made.strerror = said
        return made


class CheckpointError(LumosError):
    """A checkpoint that is damaged, hostile, incomplete or of another run."""

    exit_status = 4


class NumericError(LumosError, ArithmeticError):
    """A loss or gradient that is not finite."""

    exit_status = 5


class TemporaryError(LumosError):
    """What the same command, started again, may well get past: storage that failed for longer than it was tried, a
    rank or node that was lost, a stall, a folder that another process holds."""

    exit_status = os.EX_TEMPFAIL  # 75, of sysexits.h: the one status that a scheduler has for it


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The fix of a name that is none of those known: the nearest; None: none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else None


@contextmanager
def located(file: object = None, where: str | None = None) -> Iterator[None]:
    """Say in which file, and under which heading, a check inside the block failed."""
    try:
        yield
    except DataError as error:
        place = ": ".join(filter(None, (where, error.where))) or None
        raise DataError(**error.parts | {"file": error.file or file, "where": place}) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from or amid, and so on; each once, for a chain may lead back into itself."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
