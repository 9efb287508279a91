"""Means with 95% intervals, over seeds and over single samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.bootstrap import CONFIDENCE, of_samples

SMALLEST_P, P_STEPS = 1e-5, 24

Values = NDArray[np.float64]
"""One measure of one seed: a figure per sample, [M]; M = 1 where only their mean, or no sample, is known."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval; NaN where there is nothing to tell it from."""

    mean: float
    low: float
    high: float
    n: int  # seeds


def estimate(seeds: Sequence[Values], *, level: float = CONFIDENCE, share: bool = False) -> Estimate:
    """The mean over seeds, which all judged the same samples in the same order; else only their means count.

    The interval joins two doubts as independent ones, by the root of the sum of their squares: Student's t over
    the seeds' means, and where samples are known the bootstrap over these, for seeds that agree on 48 captions may
    all be off on others.

    Args:
        seeds: the values of each, [M].
        level: of the interval.
        share: whether they are shares of a whole: the interval keeps to 0 to 1 then.
    """
    if not seeds:
        return Estimate(math.nan, math.nan, math.nan, 0)
    table = np.stack(alike(seeds))  # [n, M]
    means, mean, n = table.mean(1), float(table.mean()), len(table)
    reaches = []  # below and above the mean
    if n > 1:
        half = student_t(n - 1, level) * float(means.std(ddof=1)) / math.sqrt(n)
        reaches.append((half, half))
    samples = of_samples(table.mean(0).tolist(), seed=0, level=level)
    if samples.low is not None and samples.high is not None:
        reaches.append((mean - samples.low, samples.high - mean))
    if not reaches:
        return Estimate(mean, math.nan, math.nan, n)
    below, above = (math.hypot(*each) for each in zip(*reaches, strict=True))
    low, high = mean - below, mean + above
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(mean, low, high, n)


def paired_difference(seeds: Mapping[int, Values], first: Mapping[int, Values]) -> Estimate:
    """How much more than the first, over the seeds that both have; by seed and, where both have as many, by sample."""
    return estimate(paired(seeds, first))


def paired(seeds: Mapping[int, Values], first: Mapping[int, Values]) -> list[Values]:
    """The differences of `paired_difference`, of each seed."""
    pairs = [alike([values, first[seed]]) for seed, values in seeds.items() if seed in first]
    return [left - right for left, right in pairs]


def alike(values: Sequence[Values]) -> Sequence[Values]:
    """These, or their means where they are of other samples each: cells that differ in their data."""
    return [one.mean(keepdims=True) for one in values] if len({one.shape for one in values}) > 1 else values


def p_value(differences: Sequence[Values]) -> float:
    """How improbable differences as far from 0 are where there is none: 1 - the level of the interval that ends at 0.

    NaN where there is no interval.
    """
    found = estimate(differences)
    if math.isnan(found.low):
        return math.nan
    below, above = SMALLEST_P, 1.0
    for _ in range(P_STEPS):
        middle = math.sqrt(below * above)
        wide = estimate(differences, level=1 - middle)
        below, above = (below, middle) if wide.low > 0 or wide.high < 0 else (middle, above)
    return above


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values under which, of all these questions, a false yes to any is as rare as they say.

    The smallest is multiplied by their number, the next by one less, and none comes out below one before it.
    Those that are NaN have no answer yet; they count as questions all the same, or others would be clear until the
    last one is asked. Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    asked = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(asked):
        least = max(least, min(1.0, p * (len(p_values) - rank)))
        corrected[place] = least
    return corrected


def student_t(df: int, level: float = CONFIDENCE) -> float:
    """The t that Student's distribution stays within, on either side, with that probability."""
    low, high = 0.0, 1.0
    while _within(high, df) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < level else (low, middle)
    return high


def _within(t: float, df: int) -> float:
    """P(|T| < t), exactly: the finite series of Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(df))
    cos, sin = math.cos(angle), math.sin(angle)
    term, total = (cos, 0.0) if df % 2 else (1.0, 0.0)
    for k in range(1 + df % 2, df, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    return 2 / math.pi * (angle + sin * total) if df % 2 else sin * total
