"""Which checkpoints a run keeps: the newest of its own, and those that are to stay. Nobody else's are touched."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lumos_pl.checkpoints.complete import (
    complete,
    kept_checkpoints,
    remove,
    step_of,
    was_written_here,
)
from lumos_pl.checkpoints.trouble import in_words
from lumos_pl.checkpoints.verdicts import Signature, signature
from lumos_pl.machinery.retrying import RetryConfig

log = logging.getLogger(__name__)


class Rotation:
    """Completes a folder's checkpoints and removes those that are old.

    Args:
        keep: how many of the newest stay; 0: all do.
        stays: whether a checkpoint stays however old it is.
        retry: how long a write may fail.
    """

    def __init__(self, folder: Path, keep: int, stays: Callable[[Path], bool], *, retry: RetryConfig) -> None:
        self.folder, self.keep, self.stays, self.retry = folder, keep, stays, retry
        self._written: dict[Path, Signature | None] = {}  # as this process completed them
        self._changed: set[Path] = set()  # of the run's own names, looked at once

    def complete(self, partial: Path, final: Path, digests: str | None) -> None:
        """As `complete.complete`, and remove what is old then."""
        complete(partial, final, digests, retry=self.retry)
        self._written[final] = signature(final)
        self._changed.discard(final)
        self.remove_old(step_of(final))

    def remove_old(self, step: int) -> None:
        """Remove the run's own checkpoints but the newest up to a step: later ones are damaged, and protect nothing.

        What cannot be removed now is told in a line, and tried with the next one.
        """
        try:
            own = [file for file in kept_checkpoints(self.folder) if step_of(file) <= step and self._is_own(file)]
        except OSError as error:
            log.warning("no old checkpoint removed: %s | %s", self.folder, in_words(error))
            return
        for old in own[: -self.keep]:  # none if `keep` is 0
            if self.stays(old) or old in self._changed:
                continue
            try:
                removed = remove(old, self._written.get(old), retry=self.retry)
            except OSError as error:
                log.warning("not removed: %s | %s | tried again with the next one", old, in_words(error))
                continue
            self._written.pop(old, None)
            if not removed:
                self._changed.add(old)
                log.warning("not removed: %s | it was changed since it was saved", old)

    def _is_own(self, checkpoint: Path) -> bool:
        return checkpoint in self._written or was_written_here(checkpoint)
