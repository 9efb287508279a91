"""What `lumos tokenize` leaves on disk, so that it can be killed at any moment and go on.

    DIR/tokenize.json           the settings, written first; the counts, written when all else is complete
        images/, videos/        shards, each final when it is written; their manifests come when all is done
        tokenize.shards.jsonl   what stands in which shard, and what was quarantined: see `ledger`
        tokenize.partial.jsonl  outcomes that stand in no shard yet: see `journal`; removed at the end
        tokenize.rate.json      how fast the latest attempt is; removed at the end
        quarantine.jsonl        path, line and reason of every item that gave no sample
        tokenize.lock           held by the process that writes here

Samples become shards in the order of the list. Which worker made which, and how often the work was interrupted,
therefore leaves no trace.

One of several parts has all this in DIR/part-00000-of-00004/, and DIR/tokenize.json holds the settings of all.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, with_config
from typing_extensions import TypedDict

from data_modules.shards.writer import KIND_FOLDERS
from data_modules.tokenizing.journal import JOURNAL_FILE, is_journal
from data_modules.tokenizing.ledger import LEDGER_FILE, is_ledger
from data_modules.tokenizing.parts import STATE_FILE
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.atomic_file import TakenError, make_folder, write_atomically, write_new
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.json_file import Count, read_json
from lumos_pl.machinery.own_files import RECORD, keep_aside, remove_own, remove_partials
from lumos_pl.settings.differences import differences

RATE_FILE, QUARANTINE_FILE, LOCK_FILE = "tokenize.rate.json", "quarantine.jsonl", "tokenize.lock"
_WRITTEN = (STATE_FILE, RATE_FILE, QUARANTINE_FILE, JOURNAL_FILE, LEDGER_FILE, RECORD)
_SAID_SINCE = frozenset({"captions"})  # settings that folders of before do not tell, and which no default stands for
ONE_NAME = {"names": "one of each file"}  # a setting of all folders but those of before
_OF_THE_LIST = "media", "n_media"  # of the settings: a list may grow, which is looked at by its keys

Counts = Annotated[dict[Literal["images", "videos", "quarantined", "rests"], Count], Field(min_length=1)]


@with_config(extra="forbid")
class State(TypedDict):
    """What tokenize.json holds: the settings, and once all is done the numbers of samples, see `complete`."""

    settings: dict[str, Any]
    complete: Counts | None


class Begun(NamedTuple):
    """What an earlier attempt left.

    Attributes:
        counts: what `complete` was given, if it came so far.
        media: where its items are known by their places in a list, as they were before lists could grow, the digest of
            that list.
    """

    counts: Counts | None
    media: str | None


def counts_of(folder: Path) -> Counts:
    """Of a folder that is complete, what `TokenizeFolder.complete` was given; else nothing."""
    return read_json(folder / STATE_FILE, State)["complete"] or {}


class TokenizeFolder:
    """The folder that one call of `tokenize_media` fills, perhaps over several attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.quarantine = path / QUARANTINE_FILE
        self.journal = path / JOURNAL_FILE
        self.rate = path / RATE_FILE
        self._state = path / STATE_FILE

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder if need be, and keep a second process out."""
        make_folder(self.path)
        with file_lock(self.path / LOCK_FILE):
            remove_partials(self.path, of=lambda name: name in _WRITTEN)
            yield

    def begin(self, settings: dict[str, Any]) -> Begun:
        """Start, or go on with what an earlier attempt with the same settings left.

        Args:
            settings: all that the shards depend on, as plain JSON values.
        Raises:
            DataError: the folder holds something else.
            ConfigError: it was begun with other settings.
        """
        if os.path.lexists(self._state):
            content = read_json(self._state, State, fix="write elsewhere")
            check_same(self.path, content["settings"], settings)
            counts = content["complete"]
            if counts is not None:
                self.remove_journal()  # where a kill came between the two last steps
            return Begun(counts, content["settings"].get("media"))
        for name in (*KIND_FOLDERS, LEDGER_FILE):
            if os.path.lexists(self.path / name):
                raise DataError(
                    "shards need an empty folder", file=self.path / name, fix="write elsewhere, or move it away"
                )
        if os.path.lexists(self.journal) and not remove_own(self.journal):
            keep_aside(self.journal)
        self.write(settings, complete=None)
        return Begun(None, None)

    def complete(self, settings: dict[str, Any], counts: dict[str, int]) -> None:
        """Everything is in place: `counts` of samples by kind, and of what was quarantined."""
        self.write(settings, complete=counts)
        self.remove_journal()
        remove_own(self.rate)

    def abandon(self) -> None:
        """Nothing came of it: the next attempt starts anew, also where a kill comes between these steps."""
        if is_ledger(ledger := self.path / LEDGER_FILE):
            ledger.unlink()
        self.remove_journal()
        remove_own(self.rate)
        if not remove_own(self._state):
            keep_aside(self._state)

    def remove_journal(self) -> None:
        """And nothing else that has its name."""
        if is_journal(self.journal):
            self.journal.unlink()

    def write(self, settings: dict[str, Any], complete: dict[str, int] | None) -> None:
        write_atomically(self._state, _content(settings, complete))


def recorded(path: Path) -> dict[str, Any]:
    """The settings that a folder was begun with; empty: it was not begun."""
    if not (path / STATE_FILE).is_file():
        return {}
    return read_json(path / STATE_FILE, State, fix="write elsewhere")["settings"]


def recorded_shard_size(path: Path) -> int | None:
    """The samples of a shard that a folder was begun with; None: it was not begun."""
    size = recorded(path).get("samples_per_shard")
    return size if isinstance(size, int) and size > 0 else None


def knows_as_spelled(path: Path) -> bool:
    """Whether a folder was begun when each spelling of a path was another file."""
    before = recorded(path)
    return bool(before) and not before.keys() >= ONE_NAME.keys()


def begin_parts(path: Path, settings: dict[str, Any]) -> None:
    """See that all parts of a folder have the same settings, their number among them; the first one writes them down.

    Raises:
        DataError, ConfigError: see `TokenizeFolder.begin`.
    """
    make_folder(path)
    state = path / STATE_FILE
    if not os.path.lexists(state):
        for name in KIND_FOLDERS:
            if os.path.lexists(path / name):
                raise DataError("shards need an empty folder", file=path / name, fix="write elsewhere, or move it away")
        with suppress(TakenError):  # another part was quicker
            write_new(state, _content(settings, None))
    check_same(path, read_json(state, State, fix="write elsewhere")["settings"], settings)


def check_same(path: Path, recorded: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise ConfigError where a folder was begun with other settings than are asked for now."""
    skipped = {*_OF_THE_LIST, *_SAID_SINCE.difference(recorded)}
    before, now = ({k: v for k, v in values.items() if k not in skipped} for values in (recorded, settings))
    for name, was, asked in differences(before, now):
        fix = "use the same, or another --out"
        if name == "parts":
            fix = (
                f"add --part i/{was}, i from 0, or write to another --out"
                if was
                else "leave --part out, or write to another --out"
            )
        raise ConfigError(
            "this folder was begun with other settings",
            file=path,
            where=name,
            got=reprlib.repr(asked),
            expected=f"{reprlib.repr(was)} as before",
            fix=fix,
        )


def _content(settings: dict[str, Any], complete: dict[str, int] | None) -> bytes:
    content = {"settings": settings, "complete": complete}
    return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"
