"""A campaign: many seeded instances of one kind of fault, each judged by what became of it."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from lumos_pl.errors import LumosError

CRASH = "crash"  # an exception that is not one of the expected failures

Value = TypeVar("Value")


class Verdict(NamedTuple):
    """What became of an instance, and what was done to whom."""

    outcome: str
    detail: str = ""


class Draw(random.Random):
    """Where an instance's choices come from, and its number in the campaign."""

    number: int

    @classmethod
    def of(cls, seed: int, campaign: str, number: int) -> Self:
        draw = cls(f"{seed} {campaign} {number}")
        draw.number = number
        return draw


Judge = Callable[[Draw], Verdict | None]
"""Draws an instance, runs it and says its outcome; None: it came to nothing, and another one is to be drawn."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """One line of RELIABILITY.md's figures.

    Args:
        title: what its instances are.
        instances: how many at scale 1.
        held: outcomes that keep the promise.
        broken: outcomes that must not occur; an exception that is not expected counts as `crash`.
        open: given an empty folder, prepares what the instances share.
    """

    name: str
    title: str
    instances: int
    held: tuple[str, ...]
    broken: tuple[str, ...]
    open: Callable[[Path], AbstractContextManager[Judge]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a campaign found.

    Args:
        held: the outcomes that keep the promise.
        missed: one entry per broken promise: the instance's number, its outcome, and its details.
    """

    name: str
    title: str
    instances: int
    held: tuple[str, ...]
    counts: dict[str, int]
    missed: list[dict[str, str | int]]
    seconds: float

    @property
    def line(self) -> str:
        """The figures; an outcome that every instance must have stands with their number."""
        of = f"/{self.instances:,}" if len(self.held) == 1 else ""
        counts = [f"{name} {n:,}{of if name in self.held else ''}" for name, n in self.counts.items()]
        return f"{self.instances:,} {self.title}: {', '.join(counts)} ({self.seconds:.0f} s)"


def run_campaign(
    campaign: Campaign, *, seed: int, instances: int, only: int | None = None, on_progress: Callable[[], None]
) -> Report:
    """Judge so many instances; each depends on the seed and its number alone.

    Args:
        only: judge the instance of this number and no other.
        on_progress: called after each.
    """
    counts = Counter(dict.fromkeys((*campaign.held, *campaign.broken), 0))
    missed: list[dict[str, str | int]] = []
    begun = time.monotonic()
    numbers: Sequence[int] = range(instances) if only is None else [only]
    with tempfile.TemporaryDirectory(prefix=f"faults-{campaign.name}-") as folder, campaign.open(Path(folder)) as judge:
        for number in numbers:
            verdict = _judged(judge, Draw.of(seed, campaign.name, number))
            counts[verdict.outcome] += 1
            if verdict.outcome not in campaign.held:
                missed.append({"instance": number, "outcome": verdict.outcome, "detail": verdict.detail})
            on_progress()
    return Report(
        name=campaign.name,
        title=campaign.title,
        instances=len(numbers),
        held=campaign.held,
        counts=dict(counts),
        missed=missed,
        seconds=time.monotonic() - begun,
    )


def _judged(judge: Judge, draw: Draw) -> Verdict:
    try:
        while (verdict := judge(draw)) is None:
            pass
        return verdict
    except Exception as error:
        return Verdict(CRASH, f"{type(error).__name__}: {error}")


def attempt(work: Callable[[], Value]) -> Value | LumosError:
    """What `work` returns, or the expected failure it raises."""
    try:
        return work()
    except LumosError as error:
        return error
