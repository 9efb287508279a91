"""The figures of a study, each one panel that a phone can show.

Text and axes are of a grey that stands out from white and from black, over no background of their own. Lines have their
names at their ends, and a dash and marker of their own: no hue is needed to tell them, and no pointer.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter

from callbacks.loss_history import spread
from experiments.study.collect import Condition, Curve, Run, frame_losses, is_counted, tail_means, unit_of
from experiments.study.config import Study
from experiments.study.contrasts import Line
from experiments.study.statistics import Estimate

INK = "#7d7871"  # the soft ink of the pages, between their light and their dark one
COLORS = ["#1f83c9", "#e07b00", "#2f9e5b", "#cf4a7d", "#8a6fd1", "#9c7a3c", "#5b8f99", "#b0501e"]
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (2.5, 1)), (0, (6, 1, 1, 1, 1, 1))]
MARKERS = "osD^vP*"  # not as many as colours: the ninth line has another marker than the first
SHOWN_MARKERS = 7  # of a line with many points
LABEL_GAP, LABEL_FROM = 0.075, 1.04  # of the panel's height and width
MOST_LABELS, LONGEST_LABEL = 9, 24  # beside a panel; more, or longer ones, stand above it
MOST_TICKS = 6  # where something was measured at more places than that, round numbers are written
WIDTH, HEIGHT = 5.2, 3.6  # inches
CURVE_POINTS = 40  # of a series with a value every step, each the mean of its neighbours
LEAST_ON_A_LINE = 3
APART = 0.008  # of the width: neighbouring intervals, so that they do not hide each other
ROOM = 0.4  # of the way from one place to the next, which the intervals of a place keep within
TICKS_APART = 0.09  # of the width, which a number takes
STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "legend.frameon": False,
    "text.parse_math": False,  # labels are a study's own words
    "svg.hashsalt": "lumos",  # the same bytes every time
}


@dataclass
class Series:
    """A line and the range around it."""

    label: str
    x: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, x: float, mean: float, low: float, high: float) -> None:
        self.x.append(x)
        self.mean.append(mean)
        self.low.append(mean if math.isnan(low) else low)
        self.high.append(mean if math.isnan(high) else high)


@dataclass(frozen=True)
class Picture:
    """A painted figure: the files' name without its ending, what it shows, and both files' content."""

    name: str
    about: str
    png: bytes
    svg: bytes


def paint_all(study: Study, runs: Sequence[Run], conditions: Sequence[Condition]) -> Iterator[Picture]:
    """Every figure there is something to paint for."""
    for i, name in enumerate(study.measures):
        yield from _measure(study, conditions, name, f"measure_{i:02d}")
    keys = ", ".join(study.grid)
    for phase, words in ("train", "training"), ("val", "validation"):
        tag = f"loss/{phase}"
        series = _over_seeds(runs, [dict(thin(run.curves[tag])) if tag in run.curves else {} for run in runs])
        about = f"{words} loss, each with the mask of its own; line: mean over seeds, band: their range"
        y = f"{words} loss (nats)"
        yield from _lines(f"curve_{phase}", about, series, "step", y, keys, band=True, integers=True)
        series = _over_seeds(runs, [frame_losses(tail_means(run.curves), phase) for run in runs])
        about = f"{words} loss of each latent frame at the end; mean over seeds and their range"
        yield from _lines(f"frames_{phase}", about, series, "latent frame", y, keys, integers=True)

    for name, row in dict.fromkeys(key for run in runs for key in run.frames):
        series = _over_seeds(runs, [run.frames.get((name, row), {}) for run in runs])
        about = f"loss of each latent frame in {name}, {row}: the same masks for all; mean over seeds and their range"
        y = f"loss, {row} (nats)"
        yield from _lines(f"frames_{name}_{row}", about, series, "latent frame", y, keys, integers=True)


def thin(curve: Curve) -> Curve:
    """A long series as CURVE_POINTS means, each at its last step; a short one as it is."""
    size = math.ceil(len(curve) / CURVE_POINTS)
    parts = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _over_seeds(runs: Sequence[Run], found: Sequence[Mapping[int, float]]) -> list[Series]:
    """A line per way to train, over the steps or latent frames that all of its seeds have.

    Args:
        found: of each run, the loss at each of them.
    """
    lines = []
    for label in dict.fromkeys(map(_label, runs)):
        losses = [known for run, known in zip(runs, found, strict=True) if known and _label(run) == label]
        series = Series(label)
        for place in sorted(set.intersection(*map(set, losses))) if losses else []:
            values = [of_run[place] for of_run in losses]
            series.add(place, sum(values) / len(values), min(values), max(values))
        lines.append(series)
    return lines


def _label(run: Run) -> str:
    return run.variant.words or "all"


def _measure(study: Study, conditions: Sequence[Condition], name: str, file: str) -> Iterator[Picture]:
    """A measure against another, along the last axis if that is of numbers, or as dots."""
    shown = [(condition, condition.estimate(study, name)) for condition in conditions]
    shown = [(condition, found) for condition, found in shown if found.n]
    if study.against == name or not shown or is_counted(study.measures[name]):
        return
    y = in_units(study, name)
    about = f"{y}: mean and 95% interval"
    keys, last = ", ".join(study.axes[:-1]), study.axes[-1:]
    if study.against is not None:
        other = study.against
        shown = [(condition, found) for condition, found in shown if condition.values[other]]
        x = [condition.estimate(study, other).mean for condition, _ in shown]
        yield from _lines(
            file, f"{about}, by {', '.join(last)} along a line", _along(shown, x), in_units(study, other), y, keys
        )
    elif (numbers := _numbers(shown)) is not None:
        yield from _lines(file, about, _along(shown, numbers), last[0], y, keys)
    else:
        yield _dots(file, about, y, shown)


def in_units(study: Study, measure: str) -> str:
    """A measure's name and, of an evaluation's, its unit: the name alone may be as short as `65 frames`."""
    unit = unit_of(study.measures[measure])
    return f"{measure} ({unit})" if unit else measure


def _numbers(shown: Sequence[tuple[Condition, Estimate]]) -> list[float] | None:
    """The last axis's labels, where they are three numbers or more."""
    try:
        numbers = [float(condition.labels[-1]) for condition, _ in shown]
    except (ValueError, IndexError):
        return None
    return numbers if len(set(numbers)) >= LEAST_ON_A_LINE else None


def _along(shown: Sequence[tuple[Condition, Estimate]], x: Sequence[float]) -> list[Series]:
    """A line per combination of all axes but the last."""
    series: dict[str, Series] = {}
    for (condition, found), place in zip(shown, x, strict=True):
        label = ", ".join(condition.labels[:-1])
        series.setdefault(label, Series(label)).add(place, found.mean, found.low, found.high)
    return list(series.values())


def _lines(
    file: str,
    about: str,
    series: Sequence[Series],
    x: str,
    y: str,
    keys: str,
    *,
    band: bool = False,
    integers: bool = False,
) -> Iterator[Picture]:
    """A panel with a line per series, which `keys` names together; none where nothing is known."""
    known = [one for one in series if one.x]
    if not known:
        return
    places = sorted({x for one in known for x in one.x})
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(HEIGHT)
        for number, one in enumerate(known):
            look = look_of(number)
            if band:
                axes.plot(one.x, one.mean, label=one.label, markevery=max(1, len(one.x) // SHOWN_MARKERS), **look)
                axes.fill_between(one.x, one.low, one.high, color=look["color"], alpha=0.2, linewidth=0)
            else:
                reach = np.abs([np.subtract(one.mean, one.low), np.subtract(one.high, one.mean)])
                beside = np.array(one.x) + shift(places, number, len(known))
                axes.errorbar(beside, one.mean, reach, label=one.label, capsize=2, elinewidth=1, **look)
        axes.set(xlabel=x, ylabel=y)
        measured = not band and len(places) <= MOST_TICKS
        axes.xaxis.set_major_locator(FixedLocator(legible(places)) if measured else MaxNLocator(integer=integers))
        if len(known) > MOST_LABELS or max(len(one.label) for one in known) > LONGEST_LABEL:
            figure.legend(loc="outside upper left", ncols=2, title=keys, alignment="left", handlelength=3)
        elif len(known) > 1:
            _name_ends(axes, known, keys)
        yield saved(figure, file, about)


def shift(places: Sequence[float], number: int, n_lines: int) -> float:
    """How far a line's points stand beside their places, so that no interval hides another, or seems of the next."""
    nearest = min(np.diff(places), default=0.0)
    return float(min(APART * (places[-1] - places[0]), ROOM * nearest / n_lines) * (number - (n_lines - 1) / 2))


def legible(places: Sequence[float]) -> list[float]:
    """Those of the places, in their order, whose numbers do not run into each other: the last and what has room."""
    kept = [places[-1]]
    for place in reversed(places[:-1]):
        if kept[-1] - place >= TICKS_APART * (places[-1] - places[0]):
            kept.append(place)
    return kept[::-1]


def paint_fits(study: Study, fits: Mapping[str, Sequence[Line]]) -> Iterator[Picture]:
    """Of each power law its points and lines, both axes logarithmic."""
    for number, (name, lines) in enumerate(fits.items()):
        if not lines:
            continue
        fit = study.fits[name]
        with matplotlib.rc_context(STYLE):
            figure, axes = panel(HEIGHT)
            for place, line in enumerate(lines):
                x, y = np.array(line.points).T
                look = look_of(place)
                axes.plot(x, y, look["marker"], color=look["color"], markersize=4.5)
                ends = np.array([x.min(), x.max()])
                label = f"{line.words or 'all'}: {line.exponent.mean:+.3f}"
                scale = math.exp(line.offset)
                axes.plot(
                    ends, scale * ends**line.exponent.mean, color=look["color"], ls=look["linestyle"], label=label
                )
            axes.set(xscale="log", yscale="log", xlabel=fit.x, ylabel=fit.y)
            plain_numbers(axes.xaxis)
            plain_numbers(axes.yaxis)
            figure.legend(loc="outside upper left", ncols=2, alignment="left", handlelength=3)
            yield saved(figure, f"fit_{number:02d}", f"{name}: power laws with their exponents")


def plain_numbers(axis: Axis) -> None:
    """Numbers along a logarithmic axis, which would be written as formulas: 1, 2, 5, 10, 20 and so on."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _name_ends(axes: Axes, known: Sequence[Series], keys: str) -> None:
    """Write each line's name beside its end, in its colour, under what the names are values of."""
    low, high = axes.get_ylim()
    numbers = sorted(range(len(known)), key=lambda number: known[number].mean[-1])
    ends = [(known[number].mean[-1] - low) / (high - low) for number in numbers]
    places = spread(ends, LABEL_GAP)
    for number, end, place in zip(numbers, ends, places, strict=True):
        color = look_of(number)["color"]
        axes.annotate(
            known[number].label,
            (1, end),
            (LABEL_FROM, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=color,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 0,
            },
        )
    axes.text(LABEL_FROM, places[-1] + LABEL_GAP, keys, transform=axes.transAxes, fontsize=8.5, va="center")


def _dots(file: str, about: str, name: str, shown: Sequence[tuple[Condition, Estimate]]) -> Picture:
    """A row per condition, the first on top; what differs in the last axis alone has one colour, as a line has."""
    differ = [axis for axis in zip(*(condition.labels for condition, _ in shown), strict=True) if len(set(axis)) > 1]
    lines = list(zip(*differ[:-1], strict=True)) or [()] * len(shown)
    numbers = {line: number for number, line in enumerate(dict.fromkeys(lines))}
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(0.9 + 0.32 * len(shown))
        for place, (_, found) in enumerate(shown):
            color = look_of(numbers[lines[place]])["color"]
            if not math.isnan(found.low):
                axes.plot([found.low, found.high], [place, place], color=color, linewidth=3, alpha=0.45)
            axes.plot(found.mean, place, "o", color=color, ms=6)
        axes.set_yticks(range(len(shown)), [condition.words for condition, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.25)
        axes.set_xlabel(name)
        return saved(figure, file, about)


def panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def look_of(number: int) -> dict[str, Any]:
    """Of the line of this number: another colour, dash and marker than its neighbours'."""
    look = {"color": COLORS, "linestyle": DASHES, "marker": MARKERS}
    return {name: values[number % len(values)] for name, values in look.items()} | {"markersize": 4.5, "linewidth": 1.6}


def saved(figure: Figure, file: str, about: str) -> Picture:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(file, about, png.getvalue(), svg.getvalue())
