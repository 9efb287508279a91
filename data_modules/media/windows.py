"""Clips of whatever has pictures by their times, a video or a picture that moves: in one pass, one clip in memory."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_modules.media.request import ClipRequest, DecodedClip, Several
from data_modules.media.scenes import Place, places_in_scenes
from data_modules.media.size_buckets import Size
from lumos_pl.errors import DataError

Picture = NDArray[np.uint8]
Frame = TypeVar("Frame")


class Film(Protocol[Frame]):
    """Frames by their times, in seconds from the first."""

    @property
    def end(self) -> Fraction:
        """When the last frame so far ends."""

    def length(self) -> Fraction:
        """In seconds, perhaps only as told by the file."""

    def on_screen(self, times: Iterable[Fraction]) -> Iterator[Frame]:
        """The frame shown at each of the rising times, up to the end of the last frame."""

    def fit(self, frame: Frame, sizes: Sequence[Size]) -> Picture: ...

    def check_whole(self) -> None:
        """After the last frame: raises DataError where more was promised."""


def spread(length: Fraction, clip: Fraction, n: int) -> list[Fraction]:
    """The starts of `n` clips, each in the middle of its part of the video; of fewer where they would overlap."""
    n = max(1, min(n, int(length / clip)))
    return [max(Fraction(0), (2 * i + 1) * length / (2 * n) - clip / 2) for i in range(n)]


@dataclass
class Plan:
    """What is still to be made of a film. It outlasts an attempt that finds no way through; the next one goes on."""

    request: ClipRequest
    several: Several
    begins: list[Fraction] | None = None  # of clips at given times; None: each where the one before ends
    due: list[Fraction] = field(default_factory=list)  # of scenes' clips, when each is; none: all of them
    done: int = 0  # clips
    rests: int = 0  # pieces that were shorter than a clip

    @classmethod
    def of(cls, film: Film[Frame], request: ClipRequest, several: Several) -> Plan:
        plan, n = cls(request=request, several=several, done=several.done), several.per_video
        if several.starts:
            plan.begins = [Fraction(start) for start in several.starts]
        elif n is not None and several.scenes:
            length = film.length()
            plan.due = [(2 * i + 1) * length / (2 * n) for i in range(n)]
        elif n is not None:
            plan.begins = spread(film.length(), request.length, n)
        return plan

    def clips(self, film: Film[Frame]) -> Iterator[DecodedClip]:
        """Those that are still to be made.

        Raises:
            DataError: there is none, or at one of the given times nothing.
        """
        pictures = _Fitted(film, self.request.sizes)
        by_scene = self.several.scenes and not self.several.starts
        return self._of_scenes(film, pictures) if by_scene else self._at_times(film, pictures)

    def _made(self, begin: Fraction, pictures: Sequence[Picture]) -> DecodedClip:
        self.done += 1
        return DecodedClip(
            frames=np.stack(pictures), fps=self.request.fps, is_image=False, start=round(float(begin), 6)
        )

    # -- at given times, or one after another ------------------------------------------------------

    def _at_times(self, film: Film[Frame], fitted: _Fitted[Frame]) -> Iterator[DecodedClip]:
        asked: deque[int] = deque()  # the clip of each time

        def times() -> Iterator[Fraction]:
            for time, number in self._schedule():
                asked.append(number)
                yield time

        opened: dict[int, list[Picture]] = {}
        for frame in film.on_screen(times()):
            number = asked.popleft()
            clip = opened.setdefault(number, [])
            clip.append(fitted.picture(frame, like=clip))
            if len(clip) == self.request.max_frames:
                yield self._made(self._begin(number), opened.pop(number))
        if self.begins is None or self.done < len(self.begins):
            film.check_whole()
            yield from self._left(film, opened)

    def _schedule(self) -> Iterator[tuple[Fraction, int]]:
        """The times of the clips that are not done, rising, and whose each is."""
        numbers = count(self.done) if self.begins is None else range(self.done, len(self.begins))
        one_by_one = (self._times(number) for number in numbers)
        if self.several.starts:
            return heapq.merge(*one_by_one)  # they may overlap
        return (time for clip in one_by_one for time in clip)

    def _times(self, number: int) -> Iterator[tuple[Fraction, int]]:
        begin = self._begin(number)
        return ((begin + Fraction(i, self.request.fps), number) for i in range(self.request.max_frames))

    def _begin(self, number: int) -> Fraction:
        return number * self.request.length if self.begins is None else self.begins[number]

    def _left(self, film: Film[Frame], opened: dict[int, list[Picture]]) -> Iterator[DecodedClip]:
        """At the end of the video: clips that are not whole, where they were asked for or are all there is."""
        wanted = len(self.begins or ()) if self.several.starts else 1
        for number in range(self.done, wanted):
            if number not in opened:
                got, expected = f"a video of {float(film.end):.3f} s", f"more than {float(self._begin(number)):.3f} s"
                raise DataError("the video ends before the clip starts", got=got, expected=expected)
            yield self._made(self._begin(number), opened.pop(number))
        self.rests += len(opened)

    # -- by scene ----------------------------------------------------------------------------------

    def _of_scenes(self, film: Film[Frame], fitted: _Fitted[Frame]) -> Iterator[DecodedClip]:
        """Whole clips from each scene's beginning on; of a video that is one short scene what it has."""
        fps, n_frames = self.request.fps, self.request.max_frames
        clip: list[Picture] = []
        spare: tuple[Fraction, list[Picture]] | None = None  # the last whole one that was not due
        taken, scenes, longest, rests = 0, 0, 0, 0
        shown = (fitted.picture(frame) for frame in film.on_screen(Fraction(i, fps) for i in count()))
        number = -1
        for number, (picture, place) in enumerate(places_in_scenes(shown)):
            if place is not Place.SAME:
                rests += bool(clip)
                clip = []
                scenes += place is Place.FIRST
            if place is Place.OUTSIDE:
                continue
            clip.append(picture)
            longest = max(longest, len(clip))
            if len(clip) == n_frames:
                begin, end = Fraction(number + 1 - n_frames, fps), Fraction(number + 1, fps)
                if not self.due or sum(time < end for time in self.due) > taken:
                    taken += 1
                    if taken > self.done:
                        yield self._made(begin, clip)
                else:
                    spare = begin, clip
                clip = []
        film.check_whole()
        if not taken and spare is not None:
            yield self._made(*spare)
        elif not taken and scenes == 1 and number + 1 == len(clip):
            yield self._made(Fraction(0), clip)
        elif not taken:
            got, expected = f"{longest} frames at {fps} fps, in {scenes} scenes", f"{n_frames}"
            raise DataError("no scene is as long as a clip", got=got, expected=expected)
        else:
            rests += bool(clip)
        self.rests = rests


class _Fitted(Generic[Frame]):
    """Frames as pictures, each made once."""

    def __init__(self, film: Film[Frame], sizes: Sequence[Size]) -> None:
        self._film, self._sizes = film, tuple(sizes)
        self._frame: Frame | None = None
        self._made: dict[tuple[Size, ...], Picture] = {}

    def picture(self, frame: Frame, *, like: Sequence[Picture] = ()) -> Picture:
        """
        Args:
            like: the clip so far, whose size it must have.
        """
        if frame is not self._frame:
            self._frame, self._made = frame, {}
        sizes = ((like[0].shape[1], like[0].shape[0]),) if like else self._sizes
        if sizes not in self._made:
            self._made[sizes] = self._film.fit(frame, sizes)
        return self._made[sizes]
