"""Which source each step of a mixture is of: as many of each as the weights say, by arithmetic alone.

    weights a 2, b 1, c 1      step    0  1  2  3  4  5  6  7
                               a | bc  a  .  a  .  a  .  a  .      a tree of pairs, here ((a, b), c): each pair divides
                               b | c   .  b  .  c  .  b  .  c      its steps by the weights of its two sides

A pair adds up the share of its left side, step by step; whenever the sum comes past a whole number, the step is the
left side's. So each side is never more than half a step away from its share of the pair's steps, and nothing is drawn.
Steps with the same weights are added up at once and others by the block, so the way to step 500,000 is short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lumos_pl.errors import ConfigError
from lumos_pl.settings.ranges import LARGEST_COUNT

BLOCK = 1 << 14  # steps that are settled at once
UNIT = 1 << 40  # of a share: sums of a block of them are exact in 64 bits
LARGEST_WEIGHT = 1e9
EXPECTED = "a number above 0, or points [[step, weight], ...] of ascending steps"

Numbers = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Weights:
    """The weight of a source at each step: on the lines between points, and as at the nearest before and after them.

    Args:
        points: step and weight of each; of two of the same step the first is where a line ends, and the second holds.
    """

    points: tuple[tuple[int, float], ...]

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """Those of a setting: `2`, or `[[0, 1], [20000, 3]]`.

        Raises:
            ConfigError: it is neither, or never above 0.
        """
        points = value if isinstance(value, list | tuple) else [[0, value]]
        found = []
        for point in points:
            step, weight = point if isinstance(point, list | tuple) and len(point) == 2 else (None, None)
            if not (_is_step(step) and _is_weight(weight)):
                raise ConfigError("not a weight", where=where, got=repr(value)[:100], expected=EXPECTED)
            found.append((int(step), float(weight)))  # type: ignore[arg-type]
        steps = [step for step, _ in found]
        if steps != sorted(steps) or any(first == third for first, third in zip(steps, steps[2:], strict=False)):
            raise ConfigError("not a weight", where=where, got=repr(value)[:100], expected=EXPECTED)
        if not any(weight for _, weight in found):
            raise ConfigError("a source that is never read", where=where, got=repr(value)[:100], expected=EXPECTED)
        return cls(tuple(found))

    def at(self, steps: Steps) -> Numbers:
        """The weight at each of some steps."""
        if len(self.points) == 1:
            return np.full(len(steps), self.points[0][1])
        points = np.array(self.points, np.float64)
        after = np.searchsorted(points[:, 0], steps, side="right")
        (from_step, low), (to_step, high) = (points[np.clip(at, 0, len(points) - 1)].T for at in (after - 1, after))
        part = (steps - from_step) / np.maximum(to_step - from_step, 1)
        return np.asarray(np.where((after == 0) | (after == len(points)), low, low + part * (high - low)))

    def same_until(self, step: int) -> float:
        """Up to which step, that one not counted, the weight is what it is at this step."""
        after = next((place for place, (at, _) in enumerate(self.points) if at > step), None)
        if after is None:
            return math.inf
        (_, before), (at, weight) = self.points[max(0, after - 1)], self.points[after]
        return at if after == 0 or before == weight else step + 1


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_WEIGHT


def check_weights(weights: Mapping[str, Weights], where: str) -> None:
    """Raise ConfigError for a step at which no source has a weight.

    Between the points of all sources, the sum of their weights is a line: where it is not 0 beside each, it never is.
    """
    beside = {step + offset for each in weights.values() for step, _ in each.points for offset in (-1, 0, 1)}
    steps = np.array(sorted(step for step in beside if step >= 0), np.int64)
    missing = steps[sum(each.at(steps) for each in weights.values()) == 0]
    if len(missing):
        got, expected = f"0 in all at step {missing[0]}", "a source with a weight at each step"
        raise ConfigError("no source to read", where=where, got=got, expected=expected)


class Mixture:
    """The sources of a run's micro-batches: those of a step are all of one source.

    So no rank waits for another's longer batch, each stream of a source is read by few workers, and the order is the
    same for any world size with equal `per_step`.

    Args:
        weights: of each source, by name; one that is added behind the others with no weight yet changes nothing before.
        per_step: micro-batches of an optimizer step over all ranks.
    """

    def __init__(self, weights: Mapping[str, Weights], per_step: int = 1) -> None:
        self.names, self._weights, self._per_step = tuple(weights), tuple(weights.values()), per_step
        self._sums = _Sums.none(len(weights))
        self._block: tuple[Steps, Steps] | None = None  # the source of each step, and how many of it came before

    def locate(self, micro_batch: int) -> tuple[str, int]:
        """The source of a micro-batch of the run, and its number among those of that source.

        Quick for numbers that ascend, and after others too.
        """
        step, within = divmod(micro_batch, self._per_step)
        chosen, numbers = self._reach(step)
        source, before = int(chosen[step % BLOCK]), int(numbers[step % BLOCK])
        return self.names[source], before * self._per_step + within

    def steps_before(self, step: int) -> dict[str, int]:
        """How many of the steps before one are of each source."""
        counts = np.bincount(self._reach(step)[0][: step % BLOCK], minlength=len(self.names)).tolist()
        return {name: before + n for name, before, n in zip(self.names, self._sums.before, counts, strict=True)}

    def _reach(self, step: int) -> tuple[Steps, Steps]:
        """The block that a step is in."""
        start = step - step % BLOCK
        if self._block is None or self._sums.start != start:
            if start < self._sums.start:
                self._sums = _Sums.none(len(self.names))
            while self._sums.start < start:
                self._sums = self._sums.ahead(self._weights, start)
            chosen = self._sums.block(self._weights)[0]
            numbers = np.zeros(BLOCK, np.int64)
            for source, before in enumerate(self._sums.before):
                own = chosen == source
                numbers[own] = before + np.arange(np.count_nonzero(own))
            self._block = chosen, numbers
        return self._block


@dataclass(frozen=True)
class _Sums:
    """Where the sums stand before a block.

    Args:
        start: the first step of the block.
        before: steps of each source before it.
        left: of each pair, what its sum is past a whole number, in units of a share; by the sources that it divides.
    """

    start: int
    before: tuple[int, ...]
    left: Mapping[tuple[int, int], int]

    @classmethod
    def none(cls, n_sources: int) -> Self:
        return cls(0, (0,) * n_sources, {})

    def ahead(self, weights: Sequence[Weights], end: int) -> Self:
        """Those before a later block: `end` where the weights are the same until there, else the next one at least."""
        same = min(each.same_until(self.start) for each in weights)
        n_steps = int(min(end, same) - self.start) // BLOCK * BLOCK
        left = dict(self.left)
        if n_steps:
            at = _at(weights, np.array([self.start], np.int64))
            counts = _count(at, n_steps, 0, len(weights), left)
        else:
            n_steps, (chosen, left) = BLOCK, self.block(weights)
            counts = np.bincount(chosen, minlength=len(weights)).tolist()
        before = tuple(n + more for n, more in zip(self.before, counts, strict=True))
        return type(self)(self.start + n_steps, before, left)

    def block(self, weights: Sequence[Weights]) -> tuple[Steps, dict[tuple[int, int], int]]:
        """The source of each step of the block, and the sums after it."""
        at = _at(weights, np.arange(self.start, self.start + BLOCK, dtype=np.int64))
        chosen, left = np.zeros(BLOCK, np.int64), dict(self.left)
        _divide(at, chosen, np.arange(BLOCK), 0, len(weights), left)
        return chosen, left


def _at(weights: Sequence[Weights], steps: Steps) -> Numbers:
    """[n_sources, n_steps] weights."""
    return np.stack([each.at(steps) for each in weights])


def _middle(low: int, high: int) -> int:
    """Where a pair divides the sources from `low` to `high`.

    Its left side has a power of two of them, so that one more at the end changes no pair that was there before.
    """
    return low + (1 << (high - low - 1).bit_length() - 1)


def _units(at: Numbers, low: int, high: int) -> Steps:
    """The share of a pair's left side at each step of `at`, in units."""
    left = np.add.accumulate(at[low : _middle(low, high)])[-1]  # whose rounding does not depend on how many steps
    right = np.add.accumulate(at[_middle(low, high) : high])[-1]
    return np.asarray(np.rint(left / (left + right) * UNIT), np.int64)


def _divide(at: Numbers, chosen: Steps, steps: Steps, low: int, high: int, sums: dict[tuple[int, int], int]) -> None:
    """Give some steps of a block to the sources from `low` to `high`, and go on with the sums.

    Args:
        at: weight of each source at each step of the block.
        chosen: of each step of the block, where the source's number is written.
    """
    if high - low == 1 or not len(steps):
        chosen[steps] = low
        return
    total = np.cumsum(_units(at[:, steps], low, high)) + sums.get((low, high), UNIT // 2)
    is_left = np.diff(total // UNIT, prepend=0) > 0
    sums[low, high] = int(total[-1]) % UNIT
    _divide(at, chosen, steps[is_left], low, _middle(low, high), sums)
    _divide(at, chosen, steps[~is_left], _middle(low, high), high, sums)


def _count(at: Numbers, n_steps: int, low: int, high: int, sums: dict[tuple[int, int], int]) -> list[int]:
    """How many of some steps with equal weights `_divide` gives to each of the sources, and go on with the sums."""
    if high - low == 1 or not n_steps:
        return [n_steps] * (high - low)
    total = sums.get((low, high), UNIT // 2) + n_steps * int(_units(at, low, high)[0])
    n_left, sums[low, high] = divmod(total, UNIT)
    middle = _middle(low, high)
    return _count(at, n_left, low, middle, sums) + _count(at, n_steps - n_left, middle, high, sums)
