"""Which checkpoints a run keeps: the newest of its own, and those that are to stay. Nobody else's are touched."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lumos_pl.checkpoints.complete import (
    Signature,
    complete,
    kept_checkpoints,
    remove,
    signature,
    step_of,
    was_written_here,
)


class Rotation:
    """Completes a folder's checkpoints and removes those that are old.

    Args:
        keep: how many of the newest stay; 0: all do.
        stays: whether a checkpoint stays however old it is.
    """

    def __init__(self, folder: Path, keep: int, stays: Callable[[Path], bool]) -> None:
        self.folder, self.keep, self.stays = folder, keep, stays
        self._written: dict[Path, Signature | None] = {}  # as this process completed them
        self._changed: set[Path] = set()  # of the run's own names, looked at once

    def complete(self, partial: Path, final: Path, digests: str | None) -> None:
        """As `complete.complete`, and remove what is old then."""
        complete(partial, final, digests)
        self._written[final] = signature(final)
        self._changed.discard(final)
        self.remove_old(step_of(final))

    def remove_old(self, step: int) -> None:
        """Remove the run's own checkpoints but the newest up to a step: later ones are damaged, and protect nothing."""
        own = [file for file in kept_checkpoints(self.folder) if step_of(file) <= step and self._is_own(file)]
        for old in own[: -self.keep]:  # none if `keep` is 0
            if self.stays(old) or old in self._changed or remove(old, self._written.pop(old, None)):
                continue
            self._changed.add(old)
            logging.getLogger(__name__).warning("not removed: %s | it was changed since it was saved", old)

    def _is_own(self, checkpoint: Path) -> bool:
        return checkpoint in self._written or was_written_here(checkpoint)
