"""What is left to do of a folder's media, done in the order of the list."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.reading import out_of_reach, read_patiently
from data_modules.shards.sample import ShardSample
from data_modules.tokenizing.clips_of_video import Task, parse_key
from data_modules.tokenizing.growing import GrowingShards
from data_modules.tokenizing.journal import ClipSample, Journal, Outcome
from data_modules.tokenizing.ledger import Ledger
from data_modules.tokenizing.media_item import NO_FILE, MediaItem
from data_modules.tokenizing.media_list import MediaList
from data_modules.tokenizing.state import QUARANTINE_FILE, TokenizeFolder
from data_modules.tokenizing.status import Rate, short
from data_modules.tokenizing.workers import Run
from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.retrying import RetryConfig

FEW = 10  # items without a sample, which no share forbids
TOLD_EVERY_S = 60
MOST_WITNESSES = 100_000


def most_bad(share: float, total: int) -> int:
    """How many of so many items may give no sample."""
    return max(FEW, math.floor(share * total))


@dataclass(frozen=True, kw_only=True)
class TokenizeProgress:
    """How far the work is: items done and in all, of which quarantined, and RGB frames encoded by this call."""

    done: int
    total: int
    quarantined: int
    frames: int


OnProgress = Callable[[TokenizeProgress], None]


class Storage:
    """Whether files that a list names are there, or out of reach for a while: then others are that were there before.

    Args:
        retry: how long it is waited for.
    """

    def __init__(self, retry: RetryConfig) -> None:
        self._retry = retry
        self._seen: dict[Path, Path] = {}  # by folder, a file that was seen in it or below it

    def is_there(self, path: Path) -> bool:
        """
        Raises:
            TemporaryError: it is not there, nor is what lay beside it.
        """
        path = _target(path)
        if self._look(path):
            return True
        witness = next((self._seen[folder] for folder in path.parents if folder in self._seen), None)
        if witness is None or _exists(witness):
            return False

        def look_again() -> bool:
            if not _exists(path) and not _exists(witness):
                path.lstat()  # which says that it is not there
            return self._look(path)

        try:
            return read_patiently(look_again, path, self._retry)
        except FileNotFoundError as error:
            raise out_of_reach(path, error, self._retry) from error

    def _look(self, path: Path) -> bool:
        if not _exists(path):
            return False
        for folder in path.parents:
            if folder in self._seen or len(self._seen) >= MOST_WITNESSES:
                break
            self._seen[folder] = path
        return True


def _target(path: Path) -> Path:
    """Where a link leads, which may lie on another disk than the link; else the path itself."""
    try:
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except (OSError, ValueError):
        return path


def _exists(path: Path) -> bool:
    """Whether there is something; what fails in another way is for the reader to tell."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass
    return True


class Work:
    """The items of a part that are not done, and their outcomes on the way to shards.

    Args:
        items: the list; `mine` says which of its items are the part's.
        journal, ledger: what an earlier attempt left.
        max_bad: see `TokenizeSettings`.
    Raises:
        ConfigError: the list lacks items whose samples stand in shards.
    """

    def __init__(
        self,
        items: MediaList,
        mine: Callable[[NDArray[np.uint64]], NDArray[np.bool_]],
        folder: TokenizeFolder,
        journal: Journal,
        ledger: Ledger,
        *,
        max_bad: float,
        retry: RetryConfig,
        on_progress: OnProgress | None,
    ) -> None:
        self._items, self._mine, self._folder, self._on_progress = items, mine, folder, on_progress
        self._journal, self._ledger, self._storage = journal, ledger, Storage(retry)
        listed = np.unique(items.numbers[mine(items.numbers)])
        self.total = len(listed)
        self._most_bad = most_bad(max_bad, self.total)
        self._check_listed(listed)
        journal.drop(journal.of_others(listed))
        in_shards = np.intersect1d(ledger.done(), listed, assume_unique=True)
        self.done = len(np.union1d(in_shards, journal.numbers()))
        self._done = np.setdiff1d(in_shards, journal.numbers(), assume_unique=True)
        known = set(np.intersect1d(ledger.quarantined, listed).tolist())
        reasons = {number: why for number, why in ledger.reasons().items() if number in known} if known else {}
        reasons |= {number: str(journal.read(number)) for number in journal.quarantined}
        self._reasons = Counter(map(short, reasons.values()))
        self._n_bad = len(reasons)
        self._frames = 0
        self._begun, self._done_before, self._told = time.monotonic(), self.done, -math.inf
        self._waiting = deque[int]()  # items in the order of the list, from the first on that is in no shard yet

    def _check_listed(self, listed: NDArray[np.uint64]) -> None:
        taken = np.unique(np.concatenate(list(self._ledger.taken.values())))
        if lacking := len(np.setdiff1d(taken, listed, assume_unique=True)):
            raise ConfigError(
                "the list lacks rows whose samples are here: it may grow, and change its order",
                file=self._folder.path,
                where="media",
                got=f"{lacking} of {len(taken)} that were taken",
                fix="use the list as it was, with more rows if you like, or another --out",
            )

    def _pending(self) -> Iterator[list[MediaItem]]:
        """All that is in no shard yet, in order; what is in the journal too."""

        def choose(numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
            if not len(self._done):
                return self._mine(numbers)
            places = np.minimum(np.searchsorted(self._done, numbers), len(self._done) - 1)
            pending: NDArray[np.bool_] = self._mine(numbers) & (self._done[places] != numbers)
            return pending

        return self._items.blocks(choose)

    def do(self, run: Run, shards: GrowingShards) -> None:
        """Make what is not done, and put all into shards.

        Args:
            run: makes the outcomes of tasks, in any order.
        Raises:
            DataError: more than `max_bad` of the items give no sample: something is wrong with all of them.
            TemporaryError: media are out of reach.
        """
        self._report()
        self._check()
        if self.done < self.total:
            self._check_reachable()
        with closing(run(self._tasks(shards))) as outcomes:
            for number, outcome in outcomes:
                self._add(number, outcome)
                if isinstance(outcome, ShardSample | ClipSample):
                    self._frames += (outcome.sample if isinstance(outcome, ClipSample) else outcome).frames
                self._drain(shards)
                self._report()

    def _check_reachable(self) -> None:
        """Where not one file is there, all are out of reach."""
        named: list[Path] = []
        for block in self._pending():
            for item in block:
                if item.problem is None and item.number not in self._journal:
                    if _exists(item.path):
                        return
                    named = [*named[:1], item.path]
        if named:
            fix = "see whether their storage is there, and the paths of the list; then start again"
            raise TemporaryError("no file of the list is there", file=named[0], fix=fix)

    def _tasks(self, shards: GrowingShards) -> Iterator[Task]:
        for block in self._pending():
            open_ = [item for item in block if item.number not in self._journal and item.problem is None]
            there = {item.number for item in open_ if self._storage.is_there(item.path)}
            for item in block:
                self._waiting.append(item.number)
                if item.number in there:
                    yield Task(item.number, item, self._journal.clips(item.number))
                    continue
                if item.number not in self._journal:
                    self._add(item.number, item.problem or NO_FILE)
                    self._report()
                self._drain(shards)

    def _add(self, number: int, outcome: Outcome) -> None:
        self._journal.append(number, outcome)
        self.done += not isinstance(outcome, ClipSample)
        if isinstance(outcome, str):
            self._n_bad += 1
            self._reasons[short(outcome)] += 1
        self._check()

    def _check(self) -> None:
        if self._n_bad > self._most_bad:
            raise DataError(
                "too many items give no sample",
                where="--max-bad",
                got=f"{self._n_bad} of {self.done} so far",
                expected=f"at most {self._most_bad} of {self.total}",
                fix=f"{QUARANTINE_FILE} says why; mend it and add --retry-quarantined, or raise --max-bad",
            )

    def _drain(self, shards: GrowingShards) -> None:
        """Put what is done into shards, up to the first item that is not."""
        while self._waiting and self._waiting[0] in self._journal:
            number = self._waiting.popleft()
            outcome = self._journal.read(number)
            if not isinstance(outcome, str):
                self._check_samples(number, outcome.samples)
            shards.put(number, outcome)

    def _check_samples(self, number: int, samples: tuple[ShardSample, ...]) -> None:
        for sample in samples:
            if parse_key(sample.key)[0] != f"{number:016x}":
                fix = "remove it: what it holds is made anew"
                raise DataError("a sample of another list", file=self._folder.journal, got=sample.key, fix=fix)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                TokenizeProgress(done=self.done, total=self.total, quarantined=self._n_bad, frames=self._frames)
            )
        if (now := time.monotonic()) - self._told >= TOLD_EVERY_S:
            self._told = now
            self.tell()

    def tell(self) -> None:
        """Write down how far the work is and how fast, for who looks from outside."""
        rate = Rate(
            done=self.done,
            total=self.total,
            reasons=dict(self._reasons),
            per_s=(self.done - self._done_before) / max(time.monotonic() - self._begun, 1e-3),
            time=time.time(),
        )
        write_atomically(self._folder.rate, json.dumps(rate).encode() + b"\n")

    def write_quarantine(self) -> int:
        """Say in quarantine.jsonl why each item of the list that gave no sample gave none; returns their number."""
        reasons = self._ledger.reasons()
        reasons |= {number: str(self._journal.read(number)) for number in self._journal.quarantined}
        numbers = np.array(sorted(reasons), np.uint64)
        entries = [
            {"path": item.name, "line": item.line, "reason": reasons[item.number]}
            for block in self._items.blocks(lambda found: np.isin(found, numbers))
            for item in block
        ]
        write_atomically(self._folder.quarantine, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        return len(entries)
