"""What becomes of the rows of a media list: samples, as they are made, of files that are decoded once for all rows.

A row is one clip of its file, or several, see `Several`. Rows that stand one after another and name the same file make
a group: those that want the same clip share its codes, and clips at several starts come from one pass.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_modules.media.request import ClipRequest, DecodedClip, Several
from data_modules.shards.reading import is_absent, out_of_reach, read_patiently, reason
from data_modules.shards.sample import KEY_CHARACTERS, ShardSample
from data_modules.tokenizing.journal import ClipSample, ClipsEnd
from data_modules.tokenizing.media_item import MediaItem
from lumos_pl.errors import DataError, TemporaryError
from lumos_pl.layout import whole_seconds
from lumos_pl.machinery.retrying import RetryConfig

_ROWS_AT_ONCE = 16  # of one file: more saves little decoding, and would leave the other workers idle

_NUMBER = re.compile(r"-([0-9]{3,9})$")  # of a clip; a row's key ends with 16 digits


class Reader(Protocol):
    """What decodes: see `MediaReader`."""

    def read(self, path: Path, request: ClipRequest) -> DecodedClip: ...

    def clips(self, path: Path, request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]: ...


@dataclass(frozen=True)
class Task:
    """A row, the number that its outcomes are known by, and how many clips of it are made already."""

    index: int
    item: MediaItem
    done: int = 0


Group = Sequence[Task]
"""Rows of one file, in the order of the list."""


def grouped(tasks: Iterable[Task]) -> Iterator[Group]:
    """Rows that stand one after another and name the same file, up to so many."""
    for _, rows in groupby(tasks, lambda task: task.item.path):
        while group := tuple(islice(rows, _ROWS_AT_ONCE)):
            yield group


def clip_key(key: str, number: int) -> str:
    """The key of a row's clip: KEY-000 and so on, without the front of a key that would be too long."""
    suffix = f"-{number:03d}"
    return key[-(KEY_CHARACTERS - len(suffix)) :].lstrip("-_") + suffix


def parse_key(key: str) -> tuple[str, int | None]:
    """The digest that the keys of a row's clips have in common with the row's own, and the clip's number."""
    number = _NUMBER.search(key)
    return key[: number.start() if number else None][-16:], int(number[1]) if number else None


@dataclass(frozen=True, eq=False)
class Decoded:
    """A clip, and the rows that it is of, each with the clip's number where it has several."""

    clip: DecodedClip
    rows: tuple[tuple[Task, int | None], ...]

    def samples(self, codes: NDArray[np.uint16]) -> Iterator[tuple[int, ShardSample | ClipSample]]:
        """What its codes make of each row."""
        for task, number in self.rows:
            sample = self._sample(task.item, number, codes)
            yield task.index, sample if number is None else ClipSample(number, sample)

    def _sample(self, item: MediaItem, number: int | None, codes: NDArray[np.uint16]) -> ShardSample:
        frames, height, width, _ = self.clip.frames.shape
        fps = self.clip.fps if frames > 1 else 1  # a lone frame is an image, whatever it was cut from
        return ShardSample(
            key=item.key if number is None else clip_key(item.key, number),
            codes=codes,
            text=item.caption,
            frames=frames,
            fps=fps,
            duration=whole_seconds(frames, fps),
            width=width,
            height=height,
            source=item.name,
            captions=item.captions,
            metadata=item.metadata,
            start_s=None if number is None else self.clip.start,
        )


Said = tuple[int, str | ClipsEnd | TemporaryError]
"""A row's number, and why there is no sample of it, or no more."""


@dataclass(frozen=True, kw_only=True)
class GroupReader:
    """Decodes what the rows of a group want, which depends on nothing but each row.

    Args:
        request: what to read of each file; a row's own start comes first.
        several: the clips of a row that has no start of its own.
        retry: how long the storage of a file that was there may not answer.
    """

    reader: Reader
    request: ClipRequest
    several: Several
    retry: RetryConfig

    def decoded(self, group: Group) -> Iterator[Decoded | Said]:
        """Clips as they are decoded; what is said of a row comes last, and undoes its clips unless it is their end."""
        free = [task for task in group if task.item.start is None]
        if free and (self.several.per_video != 1 or self.several.scenes):
            yield from self._clips(free)
        elif free:
            yield from self._one(free, self.request)
        by_start = groupby(sorted((task for task in group if task.item.start is not None), key=_start), _start)
        yield from self._at_starts({start: list(tasks) for start, tasks in by_start})

    def _one(self, tasks: Group, request: ClipRequest) -> Iterator[Decoded | Said]:
        """Of rows that want the same clip."""
        path = tasks[0].item.path
        try:
            clip = read_patiently(lambda: self.reader.read(path, request), path, self.retry)
        except (TemporaryError, DataError) as error:
            yield from self._failed(tasks, error)
        else:
            yield Decoded(clip, tuple((task, None) for task in tasks))

    def _at_starts(self, waiting: dict[float, list[Task]]) -> Iterator[Decoded | Said]:
        """One clip at each start, in one pass where that goes well; else each is looked at by itself."""
        if len(waiting) > 1:
            starts, path = tuple(waiting), next(iter(waiting.values()))[0].item.path
            with closing(self.reader.clips(path, self.request, Several(starts=starts))) as clips, suppress(DataError):
                for clip, start in zip(clips, starts, strict=False):  # in this order the reader is read to its end
                    yield Decoded(clip, tuple((task, None) for task in waiting.pop(start)))
        for start, tasks in waiting.items():
            yield from self._one(tasks, replace(self.request, start=start))

    def _clips(self, tasks: Group) -> Iterator[Decoded | Said]:
        """Of rows that want the same clips of a video, those that are not made yet; or of an image."""
        path, number = tasks[0].item.path, min(task.done for task in tasks)
        clips: Generator[DecodedClip, None, int] | None = None

        def following() -> DecodedClip | ClipsEnd:
            nonlocal clips
            try:
                clips = clips or self.reader.clips(path, self.request, replace(self.several, done=number))
                return next(clips)
            except StopIteration as end:
                return ClipsEnd(clips=number, rests=end.value)
            except BaseException:
                clips = None  # what is tried again goes on with this one
                raise

        try:
            while isinstance(clip := read_patiently(following, path, self.retry), DecodedClip):
                if clip.is_image:
                    yield Decoded(clip, tuple((task, None) for task in tasks))
                    return
                yield Decoded(clip, tuple((task, number) for task in tasks if task.done <= number))
                number += 1
            yield from ((task.index, clip) for task in tasks)
        except (TemporaryError, DataError) as error:
            yield from self._failed(tasks, error)
        finally:
            if clips is not None:
                clips.close()

    def _failed(self, tasks: Group, error: TemporaryError | DataError) -> Iterator[Said]:
        if isinstance(error, DataError) and is_absent(error):
            error = out_of_reach(tasks[0].item.path, error, self.retry)
        said = reason(error) if isinstance(error, DataError) else error
        yield from ((task.index, said) for task in tasks)


def _start(task: Task) -> float:
    assert task.item.start is not None
    return task.item.start
