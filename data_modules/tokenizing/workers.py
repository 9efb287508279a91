"""Decoding and encoding media files, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.media.request import ClipRequest, DecodedClip, Several
from data_modules.tokenizing.clips_of_video import Decoded, Group, GroupReader, Reader, Said, Task, grouped
from data_modules.tokenizing.journal import Outcome
from lumos_pl.errors import ConfigError, DataError, LumosError
from lumos_pl.machinery.parent_process import end_of
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.tokenizers.visual import VisualTokenizer

IN_HAND = 2  # groups that a worker has beside those it waits with: one to work on, one so that it need not wait
SHAPES_IN_HAND = 4  # of clips, which it fills batches of at a time
JOIN_SECONDS = 10  # that a worker gets to end

Made = tuple[int, Outcome | LumosError]
"""An item's number, and an outcome of it; or an error that stops all work."""

Run = Callable[[Iterator[Task]], Generator[tuple[int, Outcome], None, None]]
"""The outcomes of every task, as they come; see `run_tasks`."""


@dataclass(frozen=True, kw_only=True)
class ClipMaker:
    """How one process turns items into samples. It is sent to the workers, where each makes its own tools.

    Args:
        make_tokenizer, make_reader: the tools.
        request, several: what to read of each file, see `GroupReader`.
        retry: how long the storage of a file that was there may not answer.
        batch_size: clips of one shape that are encoded together.
    """

    make_tokenizer: Callable[[], VisualTokenizer]
    make_reader: Callable[[], AbstractContextManager[Reader]]
    request: ClipRequest
    several: Several
    retry: RetryConfig
    batch_size: int = 1

    @contextmanager
    def open(self) -> Iterator[Desk]:
        with self.group_reader() as reader, self.encoder() as encoder:
            yield Desk(reader, encoder)

    @contextmanager
    def group_reader(self) -> Iterator[GroupReader]:
        with self.make_reader() as reader:
            yield GroupReader(reader=reader, request=self.request, several=self.several, retry=self.retry)

    @contextmanager
    def encoder(self) -> Iterator[Encoder]:
        """On one thread: rounding differs between numbers of threads, which may flip a code."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield Encoder(self.make_tokenizer(), self.batch_size)
        finally:
            torch.set_num_threads(threads)


class Encoder:
    """Turns clips of one shape into codes.

    Rounding differs between sizes of a batch, which may flip a code: all batches have the same size, filled with what
    is thrown away, so that a clip's codes do not depend on which others came with it.
    """

    def __init__(self, tokenizer: VisualTokenizer, batch_size: int) -> None:
        self._tokenizer, self.batch_size = tokenizer, batch_size

    def codes(self, clips: list[DecodedClip]) -> list[NDArray[np.uint16]]:
        """Of at most `batch_size` clips.

        Raises:
            ConfigError: the device has no room for so many.
        """
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        if missing := self.batch_size - len(clips):
            frames = torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])])
        try:
            codes = self._tokenizer.encode(frames).cpu().numpy().astype(np.uint16)
        except torch.OutOfMemoryError as error:
            got, fix = f"{self.batch_size} clips of {list(frames.shape[1:4])}", "lower it in a new --out"
            raise ConfigError("no room on the device", where="--batch-size", got=got, fix=fix) from error
        return [np.ascontiguousarray(one) for one in codes[: len(clips)]]


@dataclass(eq=False)
class _Held:
    """What is to leave a station in its turn: a clip once it has codes, something that was said, or a group's end."""

    found: Decoded | Said | None
    codes: NDArray[np.uint16] | None = None

    def made(self) -> Iterator[Made | None]:
        if isinstance(self.found, Decoded):
            assert self.codes is not None
            yield from self.found.samples(self.codes)
        else:
            yield self.found


class Station:
    """Encodes clips of one shape together; all that it is given leaves in order, None behind all of a group."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._held = deque[_Held]()
        self._alike: dict[tuple[int, ...], list[_Held]] = defaultdict(list)
        self._most = SHAPES_IN_HAND * encoder.batch_size

    @property
    def is_waiting(self) -> bool:
        """Whether clips wait for others of their shape."""
        return bool(self._held)

    def hold(self, found: Decoded | Said | None) -> Iterator[Made | None]:
        """Take what was found; what leaves meanwhile."""
        held = _Held(found)
        self._held.append(held)
        if isinstance(found, Decoded):
            alike = self._alike[found.clip.frames.shape]
            alike.append(held)
            if len(alike) == self._encoder.batch_size:
                self._encode(found.clip.frames.shape)
            elif sum(map(len, self._alike.values())) >= self._most:
                yield from self.encode_first()
        yield from self._leave()

    def encode_first(self) -> Iterator[Made | None]:
        """Encode what has waited longest, and all of its shape."""
        found = self._held[0].found
        assert isinstance(found, Decoded)
        self._encode(found.clip.frames.shape)
        yield from self._leave()

    def _encode(self, shape: tuple[int, ...]) -> None:
        alike = self._alike.pop(shape)
        codes = self._encoder.codes([held.found.clip for held in alike if isinstance(held.found, Decoded)])
        for held, of_clip in zip(alike, codes, strict=True):
            held.codes = of_clip

    def _leave(self) -> Iterator[Made | None]:
        while self._held and not (isinstance(self._held[0].found, Decoded) and self._held[0].codes is None):
            yield from self._held.popleft().made()


class Desk(Station):
    """Where one process works: it decodes what it encodes."""

    def __init__(self, reader: GroupReader, encoder: Encoder) -> None:
        super().__init__(encoder)
        self._reader = reader

    def put(self, group: Group) -> Iterator[Made | None]:
        """Take a group; what leaves meanwhile."""
        for found in self._reader.decoded(group):
            yield from self.hold(found)
        yield from self.hold(None)


def run_tasks(maker: ClipMaker, tasks: Iterator[Task], workers: int) -> Generator[tuple[int, Outcome], None, None]:
    """The outcomes of every task, as they come. Close the iterator, so that no process outlives it.

    Args:
        tasks: asked for the next one when a worker wants it.
        workers: processes; 0 works in this one.
    Raises:
        DataError: a worker died, with the file it died at.
        TemporaryError: the storage of a file does not answer, however long it is waited for.
    """
    if workers == 0:
        with maker.open() as station:
            for group in grouped(tasks):
                yield from checked(station.put(group))
            while station.is_waiting:
                yield from checked(station.encode_first())
        return
    queue, team, finished = grouped(tasks), list[_Worker](), False
    in_hand = IN_HAND + (SHAPES_IN_HAND * maker.batch_size if maker.batch_size > 1 else 0)
    try:
        for number in range(workers):
            if (first := next(queue, None)) is None:
                break
            if not team:
                context = _start_fork_server()
            team.append(_Worker(number, maker, context))
            team[-1].give(first)
        for worker in team * (in_hand - 1):
            worker.give(next(queue, None))
        while busy := {worker.channel: worker for worker in team if worker.groups}:
            for channel in wait(list(busy)):
                worker = busy[channel]  # type: ignore[index]  # wait is typed for sockets too
                made = worker.take()
                if made is None:  # all of a group
                    worker.give(next(queue, None))
                elif not isinstance(made, Path):
                    yield from checked([made])
        finished = True
    finally:
        for worker in team:
            worker.end(at_once=not finished)


def checked(made: Iterable[Made | None]) -> Iterator[tuple[int, Outcome]]:
    """The outcomes; raises the error that comes instead."""
    for one in made:
        if one is not None:
            number, outcome = one
            if isinstance(outcome, LumosError):
                raise outcome
            yield number, outcome


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


@contextmanager
def _no_script() -> Iterator[None]:
    """Processes that are started meanwhile do not import what this one was started with.

    They need nothing of it. A script of the user's without `if __name__ == "__main__"` would run anew in each, its
    training too, until it comes to the call that it stands at here.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class _Worker:
    """A process that works on groups, in their order; it ends with the channel, so also when this one dies."""

    def __init__(self, number: int, maker: ClipMaker, context: ForkServerContext) -> None:
        self.channel, theirs = context.Pipe()
        self.groups: deque[Group] = deque()
        self._at: Path | None = None
        self._process = context.Process(target=_work, args=(theirs, maker), name=f"worker {number}")
        with _no_script():
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

    def take(self) -> Made | Path | None:
        """The next outcome; a path: it begins with this file; None: a group has no more."""
        try:
            said: Made | Path | None = self.channel.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        if said is None:
            self.groups.popleft()
        elif isinstance(said, Path):
            self._at = said
        return said

    def _death(self) -> DataError:
        self._process.join(JOIN_SECONDS)
        with suppress(EOFError, OSError):
            while self.channel.poll():  # what it said before
                said = self.channel.recv()
                self._at = said if isinstance(said, Path) else self._at
        when, fix = "died", "start again to go on, without this file if it was the cause"
        if self._at is None:
            when, fix = "died before its first file", "its message, above, says why; without one, take fewer workers"
        return DataError(
            f"{self._process.name} (pid {self._process.pid}) {when}",
            file=self._at,
            got=end_of(self._process.exitcode or 0),
            fix=f"nothing is lost: {fix}",
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
    try:
        with maker.open() as station:
            while True:
                if station.is_waiting and not channel.poll():
                    made = station.encode_first()
                else:
                    group: Group = channel.recv()
                    channel.send(group[0].item.path)
                    made = station.put(group)
                for one in made:
                    channel.send(one)
    except LumosError as error:
        channel.send((0, error))
    except (EOFError, ConnectionError):
        return
