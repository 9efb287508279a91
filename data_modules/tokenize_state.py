"""What `lumos tokenize` leaves on disk, so that it can be killed at any moment and go on.

    DIR/tokenize.json           the settings, written first; the counts, written when all else is complete
        tokenize.partial.jsonl  the outcome of every finished item, in the order they ended; removed at the end
        quarantine.jsonl        path, line and reason of every item that gave no sample
        images/, videos/        shards
        tokenize.lock           held by the process that writes here

Samples become shards only when all items are done, in the order of the list. Which worker made
which, and how often the work was interrupted, therefore leaves no trace.
"""

from __future__ import annotations

import base64
import json
import os
import re
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import Field, with_config
from typing_extensions import TypedDict

from data_modules.shard_sample import SampleFields, ShardSample, plain_fields, sample_of
from data_modules.shards import KIND_FOLDERS
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.atomic_file import make_folder, naming, write_atomically
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.json_file import Count, parse_json, read_json
from lumos_pl.machinery.own_files import (
    RECORD,
    is_own,
    keep_aside,
    keep_copy,
    open_to_append,
    partial_of,
    put,
    remove_own,
    remove_partials,
)
from lumos_pl.machinery.regular_file import open_regular
from lumos_pl.settings.differences import differences

STATE_FILE, JOURNAL_FILE, QUARANTINE_FILE, LOCK_FILE = (
    "tokenize.json",
    "tokenize.partial.jsonl",
    "quarantine.jsonl",
    "tokenize.lock",
)
MOST_LINE_BYTES = 1 << 28  # of one clip's codes

LINE_BEGINS = b'{"item": '  # of a journal
_QUARANTINED = re.compile(rb'\{"item": [0-9]+, "reason": ')

Outcome = ShardSample | str  # a sample, or the reason why there is none


Counts = Annotated[dict[Literal["images", "videos", "quarantined"], Count], Field(min_length=2)]  # a kind at least


@with_config(extra="forbid")
class State(TypedDict):
    """What tokenize.json holds: the settings, and once all is done the numbers of samples, see `complete`."""

    settings: dict[str, Any]
    complete: Counts | None


@with_config(extra="forbid")
class JournalSample(SampleFields):
    """A sample as the journal has it: its fields, the codes in base64, and their shape."""

    key: str
    codes: str
    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 20)]], Field(min_length=3, max_length=3)]


@with_config(extra="forbid")
class JournalLine(TypedDict):
    """The outcome of one item: the sample, or the reason why there is none."""

    item: Count
    sample: NotRequired[JournalSample]
    reason: NotRequired[str]


class Journal:
    """The outcomes of the items that are done: a file of one JSON line each, read back on opening.

    A line that a kill cut short, and whatever a power cut spoilt, is dropped with all that follows
    it; those items are then not done.

    Args:
        n_items: how many there are; they are known by their index.
    """

    def __init__(self, path: Path, n_items: int) -> None:
        self._path = path
        self._offsets = np.full(n_items, -1, np.int64)
        self._end = 0
        self.done = self.quarantined = 0
        with naming(path):
            self._recover()

    def _recover(self) -> None:
        if not _is_journal(self._path):
            write_atomically(self._path, b"")  # what has the name is kept aside
        with open_to_append(self._path), self._path.open("r+b") as file:  # the former: the name is its only one
            while line := file.readline(MOST_LINE_BYTES):
                try:
                    index, outcome = _parse(line, len(self._offsets))
                    if index in self:
                        raise DataError("an item that was done before")
                except ValueError as error:
                    if file.read(1) or line.endswith(b"\n"):  # which no kill has cut short
                        copy = keep_copy(self._path)
                        told = f"lumos: a line that is not ours, dropped with all that follow | {self._path} | {error}"
                        print(f"{' '.join(told.split())} | the file is kept as {copy}", file=sys.stderr)
                    break
                self._note(index, outcome, len(line))
        os.truncate(self._path, self._end)

    def _note(self, index: int, outcome: Outcome, n_bytes: int) -> None:
        self._offsets[index] = self._end
        self._end += n_bytes
        self.done += 1
        self.quarantined += isinstance(outcome, str)

    def __contains__(self, index: int) -> bool:
        return bool(self._offsets[index] >= 0)

    def append(self, index: int, outcome: Outcome) -> None:
        line = _line(index, outcome)
        try:
            with open_to_append(self._path) as file:
                file.write(line)
        except OSError as error:
            raise DataError(
                "cannot be written", file=self._path, got=error.strerror, fix="free space, then start again to go on"
            ) from error
        self._note(index, outcome, len(line))

    def forget_quarantined(self) -> None:
        """Have the items that gave no sample be done again."""
        with open_regular(self._path, at_most=None, follow=False) as file:
            kept = b"".join(line for line in file if not _QUARANTINED.match(line))
        partial = partial_of(self._path)
        partial.write_bytes(kept)
        put(partial, self._path, own=_is_journal)
        self._offsets.fill(-1)
        self._end = self.done = self.quarantined = 0
        self._recover()

    def reasons(self) -> Iterator[tuple[int, str]]:
        """Every item that gave no sample, in the order they ended."""
        with open_regular(self._path, at_most=None, follow=False) as file:
            for line in file:
                if _QUARANTINED.match(line):
                    index, outcome = _parse(line, len(self._offsets))
                    assert isinstance(outcome, str)
                    yield index, outcome

    def outcomes(self) -> Iterator[Outcome]:
        """Of all items, which must be done, in the order of their indices."""
        with open_regular(self._path, at_most=None, follow=False) as file:
            for offset in self._offsets.tolist():
                file.seek(offset)
                yield _parse(file.readline(), len(self._offsets))[1]


def _line(index: int, outcome: Outcome) -> bytes:
    content: dict[str, Any] = {"item": index}
    if isinstance(outcome, str):
        content["reason"] = outcome
    else:
        codes = base64.b64encode(outcome.codes.astype("<u2").tobytes()).decode()
        content["sample"] = plain_fields(outcome) | {"key": outcome.key, "codes": codes, "shape": outcome.codes.shape}
    return json.dumps(content).encode() + b"\n"


def _parse(line: bytes, n_items: int) -> tuple[int, Outcome]:
    if not line.endswith(b"\n"):
        raise DataError("cut short")
    content = parse_json(line, JournalLine)
    if content["item"] >= n_items or ("reason" in content) == ("sample" in content):
        raise DataError("no outcome of an item")
    if "sample" not in content:
        return content["item"], content["reason"]
    sample = content["sample"]
    codes = np.frombuffer(base64.b64decode(sample["codes"], validate=True), "<u2").astype(np.uint16)
    return content["item"], sample_of(sample, key=sample["key"], codes=codes.reshape(sample["shape"]))


def _is_journal(path: Path) -> bool:
    """Whether a file is one by how it begins, or one that is still as empty as it was made."""
    try:
        with open_regular(path, at_most=None, follow=False) as file:
            begins = file.read(len(LINE_BEGINS))
    except DataError:
        return False
    return LINE_BEGINS.startswith(begins) if begins else is_own(path)


class TokenizeFolder:
    """The folder that one call of `tokenize_media` fills, perhaps over several attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.quarantine = path / QUARANTINE_FILE
        self.journal = path / JOURNAL_FILE
        self._state = path / STATE_FILE

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder if need be, and keep a second process out."""
        make_folder(self.path)
        with file_lock(self.path / LOCK_FILE):
            written = (STATE_FILE, QUARANTINE_FILE, JOURNAL_FILE, RECORD)
            remove_partials(self.path, of=lambda name: name in written)
            yield

    def begin(self, settings: dict[str, Any]) -> Counts | None:
        """Start, or go on with what an earlier attempt with the same settings left.

        Args:
            settings: all that the shards depend on, as plain JSON values.
        Returns:
            what `complete` was given, if an earlier attempt came so far.
        Raises:
            DataError: the folder holds something else.
            ConfigError: it was begun with other settings.
        """
        if os.path.lexists(self._state):
            content = read_json(self._state, State, fix="write elsewhere")
            self._check_same(content["settings"], settings)
            counts = content["complete"]
            if counts is not None:
                self._remove_journal()  # where a kill came between the two last steps
            return counts
        for kind in KIND_FOLDERS:
            if os.path.lexists(self.path / kind):
                raise DataError(
                    "shards need an empty folder", file=self.path / kind, fix="remove it, or write elsewhere"
                )
        if os.path.lexists(self.journal) and not remove_own(self.journal):
            keep_aside(self.journal)
        self._write(settings, complete=None)
        return None

    def reopen(self, settings: dict[str, Any]) -> None:
        """What was complete is not any more: more is to come."""
        self._write(settings, complete=None)

    def _check_same(self, recorded: dict[str, Any], settings: dict[str, Any]) -> None:
        for name, before, now in differences(recorded, settings):
            raise ConfigError(
                "this folder was begun with other settings",
                file=self.path,
                where=name,
                got=reprlib.repr(now),
                expected=f"{reprlib.repr(before)} as before",
                fix="use the same, or another --out",
            )

    def complete(self, settings: dict[str, Any], counts: dict[str, int]) -> None:
        """Everything is in place: `counts` of samples by kind, and of what was quarantined."""
        self._write(settings, complete=counts)
        self._remove_journal()

    def abandon(self) -> None:
        """Nothing came of it: the next attempt starts anew."""
        if not remove_own(self._state):
            keep_aside(self._state)
        self._remove_journal()

    def _remove_journal(self) -> None:
        """And nothing else that has its name."""
        if _is_journal(self.journal):
            self.journal.unlink()

    def _write(self, settings: dict[str, Any], complete: dict[str, int] | None) -> None:
        content = {"settings": settings, "complete": complete}
        write_atomically(self._state, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")
