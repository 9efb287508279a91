"""Which process failed beside this one, a data worker or a rank, and who of the ranks tells it.

However one rank ends, all end, with one line: the first that fails writes down that it tells it. A rank whose exchange
with the others failed waits for that line, and for the answers of those that waited in vain as well; a rank that does
not answer stalls.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from experiments.failures import as_failure, tell
from lumos_pl.errors import LumosError, TemporaryError, causes
from lumos_pl.machinery.own_files import keep_aside
from lumos_pl.machinery.parent_process import STOPPED, end_of, launcher, state_of
from lumos_pl.machinery.stop_request import StoppedBySignal

ANSWERS = "ranks_waiting"  # in the run's folder, which all nodes share
CAUSE = "cause"  # in there: the exit status of the rank that told why the run ended
MOST_DIGITS = 3  # of an exit status
PATIENCE_S = 10.0  # ranks that wait for one exchange give up at about the same time
OF_RANKS = r"gloo|NCCL|Timed out|Connection (closed|reset)"


def forget_answers(run: Path) -> None:
    """Before anything can fail; rank 0's work. What is no answer is kept aside where one would be."""
    answers = run / ANSWERS
    if os.path.lexists(answers) and (answers.is_symlink() or not answers.is_dir()):
        keep_aside(answers)
    for path in answers.iterdir() if answers.is_dir() else ():
        if path.name.isdecimal() or path.name == CAUSE:
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size <= (MOST_DIGITS if path.name == CAUSE else 0):
                path.unlink()
            else:
                keep_aside(path)


def silent_ranks(
    run: Path, rank: int, n_ranks: int, *, patience_s: float = PATIENCE_S, ended: Callable[[], list[int]] = list
) -> list[int]:
    """Answer for this rank, whose exchange with the others failed, and wait for their answers.

    Args:
        ended: ranks that are known to have ended.
    Returns:
        the ranks that have ended, else those that gave no answer: they stall. None where one told the cause.
    """
    answers = run / ANSWERS
    answers.mkdir(exist_ok=True)
    with suppress(FileExistsError):  # a link is not followed
        (answers / str(rank)).open("x").close()
    end = time.monotonic() + patience_s
    while not (answers / CAUSE).exists():
        silent = [other for other in range(n_ranks) if not (answers / str(other)).exists()]
        if gone := ended():
            return gone
        if not silent or time.monotonic() > end:
            return silent
        time.sleep(0.1)
    return []


def failure_beside(error: BaseException, trainer: Trainer, seconds: int) -> LumosError | None:
    """What an error says of another process, a data worker or a rank, that failed or stalls; None: it does not."""
    if (death := _worker_death(trainer, error)) is not None:
        return death
    if isinstance(error, LumosError) and not dist.is_initialized():
        return None  # of the meeting: who has not come to it cannot answer
    if trainer.world_size > 1 and any(map(_tells_of_a_rank, causes(error))):
        silent = _silent_beside(trainer)
        which = f"rank {', '.join(map(str, silent))}" if silent else "another rank"
        return TemporaryError(
            f"{which} failed or stalls",
            where=f"rank {trainer.global_rank}, step {trainer.global_step}",
            got=" ".join(str(error).split())[:200],
            expected=f"every rank within {seconds} s",
            fix="see what the others say, then resume",
        )
    return None


def _worker_death(trainer: Trainer, error: BaseException) -> LumosError | None:
    """The death of a data worker that an error came of, which torch tells of wherever the training is; None: none died.

    Any loader may know: it has `worker_death(error)`, as `TokenLoader` has.
    """
    validation = trainer.val_dataloaders
    loaders = [trainer.train_dataloader, *(validation if isinstance(validation, list | tuple) else [validation])]
    deaths = (loader.worker_death(error) for loader in loaders if hasattr(loader, "worker_death"))
    return next((death for death in deaths if death is not None), None)


def _tells_of_a_rank(error: BaseException) -> bool:
    is_torchs = isinstance(error, RuntimeError) and not isinstance(error, LumosError)
    return isinstance(error, dist.DistError) or (is_torchs and re.search(OF_RANKS, str(error)) is not None)


def _silent_beside(trainer: Trainer) -> list[int]:
    """The ranks that failed or stall; those of them that this one started are ended, or they would stay for ever."""
    first, started = trainer.global_rank + 1, getattr(trainer.strategy.launcher, "procs", [])
    silent = silent_ranks(
        Path(trainer.default_root_dir),
        trainer.global_rank,
        trainer.world_size,
        ended=lambda: [first + i for i, process in enumerate(started) if process.poll() is not None],
    )
    for i, process in enumerate(started):
        if first + i in silent:
            process.kill()
    return silent


def own_failure(error: Exception, trainer: Trainer) -> Exception:
    """What this process raises for an error; of several ranks one tells it, and all end."""
    if trainer.world_size == 1:
        return error
    failure = told_by_one(error, Path(trainer.default_root_dir))
    if trainer.global_rank and dist.is_initialized():
        _end_stalled_launcher()
    return failure


def told_by_one(error: Exception, run: Path) -> LumosError:
    """The failure of this rank, told now, unless another rank told why the run ends: then with that one's status."""
    failure, cause = as_failure(error), run / ANSWERS / CAUSE
    try:
        with _first_to_tell(run) as file:
            tell(failure)
            file.write(str(failure.exit_status))
    except FileExistsError:
        end = time.monotonic() + PATIENCE_S
        while not (status := _status_in(cause)) and time.monotonic() < end:
            time.sleep(0.05)
        failure.is_told = True
        failure.exit_status = int(status) if status.isdecimal() else failure.exit_status
    except OSError:  # a full disk: then each tells its own
        tell(failure)
    return failure


def _status_in(cause: Path) -> str:
    """The exit status that another rank told; nothing where it is not there yet, or cannot be read for now."""
    with suppress(OSError):
        return cause.read_text(encoding="utf-8")
    return ""


def _first_to_tell(run: Path) -> TextIO:
    """What the exit status of all is written into; raises FileExistsError for all ranks but one."""
    (run / ANSWERS).mkdir(exist_ok=True)
    return (run / ANSWERS / CAUSE).open("x", encoding="utf-8")


def end_of_all(failure: LumosError, run: Path) -> int:
    """Have one rank tell why the run ends, and end those that hear nothing; the exit status of this one.

    Rank 0, which started this one, is woken if it is stopped, and ends with a status of its own then.
    """
    status = told_by_one(failure, run).exit_status
    for pid in getattr(failure, "silent", ()):
        if pid != launcher() or state_of(pid) != STOPPED:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    _end_stalled_launcher()
    return status


class Leaves(Callback):
    """Notes the signal that a run leaves on before anything is torn down: no rank is to take it for a failure."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.world_size > 1 and isinstance(exception, StoppedBySignal) and isinstance(exception.code, int):
            with suppress(OSError), _first_to_tell(Path(trainer.default_root_dir)) as file:
                file.write(str(exception.code))


class RankWatch:
    """The ranks that this one started. One that ends badly ends this one, also where it waits for a GPU for ever."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._started: list[subprocess.Popen[bytes]] = []

    def begin(self, started: list[subprocess.Popen[bytes]]) -> None:
        self._started = started
        threading.Thread(target=self._watch, daemon=True, name="rank-watch").start()

    def check(self) -> None:
        """Raise LumosError if one has ended."""
        for rank, process in enumerate(self._started, 1):
            if (code := process.poll()) is not None:
                raise _ended(rank, process.pid, code)

    def _watch(self) -> None:
        while any(process.poll() is None for process in self._started):
            time.sleep(0.5)
            if any(process.poll() for process in self._started):
                break
        else:
            return
        time.sleep(2 * PATIENCE_S)  # for the line of the rank that ended, or of this one, which learns of it too
        for rank, process in enumerate(self._started, 1):
            if process.returncode:
                failure = _ended(rank, process.pid, process.returncode)
                late = threading.Timer(4 * PATIENCE_S, os._exit, [failure.exit_status])
                late.daemon = True
                late.start()  # the run's folder may not answer either
                os._exit(told_by_one(failure, self._run).exit_status)


def await_started(trainer: Trainer, seconds: int) -> None:
    """Wait until the ranks that this one started are at their ends: rank 0's last work.

    Raises:
        LumosError: one fails at what comes after the last exchange, or does not end.
    """
    started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    end, run = time.monotonic() + seconds, Path(trainer.default_root_dir)
    for rank, process in enumerate(started, trainer.global_rank + 1):
        try:
            code = process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            where, expected = f"pid {process.pid}, {state_of(process.pid)}", f"within {seconds} s of this rank's end"
            raise TemporaryError(f"rank {rank} does not end", where=where, expected=expected) from None
        if code:
            raise told_by_one(_ended(rank, process.pid, code), run)


def _ended(rank: int, pid: int, code: int) -> LumosError:
    got = end_of(code)
    kind = TemporaryError if code < 0 or code == TemporaryError.exit_status else LumosError
    return kind(f"rank {rank} ended", where=f"pid {pid}", got=got, fix="see what it says, then resume")


def _end_stalled_launcher() -> None:
    """Of a rank that ends, and so ends all: if rank 0, which started it, is stopped, wake it, or it learns nothing."""
    parent = launcher()
    if parent is not None and state_of(parent) == STOPPED:
        os.kill(parent, signal.SIGCONT)
