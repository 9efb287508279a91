"""Decoding and encoding media files, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from data_modules.media.decode import ClipRequest, DecodedClip
from data_modules.media_list import MediaItem
from data_modules.reading import is_absent, out_of_reach, read_patiently, reason
from data_modules.shard_sample import ShardSample
from data_modules.tokenize_state import Outcome
from lumos_pl.errors import DataError, TemporaryError
from lumos_pl.layout import whole_seconds
from lumos_pl.machinery.parent_process import end_of
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.tokenizers.visual import VisualTokenizer

IN_HAND = 2  # items that a worker has: one to work on, one so that it need not wait
JOIN_SECONDS = 10  # that a worker gets to end


class Reader(Protocol):
    """What decodes: see `MediaReader`."""

    def read(self, path: Path, request: ClipRequest) -> DecodedClip: ...


@dataclass(frozen=True, kw_only=True)
class ClipMaker:
    """How one process turns items into samples. It is sent to the workers, where each makes its own tools.

    Args:
        make_tokenizer, make_reader: the tools.
        request: what to read of each file; an item's own start comes first.
        retry: how long the storage of a file that was there may not answer.
    """

    make_tokenizer: Callable[[], VisualTokenizer]
    make_reader: Callable[[], AbstractContextManager[Reader]]
    request: ClipRequest
    retry: RetryConfig

    @contextmanager
    def open(self) -> Iterator[Callable[[MediaItem], Outcome | TemporaryError]]:
        """A function that makes one item's outcome, which depends on nothing but the item; or says that storage fails.

        Clips are encoded one by one, on one thread: rounding differs between batches and numbers of
        threads, which may flip a code, and on a CPU a batch gains no time.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        tokenizer = self.make_tokenizer()
        try:
            with self.make_reader() as reader:
                yield lambda item: self._outcome(item, reader, tokenizer)
        finally:
            torch.set_num_threads(threads)

    def _outcome(self, item: MediaItem, reader: Reader, tokenizer: VisualTokenizer) -> Outcome | TemporaryError:
        request = self.request if item.start is None else replace(self.request, start=item.start)
        try:
            clip = read_patiently(lambda: reader.read(item.path, request), item.path, self.retry)
        except TemporaryError as error:
            return error
        except DataError as error:
            return out_of_reach(item.path, error, self.retry) if is_absent(error) else reason(error)
        codes = tokenizer.encode(torch.from_numpy(clip.frames)[None])[0]
        frames, height, width, _ = clip.frames.shape
        fps = clip.fps if frames > 1 else 1  # a lone frame is an image, whatever it was cut from
        return ShardSample(
            key=item.key,
            codes=codes.cpu().numpy().astype(np.uint16),
            text=item.caption,
            frames=frames,
            fps=fps,
            duration=whole_seconds(frames, fps),
            width=width,
            height=height,
            source=item.name,
        )


Task = tuple[int, MediaItem]
"""An item and its place in the list."""


def run_tasks(maker: ClipMaker, tasks: Sequence[Task], workers: int) -> Generator[tuple[int, Outcome], None, None]:
    """The outcome of every task, as they end. Close the iterator, so that no process outlives it.

    Args:
        workers: processes; 0 works in this one.
    Raises:
        DataError: a worker died, with the file it died at.
        TemporaryError: the storage of a file does not answer, however long it is waited for.
    """
    if workers == 0:
        with maker.open() as outcome:
            for index, item in tasks:
                yield index, _made(outcome(item))
        return
    context = _start_fork_server()
    queue = iter(tasks)
    team: list[_Worker] = []
    finished = False
    try:
        for number in range(min(workers, len(tasks))):
            team.append(_Worker(number, maker, context))
        for worker in team * IN_HAND:
            worker.give(next(queue, None))
        while busy := {worker.channel: worker for worker in team if worker.tasks}:
            for channel in wait(list(busy)):
                worker = busy[channel]  # type: ignore[index]  # wait is typed for sockets too
                index, outcome_of = worker.take()
                yield index, _made(outcome_of)
                worker.give(next(queue, None))
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
    """A process that works on the tasks it is given, in order; it ends with the channel, so also when this one dies."""

    def __init__(self, number: int, maker: ClipMaker, context: ForkServerContext) -> None:
        self.channel, theirs = context.Pipe()
        self.tasks: deque[Task] = deque()
        self._process = context.Process(target=_work, args=(theirs, maker), name=f"worker {number}")
        self._process.start()
        theirs.close()

    def give(self, task: Task | None) -> None:
        if task is None:
            return
        self.tasks.append(task)
        try:
            self.channel.send(task)
        except ConnectionError:
            raise self._death() from None

    def take(self) -> tuple[int, Outcome | TemporaryError]:
        try:
            outcome: tuple[int, Outcome | TemporaryError] = self.channel.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        self.tasks.popleft()
        return outcome

    def _death(self) -> DataError:
        self._process.join(JOIN_SECONDS)
        status = self._process.exitcode or 0
        return DataError(
            f"{self._process.name} (pid {self._process.pid}) died",
            file=self.tasks[0][1].path,
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
    with maker.open() as outcome:
        try:
            while True:
                index, item = channel.recv()
                channel.send((index, outcome(item)))
        except (EOFError, ConnectionError):
            return
