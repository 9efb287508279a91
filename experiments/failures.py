"""The one place where a failure, expected or not, becomes a line and an exit status."""

from __future__ import annotations

import errno
import multiprocessing
import re
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from experiments.outputs import Output, lasting_outputs
from experiments.user_files import users_own
from lumos_pl.errors import ConfigError, FileError, LumosError, TemporaryError
from lumos_pl.machinery.stop_request import StoppedBySignal

ROOT = Path(__file__).parents[1]
OURS = ("experiments", "data_modules", "callbacks", "lumos_pl")
SETTINGS = (
    "experiments/config.py",
    "experiments/read_config.py",
    "experiments/merging.py",
    "experiments/keys.py",
    "lumos_pl/settings",
)
MEMORY = r"[Cc]an(no|')t allocate memory|failed to map segment|out of memory|bad_alloc|DefaultCPUAllocator"
FILES = r"Too many open files|ancdata"  # torch's sockets, which hand descriptors from process to process
PROCESSES = r"can't start new thread|Resource temporarily unavailable|pthread_create"
OTHERS_WARNING = warnings.formatwarning
LONGEST = 300  # characters of another's message


def report_failures(work: Callable[[], int], *, debug: bool) -> int:
    """The exit status of `work`; whatever ends it is one line on stderr, a signal too, which is raised again.

    What is printed never ends the work; processes that it leaves behind are ended.

    Args:
        debug: let the exception through, with its traceback.
    """
    before = set(multiprocessing.active_children())
    warnings.formatwarning = _warning_line
    with lasting_outputs(), _asides(debug) as asides:
        try:
            status = work()
        except Exception as error:
            if debug:
                raise
            failure = as_failure(error)
            tell(failure)
            return failure.exit_status
        except StoppedBySignal as stop:
            if not stop.is_told:
                by = signal.Signals(int(str(stop.code)) - 128).name
                print(f"lumos: stopped by {by}", file=sys.stderr, flush=True)
                stop.is_told = True
            raise
        except KeyboardInterrupt:  # before or after training, which handles it itself
            return 130
        finally:
            for child in set(multiprocessing.active_children()) - before:
                child.kill()  # a worker that hangs, or is stopped, hears nothing else
        if not status and asides:
            print(f"lumos: {asides[0]}", file=sys.stderr)
        return status


def tell(failure: LumosError) -> None:
    """The line, once: a rank of several may have told it already."""
    if not failure.is_told:
        print(f"lumos: {failure}", file=sys.stderr)
        sys.stderr.flush()
        failure.is_told = True


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours without the line of code that gives it; another's as Python writes it."""
    if Path(filename).is_relative_to(ROOT) and Path(filename).relative_to(ROOT).parts[0] in OURS:
        return f"lumos: {message}\n"
    return OTHERS_WARNING(message, category, filename, lineno, line)


@contextmanager
def warnings_held_back() -> Iterator[Callable[[], None]]:
    """Warnings meanwhile are said when what it gives is called: a work that fails before has one line, its failure."""
    with warnings.catch_warnings(record=True) as held:

        def say() -> None:
            for one in held:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)

        yield say


def leave_quietly() -> None:
    """For the rest of the process: what finalizers raise at its end has no line of its own."""
    sys.unraisablehook = lambda failed: None


def check_printed() -> None:
    """Raise FileError unless what was printed arrived, or its reader had enough; for a command that only prints."""
    sys.stdout.flush()
    if isinstance(out := sys.stdout, Output) and out.is_lost and out.error is not None:
        raise FileError.of(out.error, what="cannot be printed", file="standard output", fix="see where it leads")


def as_failure(error: Exception) -> LumosError:
    """What an exception stands for: itself if it is expected, else the limit that was met, else where it arose.

    Trouble of the storage that may be over soon is a TemporaryError, whichever file it met.
    """
    from lumos_pl.machinery.retrying import passes  # not with every command

    if isinstance(error, LumosError):
        return _temporary(error) if passes(error) else error
    said = " ".join(f"{getattr(error, 'strerror', None) or error}".split())[:LONGEST]
    if (limit := _limit(error, said)) is not None:
        return limit
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        failure = FileError.of(error)  # full disks and the like, wherever a file is touched
        return _temporary(failure) if passes(error) else failure
    got = f"{type(error).__name__}: {said}" if said else type(error).__name__
    where, is_own = _place(error)
    if is_own:
        return LumosError("a part of your own failed", where=where, got=got, fix="--debug shows the traceback")
    if where.startswith(SETTINGS):
        return ConfigError("settings that cannot be read", got=got, fix=f"--debug shows more ({where})")
    return LumosError("an unforeseen failure", where=where, got=got, fix="--debug shows the traceback")


def as_temporary(error: Exception) -> TemporaryError | None:
    """What it is to a run that a disk is full where it writes, or a quota: it had begun, and may go on. Else None."""
    from lumos_pl.machinery.retrying import is_full

    if isinstance(error, TemporaryError) or not is_full(error):
        return None
    return _temporary(as_failure(error))


def _temporary(failure: LumosError) -> TemporaryError:
    if isinstance(failure, TemporaryError):
        return failure
    made = TemporaryError(**failure.parts)
    made.is_told = failure.is_told
    return made


def _limit(error: Exception, said: str) -> LumosError | None:
    """The limit of this process or machine that an exception tells of; torch tells of each by a RuntimeError."""
    number = error.errno if isinstance(error, OSError) else None
    text = said if isinstance(error, RuntimeError | ImportError) else ""
    if isinstance(error, MemoryError) or number == errno.ENOMEM or re.search(MEMORY, text):
        fix = "lower the batch or the number of workers, or raise `ulimit -v`; `lumos plan EXP` says what a run needs"
        return LumosError("out of memory", where=_place(error)[0], got=said or None, fix=fix)
    if number in (errno.EMFILE, errno.ENFILE) or re.search(FILES, text):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        fix = "raise `ulimit -n`, or lower data.num_workers"
        return LumosError("too many open files", where=_place(error)[0], got=f"a limit of {most}", fix=fix)
    if number == errno.EAGAIN or re.search(PROCESSES, text):
        fix = "raise `ulimit -u`, or lower data.num_workers"
        return LumosError("no process or thread can be started", where=_place(error)[0], got=said, fix=fix)
    return None


def _place(error: BaseException) -> tuple[str, bool]:
    """The innermost line that an exception came through of our code or the user's, FILE:LINE; whether it is theirs."""
    place, is_own = "outside lumos", False
    for frame, line in walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and (ours := file.relative_to(ROOT)).parts[0] in OURS:
            place, is_own = f"{ours}:{line}", False
        elif (theirs := users_own(file)) is not None:
            place, is_own = f"{theirs}:{line}", True
    return place, is_own


@contextmanager
def _asides(debug: bool) -> Iterator[list[LumosError]]:
    """What threads and finalizers raise beside the work: no traceback of theirs stands beside the line of its failure.

    TensorBoard's thread is left out: what it raises is raised again where the next figure is logged. `debug` shows all.
    """
    found: list[LumosError] = []
    threads, finalizers = threading.excepthook, sys.unraisablehook

    def of_thread(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__module__.startswith("tensorboard."):
            return
        if debug:
            threads(failed)
        elif isinstance(failed.exc_value, Exception):
            found.append(as_failure(failed.exc_value))

    def of_finalizer(failed: sys.UnraisableHookArgs) -> None:
        if isinstance(failed.exc_value, Exception):
            found.append(as_failure(failed.exc_value))

    threading.excepthook = of_thread
    if not debug:
        sys.unraisablehook = of_finalizer
    try:
        yield found
    finally:
        threading.excepthook, sys.unraisablehook = threads, finalizers
