"""The outcomes of media that are done and stand in no shard yet: what a kill must not lose.

tokenize.partial.jsonl has a JSON line for each, in the order they ended, and is as long as what the open shards hold
and what waits for an item before it: what shards have taken over is dropped. A line names its item by the number of
its key, so that the list may have grown or been put into another order before the work goes on. Lines of before named
it by its place in the list.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, with_config
from typing_extensions import TypedDict

from data_modules.shards.sample import SampleFields, ShardSample, plain_fields, sample_of
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.json_file import Count, parse_json
from lumos_pl.machinery.own_files import is_own, keep_copy, note, open_to_append, partial_of, put
from lumos_pl.machinery.regular_file import open_regular

JOURNAL_FILE = "tokenize.partial.jsonl"
MOST_LINE_BYTES = 1 << 28  # of one item's codes
COMPACT_BYTES = 4 << 20  # that may have been taken over before the file is written anew

_BEGINS = b'{"row": ', b'{"item": '  # of a line; the second one of before
_BEGINNING = re.compile(rb'\{"(row|item)": ("[0-9a-f]{16}"|[0-9]+), ')


@dataclass(frozen=True, eq=False)
class ClipSample:
    """A sample of an item that gives several, and its number, from 0 on."""

    number: int
    sample: ShardSample


@dataclass(frozen=True)
class ClipsEnd:
    """An item's samples are all made: so many, and so many pieces were shorter than a clip."""

    clips: int
    rests: int


Outcome = ShardSample | str | ClipSample | ClipsEnd
"""A sample, or the reason why there is none, which also undoes clips; or one of several samples, or their end."""


@dataclass(frozen=True, eq=False)
class Samples:
    """All samples of an item, in order, and how many pieces were shorter than a clip."""

    samples: tuple[ShardSample, ...]
    rests: int = 0


RowNumber = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
"""`MediaItem.number`, in hexadecimal digits."""


@with_config(extra="forbid")
class JournalSample(SampleFields):
    """A sample as the journal has it: its fields, the codes in base64, and their shape."""

    key: str
    codes: str
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 20)]], Field(min_length=3, max_length=3)]


@with_config(extra="forbid")
class JournalLine(TypedDict):
    """An outcome of an item: the sample, perhaps as one clip of several, or their end, or why there is none."""

    row: NotRequired[RowNumber]
    item: NotRequired[Count]
    clip: NotRequired[Count]
    sample: NotRequired[JournalSample]
    clips: NotRequired[Count]
    rests: NotRequired[Count]
    reason: NotRequired[str]


_Place = tuple[int, int]  # where a line begins, and its bytes


class Journal:
    """The file, read back on opening.

    A line that a kill cut short, and whatever a power cut spoilt, is dropped with all that follows
    it; those items are then not done.

    Args:
        listed: for lines of before, the numbers of the items in the order of the list they belong to.
    """

    def __init__(self, path: Path, listed: NDArray[np.uint64] | None = None) -> None:
        self._path, self._listed = path, listed
        self._places: dict[int, _Place] = {}  # of the last line of each item that is done
        self._clips: dict[int, list[_Place]] = {}  # of an item's clips, whether or not all are there
        self._end = self._dead = 0
        self.quarantined = set[int]()
        with naming(path):
            self._recover()
            if listed is not None and self._end:
                self._compact()

    def _make(self) -> None:
        """An empty one, so that what has the name later is known to be it; another's file that has it is kept aside."""
        if not is_journal(self._path):
            write_atomically(self._path, b"")

    def _recover(self) -> None:
        if not os.path.lexists(self._path):
            return
        self._make()
        with open_to_append(self._path), self._path.open("r+b") as file:  # the former: the name is its only one
            while line := file.readline(MOST_LINE_BYTES):
                try:
                    number, outcome = _parse(line, self._listed)
                    if number in self:
                        raise DataError("an item that was done before")
                    self._note(number, outcome, len(line))
                except ValueError as error:
                    if file.read(1) or line.endswith(b"\n"):  # which no kill has cut short
                        copy = keep_copy(self._path)
                        told = f"lumos: a line that is not ours, dropped with all that follow | {self._path} | {error}"
                        print(f"{' '.join(told.split())} | the file is kept as {copy}", file=sys.stderr)
                    break
        os.truncate(self._path, self._end)

    def _note(self, number: int, outcome: Outcome, n_bytes: int) -> None:
        place = self._end, n_bytes
        if isinstance(outcome, ClipSample):
            if outcome.number != self.clips(number):
                raise DataError("a clip out of turn", got=outcome.number, expected=self.clips(number))
            self._clips.setdefault(number, []).append(place)
        else:
            if isinstance(outcome, ClipsEnd) and outcome.clips != self.clips(number):
                raise DataError("clips are missing", got=self.clips(number), expected=outcome.clips)
            if not isinstance(outcome, ClipsEnd):
                self._dead += sum(n for _, n in self._clips.pop(number, ()))
            self._places[number] = place
            if isinstance(outcome, str):
                self.quarantined.add(number)
        self._end += n_bytes

    def clips(self, number: int) -> int:
        """How many clips of an item there are so far."""
        return len(self._clips.get(number, ()))

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def numbers(self) -> NDArray[np.uint64]:
        """Of the items that are done."""
        return np.fromiter(self._places, np.uint64, len(self._places))

    def of_others(self, listed: NDArray[np.uint64]) -> list[int]:
        """The items, done or begun, that are none of some."""
        known = np.array([*self._places, *self._clips], np.uint64)
        return np.setdiff1d(known, listed).tolist()  # type: ignore[no-any-return]

    def append(self, number: int, outcome: Outcome) -> None:
        line = _line(number, outcome)
        try:
            if not self._end:
                self._make()
            with open_to_append(self._path) as file:
                file.write(line)
        except OSError as error:
            raise DataError(
                "cannot be written", file=self._path, got=error.strerror, fix="free space, then start again to go on"
            ) from error
        self._note(number, outcome, len(line))

    def read(self, number: int) -> Samples | str:
        """What there is of an item that is done, or the reason why there is nothing."""
        with open_regular(self._path, at_most=None, follow=False) as file:

            def at(place: _Place) -> Outcome:
                file.seek(place[0])
                return _parse(file.read(place[1]), self._listed)[1]

            last = at(self._places[number])
            if isinstance(last, ClipsEnd):
                clips = [at(place) for place in self._clips.get(number, ())]
                samples = tuple(clip.sample for clip in clips if isinstance(clip, ClipSample))
                return Samples(samples, last.rests)
        assert isinstance(last, ShardSample | str)
        return last if isinstance(last, str) else Samples((last,))

    def drop(self, numbers: Iterable[int]) -> None:
        """Have shards taken over what became of these items: it need not be kept here."""
        for number in numbers:
            places = [*self._clips.pop(number, ()), self._places.pop(number, (0, 0))]
            self.quarantined.discard(number)
            self._dead += sum(n_bytes for _, n_bytes in places)
        if self._dead > max(COMPACT_BYTES, self._end - self._dead):
            self._compact()

    def forget_quarantined(self) -> None:
        """Have the items that gave no sample be done again."""
        if self.quarantined:
            self.drop(list(self.quarantined))
            self._compact()

    def _compact(self) -> None:
        """Write the file anew with the lines that count, each as it is written today."""
        partial, end = partial_of(self._path), 0
        with open_regular(self._path, at_most=None, follow=False) as file, partial.open("xb") as written:

            def moved(number: int, place: _Place) -> _Place:
                nonlocal end
                file.seek(place[0])
                line = _BEGINNING.sub(_beginning(number), file.read(place[1]), count=1)
                begin, end = end, end + written.write(line)
                return begin, len(line)

            clips = {number: [moved(number, place) for place in places] for number, places in self._clips.items()}
            places = {number: moved(number, place) for number, place in self._places.items()}
            written.flush()
            os.fsync(written.fileno())
        if not end:
            note(self._path, hashlib.sha256(b"").hexdigest())
        put(partial, self._path, own=is_journal)
        self._clips, self._places, self._end, self._dead, self._listed = clips, places, end, 0, None


def _beginning(number: int) -> bytes:
    return b'{"row": "%016x", ' % number


def _line(number: int, outcome: Outcome) -> bytes:
    content: dict[str, Any]
    match outcome:
        case str():
            content = {"reason": outcome}
        case ClipsEnd():
            content = vars(outcome)
        case ClipSample():
            content = {"clip": outcome.number, "sample": _fields(outcome.sample)}
        case ShardSample():
            content = {"sample": _fields(outcome)}
    return _beginning(number) + json.dumps(content).encode()[1:] + b"\n"


def _fields(sample: ShardSample) -> dict[str, Any]:
    codes = base64.b64encode(sample.codes.astype("<u2").tobytes()).decode()
    return plain_fields(sample) | {"key": sample.key, "codes": codes, "shape": sample.codes.shape}


def _parse(line: bytes, listed: NDArray[np.uint64] | None) -> tuple[int, Outcome]:
    if not line.endswith(b"\n"):
        raise DataError("cut short")
    content = parse_json(line, JournalLine)
    if "row" in content:
        number = int(content["row"], 16)
    elif "item" in content and listed is not None and content["item"] < len(listed):
        number = int(listed[content["item"]])
    else:
        raise DataError("an item that is not known")
    match sorted(set(content) - {"row" if "row" in content else "item"}):
        case ["reason"]:
            return number, content["reason"]
        case ["clips", "rests"]:
            return number, ClipsEnd(clips=content["clips"], rests=content["rests"])
        case ["clip", "sample"]:
            return number, ClipSample(content["clip"], _sample(content["sample"]))
        case ["sample"]:
            return number, _sample(content["sample"])
    raise DataError("no outcome of an item")


def _sample(sample: JournalSample) -> ShardSample:
    codes = np.frombuffer(base64.b64decode(sample["codes"], validate=True), "<u2").astype(np.uint16)
    return sample_of(sample, key=sample["key"], codes=codes.reshape(sample["shape"]))


def is_journal(path: Path) -> bool:
    """Whether a file is one by how it begins, or one that is still as empty as it was made."""
    try:
        with open_regular(path, at_most=None, follow=False) as file:
            found = file.read(len(_BEGINS[1]))
    except DataError:
        return False
    return any(begins.startswith(found[: len(begins)]) for begins in _BEGINS) if found else is_own(path)
