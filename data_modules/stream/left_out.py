"""The account of what a run's data lacked: left_out.jsonl in the run's folder, a line for each sample or shard.

    {"step": 1200, "shard": "data/videos/shard-000003.tar", "key": "clip-0017", "reason": "...", "samples": 1, ...}
    {"step": 1210, "shard": "data/videos/shard-000007.tar", "key": null, "reason": "shard missing", "samples": 64, ...}

All ranks and all attempts of a run write the one file, each thing once. What a line is about is told by the shard's
name and digest and the sample's place, so that it stays the same where another machine has the data in another folder.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Self

from pydantic import with_config
from typing_extensions import TypedDict

from data_modules.shards.reading import read_patiently
from lumos_pl.errors import ConfigError, DataError, FileError, TemporaryError, located
from lumos_pl.machinery.atomic_file import naming, write_atomically
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.json_file import Count, parse_json
from lumos_pl.machinery.own_files import append
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.machinery.retrying import RetryConfig

LEFT_OUT_FILE = "left_out.jsonl"
_LOCK_WAIT_S = 10.0  # another rank holds it for milliseconds; without it a line may be there twice, and none is lost

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A sample, or a shard of which nothing can be used.

    Args:
        shard: its file.
        sha256: what the manifest says of it.
        place: of the sample in the shard; None: all of it.
        key: of the sample; None: of a shard, or where none can be read.
        samples: how many it counts for.
        reason: why it cannot be used, in a few words.
    """

    shard: str
    sha256: str
    place: int | None
    key: str | None
    samples: int
    reason: str

    @property
    def whole_shard(self) -> tuple[str, str]:
        """Name and digest of the shard, wherever it lies."""
        return Path(self.shard).name, self.sha256


@with_config(extra="forbid")
class _Line(TypedDict):
    step: Count
    shard: str
    sha256: str
    place: Count | None
    key: str | None
    samples: Count
    reason: str


class TooManyLeftOut(DataError):
    """More samples cannot be used than may be left out, as far as one worker knows."""

    left_out: tuple[LeftOut, ...] = ()

    def with_list(self, left_out: Iterable[LeftOut]) -> Self:
        """This error with what it is about, for the account."""
        self.left_out = tuple(left_out)
        return self


def count_samples(left_out: Iterable[LeftOut]) -> int:
    """How many samples some entries are about; none counts twice that stands for itself and with its shard."""
    shards: dict[tuple[str, str], int] = {}
    places: set[tuple[tuple[str, str], int]] = set()
    for one in left_out:
        if one.place is None:
            shards[one.whole_shard] = one.samples
        else:
            places.add((one.whole_shard, one.place))
    return sum(shards.values()) + sum(shard not in shards for shard, _ in places)


class Account:
    """What one rank knows of the account, and adds to it.

    Args:
        folder: of the run; None: nothing is written, as in a dry run or without a Trainer.
        most: samples that may be left out.
        retry: of writes that fail for a while.
    """

    def __init__(self, folder: Path | None, most: int, retry: RetryConfig) -> None:
        self.folder = folder
        self.file = None if folder is None else folder / LEFT_OUT_FILE
        self._most, self._retry = most, retry
        self._noted: dict[tuple[tuple[str, str], int | None], LeftOut] = {}
        self._read_size = -1
        self._last: LeftOut | None = None

    def total(self) -> int:
        """Samples that were left out so far, by all ranks and attempts."""
        if self.file is not None:
            with suppress(FileNotFoundError):
                if self.file.lstat().st_size != self._read_size:
                    self._take(self._read()[0])
        return count_samples(self._noted.values())

    def check(self) -> None:
        """Raise DataError if more was left out than may be."""
        total = self.total()
        if total > self._most:
            raise self._too_many(total)

    def note(self, left_out: Sequence[LeftOut], step: int) -> None:
        """Add what is not in the account yet, on the disk before this returns.

        Raises:
            DataError: it is more than may be left out; the account holds it all the same.
        """
        new = self._unknown(left_out)
        if not new:
            return
        if self.file is not None:
            with naming(self.file):
                read_patiently(partial(self._add, new, step), self.file, self._retry, was_there=False)
        self._take(new)
        for one in new:
            log.warning("left out: %s: %s%s", one.shard, f"sample {one.key}: " if one.key else "", one.reason)
        self.check()

    def _unknown(self, left_out: Iterable[LeftOut]) -> list[LeftOut]:
        found = {(one.whole_shard, one.place): one for one in left_out}
        return [one for name, one in found.items() if name not in self._noted and (name[0], None) not in self._noted]

    def _take(self, left_out: Iterable[LeftOut]) -> None:
        for one in left_out:
            self._noted[one.whole_shard, one.place] = self._last = one

    def _add(self, new: list[LeftOut], step: int) -> None:
        assert self.file is not None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.file):
            there, whole = self._read() if os.path.lexists(self.file) else ([], b"")
            self._take(there)
            lines = "".join(json.dumps({"step": step, **asdict(one)}) + "\n" for one in self._unknown(new)).encode()
            if self._read_size != len(whole):  # a kill has torn the last line
                write_atomically(self.file, whole + lines)
            elif lines:
                append(self.file, lines)

    def _read(self) -> tuple[list[LeftOut], bytes]:
        """What the file says, and its whole lines."""
        assert self.file is not None
        content = read_regular(self.file, follow=False)
        self._read_size = len(content)
        whole = content[: content.rfind(b"\n") + 1]
        found = []
        with located(self.file):
            for number, line in enumerate(whole.splitlines(), start=1):
                with located(where=f"line {number}"):
                    values = dict(parse_json(line, _Line))
                del values["step"]
                found.append(LeftOut(**values))  # type: ignore[arg-type]
        return found, whole

    def _too_many(self, total: int) -> DataError:
        last = self._last
        return DataError(
            "too many samples cannot be used",
            file=self.file,
            where=None if last is None else f"{last.shard}: {last.reason}",
            got=f"{total} left out",
            expected=f"at most {self._most} (data.max_bad_samples)",
            fix="the list names them: repair or copy their shards anew and remove it, or allow more",
        )


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other ranks from the file, where the file system can."""
    lock = file.with_name(f".{file.name}.lock")
    with ExitStack() as stack:
        until = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                stack.enter_context(file_lock(lock))
                break
            except TemporaryError:  # another rank holds it
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
            except (ConfigError, FileError):  # there are no locks here
                break
        yield
