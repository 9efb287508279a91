"""The per-frame losses of a whole run, kept small, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHED = 40  # a line is smoothed over windows of 1 / 40 of it
LABEL_GAP = 0.055  # least distance of two line labels, as a share of the chart's height
MAX_ROWS = 512  # a picture resolves no more, and a checkpoint should stay small


class LossHistory:
    """Frame losses over the whole run in at most MAX_ROWS evenly spaced rows.

    Args:
        rows: `[step, loss of frame 0, loss of frame 1, ..]` each, None where there is no loss.
        stride: one in this many additions is kept; doubles whenever there are too many rows.
        added: additions so far.
    """

    def __init__(self, rows: list[list[float | None]] | None = None, stride: int = 1, added: int = 0) -> None:
        self.rows = rows or []
        self.stride = stride
        self.added = added

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self.rows], "stride": self.stride, "added": self.added}

    def add(self, step: int, frames: list[float | None]) -> None:
        if self.added % self.stride == 0:
            self.rows.append([step, *frames])
        self.added += 1
        if len(self.rows) > MAX_ROWS:
            self.rows = self.rows[::2]
            self.stride *= 2


def paint_heatmap(rows: list[list[float | None]]) -> bytes:
    """A PNG of frame x step: the losses, and below them each step's deviation from its mean over frames.

    The deviation is what shows an imbalance; the losses themselves mostly show the progress of training.

    Args:
        rows: as in `LossHistory`, at least two.
    """
    from matplotlib.figure import Figure  # here, because importing it is slow
    from matplotlib.ticker import MaxNLocator

    table = np.array(list(zip_longest(*rows)), dtype=float)  # None becomes NaN
    steps, losses = table[0], table[1:]  # [rows], [n_frames, rows]
    deviation = losses - np.nanmean(losses, axis=0)
    limit = max(float(np.nanmax(np.abs(deviation))), 1e-6)

    figure = Figure(figsize=(9, 5.5), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, values, title, colours in (
        (top, losses, "training loss of each latent frame (nats per token)", {"cmap": "viridis"}),
        (bottom, deviation, "minus the mean over frames", {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
    ):
        mesh = axes.pcolormesh(steps, np.arange(len(losses)), values, shading="nearest", **colours)
        figure.colorbar(mesh, ax=axes)
        axes.set(title=title, ylabel="latent frame")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.invert_yaxis()
    bottom.set_xlabel("step")
    return _encode(figure)


def paint_curves(rows: list[list[float | None]]) -> bytes:
    """A PNG of the frames' losses over the steps, smoothed: their mean, and each frame's deviation from it.

    Each line is labelled with its frame at its end, and later frames are lighter, so that no hue is needed.

    Args:
        rows: as in `LossHistory`, at least two.
    """
    from matplotlib import colormaps  # here, because importing it is slow
    from matplotlib.figure import Figure

    table = np.array(list(zip_longest(*rows)), dtype=float)
    steps, losses = table[0], table[1:]
    width = max(1, len(steps) // SMOOTHED)
    mean = np.nanmean(losses, axis=0)
    deviation = np.array([_running_mean(line - mean, width) for line in losses])
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(losses)))

    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    top.plot(steps, _running_mean(mean, width), color="black")
    top.set(title="training loss, mean over the latent frames (nats per token)")
    bottom.axhline(0, color="grey", linewidth=0.8)
    for line, shade in zip(deviation, shades, strict=True):
        bottom.plot(steps, line, color=shade, linewidth=1.8)
    bottom.set(title="each latent frame minus that mean", xlabel="step")
    bottom.margins(x=0)
    low, high = bottom.get_ylim()
    known = [(line[np.isfinite(line)], frame) for frame, line in enumerate(deviation)]
    ends = sorted((float(line[-1] - low) / (high - low), frame) for line, frame in known if len(line))
    for (end, frame), place in zip(ends, spread([end for end, _ in ends], LABEL_GAP), strict=True):
        bottom.annotate(
            f"frame {frame}",
            (1, end),
            (1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=shades[frame],
            arrowprops={"arrowstyle": "-", "color": shades[frame], "relpos": (0, 0.5), "shrinkA": 2, "shrinkB": 0},
        )
    return _encode(figure)


def spread(ends: Sequence[float], gap: float) -> list[float]:
    """Heights for labels next to the ends of lines, sorted from below, no two nearer than `gap`."""
    places: list[float] = []
    for end in ends:
        places.append(max(end, places[-1] + gap) if places else end)
    shift = sum(place - end for place, end in zip(places, ends, strict=True)) / max(1, len(ends))
    return [place - shift for place in places]


def _running_mean(values: NDArray[np.floating], width: int) -> NDArray[np.floating]:
    """The mean of each value and those before it, `width` in all; missing values are skipped."""
    known = np.isfinite(values)
    sums, counts = (np.cumsum(x) for x in (np.where(known, values, 0.0), known.astype(float)))
    sums[width:], counts[width:] = sums[width:] - sums[:-width], counts[width:] - counts[:-width]
    means: NDArray[np.floating] = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return means


def _encode(figure: Figure) -> bytes:
    encoded = BytesIO()
    figure.savefig(encoded, format="png")
    return encoded.getvalue()
