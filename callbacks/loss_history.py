"""The per-frame losses of a whole run, kept small, and their picture."""

from __future__ import annotations

from io import BytesIO
from itertools import zip_longest
from typing import Any

MAX_ROWS = 512  # a picture does not resolve more, and a checkpoint should stay small


class LossHistory:
    """Frame losses over the whole run in at most MAX_ROWS evenly spaced rows.

    Args:
        rows: `[step, loss of frame 0, loss of frame 1, ..]` each, None where there is no loss.
        stride: one in so many additions is kept; doubles whenever the rows become too many.
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

    The deviation is what shows an imbalance: the losses' own colours mostly tell how training went.

    Args:
        rows: as in `LossHistory`, two at least.
    """
    import numpy as np  # here, since matplotlib takes long to import
    from matplotlib.figure import Figure
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
    encoded = BytesIO()
    figure.savefig(encoded, format="png")
    return encoded.getvalue()
