"""Loggers of runs that may be stopped right after any step and then go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

Value = TypeVar("Value")


class LogsOnce(Logger):
    """A logger that has everything once, however often its run was stopped.

    What follows the last finished step, a validation for one, may have been logged before the stop, and is done again
    in the resumed run; and Lightning gives the learning rate with each batch of a step. A subclass says what it has of
    a step, and logs what is `unlogged` of the rest.
    """

    _step: int | None = None  # the last one
    _logged: frozenset[str] = frozenset()  # of that step

    def logged_at(self, step: int) -> set[str]:
        """The names of what has been logged at a step, and is to stay."""
        raise NotImplementedError

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget the steps that a resumed run does again.

        Args:
            step: finished optimizer steps of the checkpoint (its `global_step`): what was logged at steps 0 to
                `step - 1` stays.
        """
        self._step = step - 1
        self._logged = frozenset(self.logged_at(step - 1))

    def has(self, name: str, step: int | None) -> bool:
        """Whether this was logged at the last step, or before the run was resumed."""
        return step == self._step and name in self._logged

    def unlogged(self, values: Mapping[str, Value], step: int | None) -> dict[str, Value]:
        """The values that it does not have, and has from now on."""
        new = {name: value for name, value in values.items() if not self.has(name, step)}
        self._logged = frozenset(new) | (self._logged if step == self._step else frozenset())
        self._step = step
        return new

    @contextmanager
    def outlived(self, what: str) -> Iterator[None]:
        """Where the storage refuses a figure, say so and go on: it is kept, and `sync` sees that it is written.

        Args:
            what: what is missing until then.
        """
        try:
            yield
        except OSError as error:
            rank_zero_warn(f"{what}: {error.strerror or error}; tried again with the next")

    def sync(self) -> None:
        """Force all that was logged to the disk.

        Raises:
            OSError: the storage refuses it.
        """

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        self._step = None  # another training may begin
