"""The attempts of a run, as its folder tells of them: a line for each start and each end.

attempts.jsonl   {"event": "start", "time": 1.7e9, "step": 0, "ranks": 8, "host": "n1", "pid": 4711}
                 {"event": "end", "time": 1.7e9, "step": 120, "status": 143, "line": ""}
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, Required

from pydantic import with_config
from typing_extensions import TypedDict

from lumos_pl.errors import DataError
from lumos_pl.machinery.json_file import Count, Number, parse_json
from lumos_pl.machinery.regular_file import open_regular

ATTEMPTS = "attempts.jsonl"
LONGEST_LINE = 1 << 16


@with_config(extra="allow")
class Attempt(TypedDict, total=False):
    """A line; `status` and `line` are of an end, `ranks`, `host` and `pid` of a start."""

    event: Required[Literal["start", "end"]]
    time: Required[Number]
    step: Required[Count]
    ranks: Count
    host: str
    pid: Count
    status: int
    line: str


def read_attempts(folder: Path) -> list[Attempt]:
    """What a run's folder tells of its attempts, in their order; a line that is none is passed over."""
    file = folder / ATTEMPTS
    if not os.path.lexists(file):
        return []
    return list(_parsed(file))


def _parsed(file: Path) -> Iterator[Attempt]:
    with suppress(DataError), open_regular(file, at_most=None) as stream:
        while line := stream.readline(LONGEST_LINE):
            with suppress(DataError):
                yield parse_json(line, Attempt)


def count_restarts(folder: Path) -> int | None:
    """How often a run was started again; None: its folder does not say."""
    starts = sum(attempt["event"] == "start" for attempt in read_attempts(folder))
    return starts - 1 if starts else None
