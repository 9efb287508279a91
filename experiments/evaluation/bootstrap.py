"""How sure a measure is: 95% intervals by resampling its samples.

Resampling n samples always takes the same rows, whatever is measured: so two models that were
measured on the same samples are resampled alike, and the interval of a difference is that of the
samples' differences, `of_samples(a - b)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from lumos_pl.seeding import generator

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Measure:
    """
    Args:
        mean: the value.
        low, high: ends of its interval; None where one sample has no spread.
        n: samples that have a value.
        values: of each sample, None where it has none; None altogether where only all samples together have a value.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    values: list[float | None] | None = None

    @property
    def numbers(self) -> list[float]:
        return [number for number in (self.mean, self.low, self.high, *(self.values or ())) if number is not None]

    def exp(self) -> Measure:
        """The measure that this one is the logarithm of: perplexity of a loss."""
        low, high = (None if end is None else math.exp(end) for end in (self.low, self.high))
        return replace(self, mean=math.exp(self.mean), low=low, high=high, values=None)


class Measured(NamedTuple):
    """What a part found.

    Args:
        measures: by name.
        samples: for the measures whose names begin with the key, what their values are of: keys of clips, or captions.
        times: wall times, by name; no measures, for no two evaluations have the same.
    """

    measures: dict[str, Measure]
    samples: dict[str, list[str]]
    times: Mapping[str, float] = MappingProxyType({})

    @classmethod
    def of(
        cls, part: str, rows: Mapping[str, Sequence[Mapping[str, float]]], samples: list[str], *, seed: int
    ) -> Measured:
        """A part's measures, from what each sample has in each of its rows."""
        measured = cls({}, {part: samples})
        for row, values in rows.items():
            measured.measures.update(of_rows(f"{part}/{row}", values, seed=seed))
        return measured


@lru_cache(maxsize=8)
def resampled(n: int, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """Which samples each resample is made of, [resamples, n]."""
    return torch.randint(n, (resamples, n), generator=generator(seed, "bootstrap", n))


def of_samples(values: Sequence[float | None], *, seed: int, level: float = CONFIDENCE) -> Measure:
    """The mean over the samples that have a value, with its percentile interval; at least one has.

    An interval without width at a share of 0 or 1 says no more than that n samples were alike.
    """
    numbers = [None if value is None else float(value) for value in values]
    present = torch.tensor([number for number in numbers if number is not None], dtype=torch.float64)
    n = len(present)
    low, high = _ends(present[resampled(n, seed)].mean(1), level) if n > 1 else (None, None)
    return Measure(mean=present.mean().item(), low=low, high=high, n=n, values=numbers)


def of_rows(prefix: str, rows: Sequence[Mapping[str, float]], *, seed: int) -> dict[str, Measure]:
    """A measure `prefix/name` of each name that occurs, from the values of each sample."""
    names: dict[str, None] = {name: None for row in rows for name in row}
    return {f"{prefix}/{name}": of_samples([row.get(name) for row in rows], seed=seed) for name in names}


def of_statistic(statistic: Callable[[Tensor], float], n: int, *, seed: int, resamples: int) -> Measure:
    """A statistic of all n samples together, with an interval around it.

    A resample has fewer distinct samples, which biases statistics such as a Fréchet distance upwards: the
    resamples give the interval's width, and their mean is moved to the value itself.

    Args:
        statistic: of the samples with these indices, [n].
    """
    value = statistic(torch.arange(n))
    drawn = torch.tensor([statistic(index) for index in resampled(n, seed, resamples)], dtype=torch.float64)
    low, high = _ends(drawn - drawn.mean() + value)
    return Measure(mean=value, low=low, high=high, n=n)


def _ends(drawn: Tensor, level: float = CONFIDENCE) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
