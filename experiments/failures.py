"""The one place where an expected failure becomes a line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lumos_pl.errors import FileError, LumosError


def report_failures(work: Callable[[], int], *, debug: bool) -> int:
    """The exit status of `work`; what the contract expects to fail is one line on stderr.

    Args:
        debug: let the exception through, with its traceback.
    """
    try:
        return work()
    except (LumosError, OSError) as error:  # OSError: full disks and the like, wherever a file is touched
        if debug:
            raise
        failure = error if isinstance(error, LumosError) else FileError.of(error)
        print(f"lumos: {failure}", file=sys.stderr)
        return failure.exit_status
    except KeyboardInterrupt:  # before or after training, which handles it itself
        return 130
