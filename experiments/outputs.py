"""Standard output and error that may break: the reader leaves, the disk is full, the terminal goes away."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

STANDARD = ("stdout", "stderr")


class Output:
    """A text stream that no writer fails at: after its first error, whatever is written is dropped.

    Attributes:
        error: what became of it; None: it holds.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        """Lead the stream nowhere, also for what is buffered, for libraries and for the end of the interpreter."""
        self.error = self.error or error
        with suppress(OSError, ValueError):  # one without a descriptor, as in a notebook
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()

    @property
    def is_lost(self) -> bool:
        """Whether something was to be written that somebody still waits for: a reader that left does not."""
        return self.error is not None and self.error.errno != errno.EPIPE


def fill_standard_descriptors() -> None:
    """Let what was closed (`>&-`) lead nowhere, or the next file that is opened would be printed into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    for name in STANDARD:
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # for the process's life


@contextmanager
def lasting_outputs() -> Iterator[None]:
    """Have nothing that is printed inside the block raise: neither a broken stream nor a character it cannot show."""
    whole = {name: getattr(sys, name) for name in STANDARD}
    outputs = [Output(stream) for stream in whole.values()]
    errors = [getattr(stream, "errors", None) for stream in whole.values()]
    for name, output in zip(STANDARD, outputs, strict=True):
        _show_characters(output, "backslashreplace")
        setattr(sys, name, cast(TextIO, output))
    try:
        yield
    finally:
        for name, output, handler in zip(STANDARD, outputs, errors, strict=True):
            output.flush()
            if handler is not None:
                _show_characters(output, handler)
            if getattr(sys, name) is output:
                setattr(sys, name, whole[name])


def _show_characters(output: Output, errors: str) -> None:
    if hasattr(output, "reconfigure"):
        output.reconfigure(errors=errors)
