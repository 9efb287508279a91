"""Decoding and encoding media files, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext

import numpy as np
import torch

from data_modules.clips_of_video import Decoded, Group, GroupReader, Reader, Said, Task, grouped
from data_modules.media.request import ClipRequest, Several
from data_modules.tokenize_state import Outcome
from lumos_pl.errors import DataError, TemporaryError
from lumos_pl.machinery.parent_process import end_of
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.tokenizers.visual import VisualTokenizer

IN_HAND = 2  # groups that a worker has: one to work on, one so that it need not wait
JOIN_SECONDS = 10  # that a worker gets to end


@dataclass(frozen=True, kw_only=True)
class ClipMaker:
    """How one process turns items into samples. It is sent to the workers, where each makes its own tools.

    Args:
        make_tokenizer, make_reader: the tools.
        request, several: what to read of each file, see `GroupReader`.
        retry: how long the storage of a file that was there may not answer.
    """

    make_tokenizer: Callable[[], VisualTokenizer]
    make_reader: Callable[[], AbstractContextManager[Reader]]
    request: ClipRequest
    several: Several
    retry: RetryConfig

    @contextmanager
    def open(self) -> Iterator[Callable[[Group], Iterator[Made]]]:
        """A function that makes the outcomes of a group's items; or says that storage fails.

        Clips are encoded one by one, on one thread: rounding differs between batches and numbers of
        threads, which may flip a code, and on a CPU a batch gains no time.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        tokenizer = self.make_tokenizer()
        try:
            with self.make_reader() as reader:
                files = GroupReader(reader=reader, request=self.request, several=self.several, retry=self.retry)
                yield lambda group: self._outcomes(files.decoded(group), tokenizer)
        finally:
            torch.set_num_threads(threads)

    def _outcomes(self, found: Iterable[Decoded | Said], tokenizer: VisualTokenizer) -> Iterator[Made]:
        for one in found:
            if isinstance(one, Decoded):
                codes = tokenizer.encode(torch.from_numpy(one.clip.frames)[None])[0]
                yield from one.samples(codes.cpu().numpy().astype(np.uint16))
            else:
                yield one


Made = tuple[int, Outcome | TemporaryError]
"""An item's place in the list, and an outcome of it."""


def run_tasks(maker: ClipMaker, tasks: Sequence[Task], workers: int) -> Generator[tuple[int, Outcome], None, None]:
    """The outcomes of every task, as they come. Close the iterator, so that no process outlives it.

    Args:
        workers: processes; 0 works in this one.
    Raises:
        DataError: a worker died, with the file it died at.
        TemporaryError: the storage of a file does not answer, however long it is waited for.
    """
    if workers == 0:
        with maker.open() as outcomes:
            for group in grouped(tasks):
                for index, outcome in outcomes(group):
                    yield index, _made(outcome)
        return
    context = _start_fork_server()
    queue = grouped(tasks)
    team: list[_Worker] = []
    finished = False
    try:
        for number in range(min(workers, len(tasks))):
            team.append(_Worker(number, maker, context))
        for worker in team * IN_HAND:
            worker.give(next(queue, None))
        while busy := {worker.channel: worker for worker in team if worker.groups}:
            for channel in wait(list(busy)):
                worker = busy[channel]  # type: ignore[index]  # wait is typed for sockets too
                made = worker.take()
                if made is None:  # all of a group
                    worker.give(next(queue, None))
                else:
                    yield made[0], _made(made[1])
        finished = True
    finally:
        for worker in team:
            worker.end(at_once=not finished)


def _made(outcome: Outcome | TemporaryError) -> Outcome:
    if isinstance(outcome, TemporaryError):
        raise outcome
    return outcome


def _start_fork_server() -> ForkServerContext:
    """A process to fork workers from, which has imported this module and done nothing else.

    Importing torch takes seconds, and a fork of this process could inherit locks of torch's threads.
    Server and workers are deaf to Ctrl-C, which reaches every process: this one ends the others.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()  # the server would start it, and it would unblock the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


class _Worker:
    """A process that works on groups, in their order; it ends with the channel, so also when this one dies."""

    def __init__(self, number: int, maker: ClipMaker, context: ForkServerContext) -> None:
        self.channel, theirs = context.Pipe()
        self.groups: deque[Group] = deque()
        self._process = context.Process(target=_work, args=(theirs, maker), name=f"worker {number}")
        self._process.start()
        theirs.close()

    def give(self, group: Group | None) -> None:
        if group is None:
            return
        self.groups.append(group)
        try:
            self.channel.send(group)
        except ConnectionError:
            raise self._death() from None

    def take(self) -> Made | None:
        """The next outcome; None: the group has no more."""
        try:
            made: Made | None = self.channel.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        if made is None:
            self.groups.popleft()
        return made

    def _death(self) -> DataError:
        self._process.join(JOIN_SECONDS)
        status = self._process.exitcode or 0
        return DataError(
            f"{self._process.name} (pid {self._process.pid}) died",
            file=self.groups[0][0].item.path,
            got=end_of(status),
            fix="nothing is lost: start again to go on, without this file if it was the cause",
        )

    def end(self, *, at_once: bool) -> None:
        self.channel.close()
        if at_once:
            self._process.terminate()
        self._process.join(JOIN_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(channel: Connection, maker: ClipMaker) -> None:
    with maker.open() as outcomes:
        try:
            while True:
                for made in outcomes(channel.recv()):
                    channel.send(made)
                channel.send(None)
        except (EOFError, ConnectionError):
            return
