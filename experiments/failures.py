"""The one place where an expected failure becomes a line and an exit status."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lumos_pl.errors import FileError, LumosError


def report_failures(work: Callable[[], int], *, debug: bool) -> int:
    """The exit status of `work`; what the contract expects to fail is one line on stderr.

    Args:
        debug: let the exception through, with its traceback.
    """
    try:
        with _writers_leave_it_to_us():
            return work()
    except (LumosError, OSError) as error:  # OSError: full disks and the like, wherever a file is touched
        if debug:
            raise
        failure = error if isinstance(error, LumosError) else FileError.of(error)
        print(f"lumos: {failure}", file=sys.stderr)
        return failure.exit_status
    except KeyboardInterrupt:  # before or after training, which handles it itself
        return 130


@contextmanager
def _writers_leave_it_to_us() -> Iterator[None]:
    """No traceback from TensorBoard's thread, whose exception is raised again where the next figure is logged."""
    before = threading.excepthook

    def show(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before
