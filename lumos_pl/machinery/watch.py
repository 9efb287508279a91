"""A thread of every rank that ends it, with one line, when it makes no progress or when what it depends on has ended.

The main thread of a rank whose partner is gone waits inside the backend, in C++, where it hears nothing and from where
NCCL ends the process without a word. The watch speaks first, and says which rank holds the others up: each tells the
others by a board how far it has come.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from lumos_pl.errors import LumosError, TemporaryError
from lumos_pl.machinery.parent_process import launcher, state_of, wake_with_parent_end
from lumos_pl.machinery.progress import ENDING, mark, now
from lumos_pl.machinery.rendezvous import NoticeBoard
from lumos_pl.machinery.torch_versions import flight_record, record_exchanges

LONGEST_TICK_S = 1.0
LEAVING_S = 3.0  # that a main thread has to find out for itself, and to complete the checkpoint that it began
ANSWER_S = 2.0
LOOK_AGAIN_S = 0.02
TELLING_S = 20.0  # that a rank has to tell why it ends, and to hear whether another has told it
EXCHANGES = "/torch/distributed/", "/torch/autograd/"  # where a main thread is that waits for other ranks
STALLS = "stalls"  # in the run's folder


@dataclass(frozen=True, kw_only=True)
class Report:
    """How far a rank has come.

    Args:
        seconds: since its main thread began what it does; as the rank's own watch counts them, which is as old.
        limit_s: how long that may take.
        place: innermost line of Python of its main thread.
        waits: whether that is in an exchange with other ranks.
        number: of the rank's reports; None: it has given no other for as long as it was waited for.
    """

    rank: int
    host: str
    pid: int
    doing: str
    step: int
    count: int
    seconds: float
    limit_s: float
    place: str
    waits: bool
    number: int | None

    @property
    def overdue(self) -> bool:
        return self.seconds > self.limit_s


class Watch:
    """Looks after the main thread of this rank: a context manager around all that it does.

    Args:
        folder: the run's; the stacks of a rank that stalls are written into its folder `stalls`.
        limit_s, slow_limit_s: how long a part of the work may take, and one that is `slow`.
        tell: has one of the ranks tell a failure, and returns the exit status of all.
    """

    def __init__(
        self, folder: Path, rank: int, *, limit_s: float, slow_limit_s: float, tell: Callable[[LumosError], int]
    ) -> None:
        self._folder, self._rank, self._tell = folder, rank, tell
        self._limit_s, self._slow_limit_s = limit_s, max(limit_s, slow_limit_s)
        self._tick_s = min(LONGEST_TICK_S, limit_s / 10)
        self._over = threading.Event()
        self._main, self._host, self._launcher = threading.main_thread().ident, socket.gethostname(), launcher()
        self._since, self._seconds, self._number = -1.0, 0.0, 0
        self._board: NoticeBoard | None = None
        self._gone: str | None = None  # what was said when the board was
        self._keeper: Report | None = None  # rank 0, where it has the board

    def __enter__(self) -> Watch:
        mark("starting", step=0, slow=True)
        folder = self._folder / STALLS
        record_exchanges(folder)
        if torch.cuda.is_available():
            with suppress(OSError):  # where it cannot be made, NCCL has nowhere to write: the run has other worries
                folder.mkdir(parents=True, exist_ok=True)
        if self._launcher is not None:
            wake_with_parent_end()
        self._threads = [threading.Thread(target=self._run, daemon=True, name="watch")]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:  # one that is in torch's code as Python ends would end the process by SIGABRT
            thread.join(ANSWER_S)

    def meet(self, board: NoticeBoard) -> None:
        """The ranks have met, and tell each other from now on how far they have come.

        Who keeps the board is to be known before anything else: should rank 0 be stopped, it cannot be asked any more.
        """
        self._board = board
        end = time.monotonic() + ANSWER_S
        with suppress(RuntimeError, OSError):  # of a rank 0 that is gone already: who reports to it finds that out
            self._report_once(board)
            while self._keeper is None and time.monotonic() < end:
                time.sleep(LOOK_AGAIN_S)
                self._keeper = _parsed(board.read()).get(0)
        reporting = threading.Thread(target=self._report_to, args=(board,), daemon=True, name="watch-reports")
        self._threads.append(reporting)
        reporting.start()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self._tick_s):
            tick, last = time.monotonic() - last, time.monotonic()
            moment = now()
            if moment.since != self._since:
                self._since, self._seconds = moment.since, 0.0
            self._seconds += min(tick, 2 * self._tick_s)  # a process that was stopped has not stalled for that long
            if (failure := self._failure()) is not None and not self._over.is_set():
                self._end(failure)

    def _end(self, failure: LumosError) -> NoReturn:
        """Tell why, and end this process: also where the run's folder does not answer, which may be what it ends of."""
        status: int | None = None

        def tell() -> None:
            nonlocal status
            self._dump()
            status = self._tell(failure)

        telling = threading.Thread(target=tell, daemon=True, name="watch-tells")
        telling.start()
        telling.join(TELLING_S)
        if status is None and not failure.is_told:
            print(f"lumos: {failure}", file=sys.stderr, flush=True)
        os._exit(failure.exit_status if status is None else status)

    def _failure(self) -> LumosError | None:
        """What this rank ends of. A main thread that learns of an end too completes the checkpoint that it began."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._over.wait(LEAVING_S)
            return lost("rank 0", where=f"pid {self._launcher}")
        if self._gone is not None and now().doing != ENDING:
            assert self._board is not None
            self._over.wait(LEAVING_S)
            return None if now().doing == ENDING else lost(self._board.keeper, got=self._gone)
        report = self._report()
        if not report.overdue:
            return None
        alone = self._board is None or now().doing == ENDING
        return judged([report] if alone else self._reports(report))

    def _report_to(self, board: NoticeBoard) -> None:
        """A thread of its own: where the board's process is stopped, this one waits without end."""
        try:
            while not self._over.wait(self._tick_s):
                self._report_once(board)
                if self._keeper is None:
                    self._keeper = _parsed(board.read()).get(0)
        except (RuntimeError, OSError) as error:
            self._gone = str(error)

    def _report_once(self, board: NoticeBoard) -> None:
        self._number += 1
        board.put_up(self._rank, json.dumps(asdict(self._report())))

    def _report(self) -> Report:
        moment, frame = now(), _frame_of(self._main)
        return Report(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            doing=moment.doing,
            step=moment.step,
            count=moment.count,
            seconds=self._seconds,
            limit_s=self._slow_limit_s if moment.slow else self._limit_s,
            place=_place(frame),
            waits=frame is not None and any(folder in frame.f_code.co_filename for folder in EXCHANGES),
            number=self._number,
        )

    def _reports(self, own: Report) -> list[Report]:
        """Of all ranks, this one's too; those that say nothing new meanwhile are silent."""
        before = self._read()
        time.sleep(2.5 * LONGEST_TICK_S)
        after = self._read()
        if not after:  # the process that has the board does not answer
            keeper = [] if self._keeper is None else [replace(self._keeper, step=own.step, doing="", number=None)]
            return [*keeper, own]
        news = {rank: report for rank, report in after.items() if report != before.get(rank) or report.doing == ENDING}
        silent = {rank: replace(report, number=None) for rank, report in after.items() if rank not in news}
        return list({**silent, **news, self._rank: own}.values())

    def _read(self) -> dict[int, Report]:
        """By rank; nothing if the board does not answer in time."""
        found: list[dict[int, str]] = []

        def read() -> None:
            with suppress(RuntimeError, OSError):
                assert self._board is not None
                found.append(self._board.read())

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        reading.join(ANSWER_S)
        return _parsed(found[0]) if found else {}

    def _dump(self) -> None:
        """The stacks of all threads, and what the backend remembers of its exchanges, for who looks into it."""
        with suppress(OSError, RuntimeError):
            folder = self._folder / STALLS
            folder.mkdir(exist_ok=True)
            name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-rank{self._rank}-{os.getpid()}"
            with (folder / f"{name}.txt").open("x") as file:
                faulthandler.dump_traceback(file)
            if record := flight_record():
                with (folder / f"{name}.flight.json").open("xb") as recorded:
                    recorded.write(record)


class Stall(TemporaryError):
    """Ranks that make no progress.

    Attributes:
        silent: those of them that are stopped, or hold Python's lock for ever, by their process on this machine.
    """

    silent: Sequence[int] = ()


def judged(reports: Sequence[Report]) -> Stall | None:
    """Which of the ranks holds the others up; None: one of them works on something that the others wait for."""
    silent = [report for report in reports if report.number is None]
    if not silent and not all(report.overdue or report.waits for report in reports):
        return None
    least = min(report.count for report in reports)
    behind = [report for report in reports if report.count == least]
    stalled = silent or [report for report in behind if not report.waits] or behind
    first, here = stalled[0], socket.gethostname()
    is_heard, process = first.number is not None, f"pid {first.pid} on {first.host}"
    state = state_of(first.pid) if first.host == here else "silent"
    limit_s = next(report.limit_s for report in reports if report.overdue)
    which = f"rank {', '.join(str(report.rank) for report in stalled)} stalls"
    stall = Stall(
        which if len(reports) > 1 else "no progress",
        where=f"step {first.step}, {first.place}, {process}" if is_heard else f"step {first.step}, {process}",
        got=f"{first.doing} for {first.seconds:.0f} s"
        if is_heard
        else ", last seen ".join(filter(None, (state, first.doing))),
        expected=f"within {limit_s:g} s",
        fix=f"the stacks are in the run's {STALLS}; run it again; slow work needs a longer trainer.rank_timeout_s",
    )
    stall.silent = [report.pid for report in silent if report.host == here]
    return stall


def lost(who: str, *, where: str | None = None, got: str | None = None) -> TemporaryError:
    """Of a process that has ended, or that nothing is heard of any more."""
    said = None if got is None else " ".join(got.split())[:200]
    return TemporaryError(f"{who} ended", where=where, got=said, fix="see what it says, then run it again")


def _parsed(notices: Mapping[int, str]) -> dict[int, Report]:
    return {rank: Report(**json.loads(text)) for rank, text in notices.items()}


def _frame_of(thread: int | None) -> FrameType | None:
    """Where a thread is, by its identity.

    Nothing is collected meanwhile: CPython 3.11 makes frames under a lock that the end of a `threading.local`, which a
    collection may bring about, waits for as well, without end and with all other threads (python/cpython#106883).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread or 0)
    finally:
        if collects:
            gc.enable()


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return "outside Python"
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} in {code.co_name}"
