"""Decoding and encoding media files, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.media.decode import ClipRequest, DecodedClip
from data_modules.media_list import MediaItem
from data_modules.reading import is_absent, out_of_reach, read_patiently, reason
from data_modules.shard_sample import ShardSample
from data_modules.tokenize_journal import Outcome
from lumos_pl.errors import ConfigError, DataError, LumosError, TemporaryError
from lumos_pl.layout import whole_seconds
from lumos_pl.machinery.parent_process import end_of
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.tokenizers.visual import VisualTokenizer

IN_HAND = 2  # items that a worker has beside those it waits with: one to work on, one so that it need not wait
SHAPES_IN_HAND = 4  # of clips, which it fills batches of at a time
JOIN_SECONDS = 10  # that a worker gets to end

Task = tuple[int, MediaItem]
"""An item, and the number that its outcome is known by."""

Made = tuple[int, Outcome | LumosError]
"""What became of a task; an error that stops all work."""

Run = Callable[[Iterator[Task]], Generator[tuple[int, Outcome], None, None]]
"""The outcome of every task, as they end; see `run_tasks`."""


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
        batch_size: clips of one shape that are encoded together.
    """

    make_tokenizer: Callable[[], VisualTokenizer]
    make_reader: Callable[[], AbstractContextManager[Reader]]
    request: ClipRequest
    retry: RetryConfig
    batch_size: int = 1

    @contextmanager
    def open(self) -> Iterator[Station]:
        with self.make_reader() as reader, self.encoder() as encoder:
            yield Station(self, reader, encoder)

    @contextmanager
    def encoder(self) -> Iterator[Encoder]:
        """On one thread: rounding differs between numbers of threads, which may flip a code."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield Encoder(self.make_tokenizer(), self.batch_size)
        finally:
            torch.set_num_threads(threads)

    def decode(self, item: MediaItem, reader: Reader) -> DecodedClip | str | LumosError:
        """An item's clip, the reason why there is none, or how its storage fails."""
        request = self.request if item.start is None else replace(self.request, start=item.start)
        try:
            return read_patiently(lambda: reader.read(item.path, request), item.path, self.retry)
        except TemporaryError as error:
            return error
        except DataError as error:
            return out_of_reach(item.path, error, self.retry) if is_absent(error) else reason(error)


class Encoder:
    """Turns clips of one shape into samples.

    Rounding differs between sizes of a batch, which may flip a code: all batches have the same size, filled with what
    is thrown away, so that a clip's codes do not depend on which others came with it.
    """

    def __init__(self, tokenizer: VisualTokenizer, batch_size: int) -> None:
        self._tokenizer, self.batch_size = tokenizer, batch_size

    def samples(self, clips: list[tuple[MediaItem, DecodedClip]]) -> list[ShardSample]:
        """Of at most `batch_size` clips.

        Raises:
            ConfigError: the device has no room for so many.
        """
        frames = torch.from_numpy(np.stack([clip.frames for _, clip in clips]))
        if missing := self.batch_size - len(clips):
            frames = torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])])
        try:
            codes = self._tokenizer.encode(frames).cpu().numpy().astype(np.uint16)
        except torch.OutOfMemoryError as error:
            got, fix = f"{self.batch_size} clips of {list(frames.shape[1:4])}", "lower it; what is done is kept"
            raise ConfigError("no room on the device", where="--batch-size", got=got, fix=fix) from error
        return [_sample(item, clip, codes[place]) for place, (item, clip) in enumerate(clips)]


def _sample(item: MediaItem, clip: DecodedClip, codes: NDArray[np.uint16]) -> ShardSample:
    frames, height, width, _ = clip.frames.shape
    fps = clip.fps if frames > 1 else 1  # a lone frame is an image, whatever it was cut from
    return ShardSample(
        key=item.key,
        codes=np.ascontiguousarray(codes),
        text=item.caption,
        frames=frames,
        fps=fps,
        duration=whole_seconds(frames, fps),
        width=width,
        height=height,
        source=item.name,
    )


class Station:
    """Where one process works: it decodes what comes, and encodes clips of one shape together."""

    def __init__(self, maker: ClipMaker, reader: Reader, encoder: Encoder) -> None:
        self._maker, self._reader, self._encoder = maker, reader, encoder
        self._clips = defaultdict[tuple[int, ...], list[tuple[int, MediaItem, DecodedClip]]](list)

    @property
    def is_waiting(self) -> bool:
        """Whether clips wait for others of their shape."""
        return bool(self._clips)

    def put(self, number: int, item: MediaItem) -> list[Made]:
        """Take a task; what is finished by it."""
        clip = self._maker.decode(item, self._reader)
        if not isinstance(clip, DecodedClip):
            return [(number, clip)]
        alike = self._clips[clip.frames.shape]
        alike.append((number, item, clip))
        return self.encode_most() if len(alike) == self._encoder.batch_size else []

    def encode_most(self) -> list[Made]:
        """Encode the clips of the shape that most have."""
        clips = self._clips.pop(max(self._clips, key=lambda shape: len(self._clips[shape])))
        numbers = [number for number, _, _ in clips]
        try:
            samples = self._encoder.samples([(item, clip) for _, item, clip in clips])
        except LumosError as error:
            return [(numbers[0], error)]
        return [(number, (sample,)) for number, sample in zip(numbers, samples, strict=True)]


def run_tasks(maker: ClipMaker, tasks: Iterator[Task], workers: int) -> Generator[tuple[int, Outcome], None, None]:
    """The outcome of every task, as they end. Close the iterator, so that no process outlives it.

    Args:
        tasks: asked for the next one when a worker wants it.
        workers: processes; 0 works in this one.
    Raises:
        DataError: a worker died, with the file it died at.
        TemporaryError: the storage of a file does not answer, however long it is waited for.
    """
    if workers == 0:
        with maker.open() as station:
            for task in tasks:
                yield from map(checked, station.put(*task))
            while station.is_waiting:
                yield from map(checked, station.encode_most())
        return
    in_hand = IN_HAND + (SHAPES_IN_HAND * maker.batch_size if maker.batch_size > 1 else 0)
    team: list[_Worker] = []
    finished = False
    try:
        for number in range(workers):
            if (first := next(tasks, None)) is None:
                break
            if not team:
                context = _start_fork_server()
            team.append(_Worker(number, maker, context))
            team[-1].give(first)
        for worker in team * (in_hand - 1):
            worker.give(next(tasks, None))
        while busy := {worker.channel: worker for worker in team if worker.tasks}:
            for channel in wait(list(busy)):
                worker = busy[channel]  # type: ignore[index]  # wait is typed for sockets too
                for made in worker.take():
                    yield checked(made)
                    worker.give(next(tasks, None))
        finished = True
    finally:
        for worker in team:
            worker.end(at_once=not finished)


def checked(made: Made) -> tuple[int, Outcome]:
    """An outcome; raises the error that came instead."""
    number, outcome = made
    if isinstance(outcome, LumosError):
        raise outcome
    return number, outcome


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
    """A process that works on the tasks it is given; it ends with the channel, so also when this one dies."""

    def __init__(self, number: int, maker: ClipMaker, context: ForkServerContext) -> None:
        self.channel, theirs = context.Pipe()
        self.tasks: dict[int, MediaItem] = {}
        self._at: int | None = None  # the task that it works on
        self._process = context.Process(target=_work, args=(theirs, maker), name=f"worker {number}")
        self._process.start()
        theirs.close()

    def give(self, task: Task | None) -> None:
        if task is None:
            return
        self.tasks[task[0]] = task[1]
        try:
            self.channel.send(task)
        except ConnectionError:
            raise self._death() from None

    def take(self) -> list[Made]:
        """What it says next: that it begins a task, or what it made."""
        try:
            said: int | list[Made] = self.channel.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        if isinstance(said, int):
            self._at = said
            return []
        for number, _ in said:
            self.tasks.pop(number, None)
        return said

    def _death(self) -> DataError:
        self._process.join(JOIN_SECONDS)
        status = self._process.exitcode or 0
        at = self._at if self._at in self.tasks else next(iter(self.tasks))
        return DataError(
            f"{self._process.name} (pid {self._process.pid}) died",
            file=self.tasks[at].path,
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
    with maker.open() as station:
        try:
            while True:
                if station.is_waiting and not channel.poll():
                    channel.send(station.encode_most())
                    continue
                number, item = channel.recv()
                channel.send(number)
                if made := station.put(number, item):
                    channel.send(made)
        except (EOFError, ConnectionError):
            return
