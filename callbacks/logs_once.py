"""Loggers for runs that may be stopped after any step and resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

Value = TypeVar("Value")


class LogsOnce(Logger):
    """A logger that has everything exactly once, however often its run was stopped.

    What follows the last finished step, such as a validation, may have been logged before the stop and is repeated by
    the resumed run; and Lightning logs the learning rate with each batch of a step. A subclass implements `logged_at`,
    and logs only what is `unlogged`.
    """

    _step: int | None = None  # the last one logged
    _logged: frozenset[str] = frozenset()  # names logged at that step

    def logged_at(self, step: int) -> set[str]:
        """The names of what has been logged at a step and will be kept."""
        raise NotImplementedError

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget the steps that a resumed run repeats.

        Args:
            step: finished optimizer steps of the checkpoint (its `global_step`): what was logged at steps 0 to
                `step - 1` stays.
        """
        self._step = step - 1
        self._logged = frozenset(self.logged_at(step - 1))

    def has(self, name: str, step: int | None) -> bool:
        """Whether this name was logged at the last step, before a resume or since."""
        return step == self._step and name in self._logged

    def unlogged(self, values: Mapping[str, Value], step: int | None) -> dict[str, Value]:
        """The values that have not been logged yet; from now on they count as logged."""
        new = {name: value for name, value in values.items() if not self.has(name, step)}
        self._logged = frozenset(new) | (self._logged if step == self._step else frozenset())
        self._step = step
        return new

    @contextmanager
    def outlived(self, what: str) -> Iterator[None]:
        """If the storage refuses a figure, warn and go on: the figure is kept, and `sync` makes sure it is written.

        Args:
            what: what is missing until then, for the warning.
        """
        try:
            yield
        except OSError as error:
            rank_zero_warn(f"{what}: {error.strerror or error}; tried again with the next")

    def sync(self) -> None:
        """Force everything logged to disk.

        Raises:
            OSError: the storage refuses it.
        """

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        self._step = None  # another training may begin
