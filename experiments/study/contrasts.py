"""What a study asks of its rows beside their differences to the first: contrasts named beforehand, and power laws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.evaluation.bootstrap import CONFIDENCE
from experiments.study.collect import Condition
from experiments.study.config import Contrast, Fit, Study
from experiments.study.statistics import Estimate, Values, alike

RESAMPLES = 1000
GRID = 16  # places along x at which a frontier is read off

Rows = dict[tuple[str, ...], list[tuple[float, Mapping[int, Values]]]]
"""By training: x of each of its rows, and the values of y by seed."""


def contrast_values(contrast: Contrast, conditions: Sequence[Condition]) -> list[Values]:
    """Of each seed that all of its terms have, by sample where all have as many."""
    by_labels = {condition.labels: condition for condition in conditions}
    terms: list[tuple[int, Mapping[int, Values]]] = []
    for sign, labels in ((1, contrast.row), (-1, contrast.less)) if contrast.less else ((1, contrast.row),):
        row = by_labels.get(tuple(labels))
        for own, names in (1, contrast.plus), (-1, contrast.minus):
            terms += [(sign * own, {} if row is None else row.values[name]) for name in names]
    seeds = set.intersection(*(set(values) for _, values in terms))
    sums = []
    for seed in sorted(seeds):
        signed = [sign * part for (sign, _), part in zip(terms, alike([of[seed] for _, of in terms]), strict=True)]
        sums.append(sum(signed[1:], signed[0]))
    return sums


@dataclass(frozen=True, kw_only=True)
class Line:
    """A power law through the rows of a group.

    Args:
        words: the labels that its rows have in common.
        points: (x, mean of y) of what it was laid through.
        offset: its logarithm at x = 1.
        exponent: its slope in the logarithms.
        difference: of the exponent to that of the first line, both made of the same resamples.
        at_reach: y where the fit's `reach` is.
    """

    words: str
    points: list[tuple[float, float]]
    offset: float
    exponent: Estimate
    difference: Estimate
    at_reach: Estimate


def lines_of(study: Study, fit: Fit, conditions: Sequence[Condition]) -> list[Line]:
    """A line for each group that has points at two x or more; NaN where a figure of 0 or below has no logarithm.

    The intervals are of a bootstrap: samples, the same for all rows, and the seeds of each training are drawn again.
    """
    grouped = _grouped(study, fit, conditions)
    groups = {words: rows for words, rows in grouped.items() if len({x for of in rows.values() for x, _ in of}) > 1}
    if not groups:
        return []
    draws = np.random.default_rng(0)
    sizes = {len(y) for rows in groups.values() for points in rows.values() for _, of in points for y in of.values()}
    drawn = []
    for _ in range(RESAMPLES):
        sample = draws.integers(max(sizes), size=max(sizes)) if len(sizes) == 1 else None
        drawn.append([_line(fit, _curves(rows, draws, sample)) for rows in groups.values()])
    table = np.array(drawn)  # [RESAMPLES, lines, (exponent, offset)]
    at_reach = np.log(fit.reach or 1.0)
    curves = {words: _curves(rows) for words, rows in groups.items()}
    found = np.array([_line(fit, of_group) for of_group in curves.values()])
    return [
        Line(
            words=words,
            points=sorted(point for curve in of_group for point in curve),
            offset=float(found[i, 1]),
            exponent=_around(found[i, 0], table[:, i, 0]),
            difference=_around(found[i, 0] - found[0, 0], table[:, i, 0] - table[:, 0, 0]),
            at_reach=_around(*(np.exp(line[1] + line[0] * at_reach) for line in (found[i], table[:, i].T))),
        )
        for i, (words, of_group) in enumerate(curves.items())
    ]


def _grouped(study: Study, fit: Fit, conditions: Sequence[Condition]) -> dict[str, Rows]:
    """The rows that count, by the labels that those of one line have in common, and by training of seeds in common."""
    over = [axis in fit.over for axis in study.axes]
    groups: dict[str, Rows] = {}
    for condition in conditions:
        labels, y, x = condition.labels, condition.values[fit.y], condition.values[fit.x]
        counts = (not fit.only or set(fit.only) & set(labels)) and not set(fit.without) & set(labels)
        if y and x and counts:
            words = ", ".join(label for label, is_over in zip(labels, over, strict=True) if not is_over)
            at = float(np.mean([values.mean() for values in x.values()]))
            groups.setdefault(words, {}).setdefault(labels[: len(study.grid)], []).append((at, y))
    return {
        words: {training: points for training, points in rows.items() if _seeds(points)}
        for words, rows in groups.items()
    }


def _seeds(points: Sequence[tuple[float, Mapping[int, Values]]]) -> list[int]:
    """Those that all of the points have."""
    return sorted(set.intersection(*(set(y) for _, y in points)))


def _curves(
    rows: Rows, draws: np.random.Generator | None = None, sample: NDArray[np.int64] | None = None
) -> list[list[tuple[float, float]]]:
    """Of each training (x, y), rising; y is the mean over seeds and samples, or over as many of them drawn anew."""
    curves = []
    for points in rows.values():
        seeds = _seeds(points)
        chosen = seeds if draws is None else draws.choice(seeds, len(seeds))
        curves.append(
            [
                (x, float(np.mean([y[int(seed)] if sample is None else y[int(seed)][sample] for seed in chosen])))
                for x, y in sorted(points, key=lambda point: point[0])
            ]
        )
    return curves


def _line(fit: Fit, curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """The exponent, and the logarithm at x = 1; NaN where there is no logarithm."""
    if any(min(point) <= 0 for curve in curves for point in curve):
        return math.nan, math.nan
    logs = [np.log(np.array(curve)).T for curve in curves]  # x and y, [2, points]
    if fit.frontier:
        x = np.linspace(min(log[0, 0] for log in logs), max(log[0, -1] for log in logs), GRID)
        y = np.min([np.interp(x, log[0], log[1], left=np.inf, right=np.inf) for log in logs], 0)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    else:
        x, y = np.concatenate(logs, 1)
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset)


def _around(found: float, drawn: NDArray[np.float64]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Estimate(float(found), float(low), float(high), len(drawn))
