"""An evaluation's result as tables, a part each: on the terminal, and in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NotRequired

from pydantic import Field, with_config
from rich.console import Console
from rich.table import Column, Table
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import TypedDict

from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.json_file import Count, Number
from lumos_pl.machinery.own_files import remove_own

Name = Annotated[str, Field(pattern="^[^/]+/[^/]+/[^/]+$")]  # PART/ROW/COLUMN


@with_config(extra="forbid")
class MeasureRecord(TypedDict):
    """A measure as eval.json has it, see `Measure`."""

    mean: Number
    low: NotRequired[Number | None]
    high: NotRequired[Number | None]
    n: NotRequired[Count]
    values: NotRequired[list[Number | None] | None]


@with_config(extra="allow")
class MadeWith(TypedDict):
    """The settings that eval.json says it was made with, see `EvalSettings.recorded`."""

    overrides: NotRequired[list[str]]


@with_config(extra="allow")
class Result(TypedDict):
    """What eval.json holds, see `evaluate`; of earlier versions less."""

    settings: MadeWith
    measures: dict[Name, MeasureRecord]
    step: NotRequired[Count]
    skipped: NotRequired[dict[str, str]]
    samples: NotRequired[dict[str, Any]]


Times = dict[str, Number]
"""What times.json holds: seconds by name."""

HEADLINES = ("loss/tube_0.7/loss", "loss/random_0.7/loss", "fidelity/seen/joint", "fidelity/heldout/joint")

Cells = dict[str, dict[str, Any]]  # measures by row and column


def print_result(result: Mapping[str, Any]) -> None:
    """Tables of mean, half the 95% interval's width and number of samples; what was left out, and why."""
    console = Console(highlight=False, soft_wrap=True)
    unbounded = console.options.update(width=10_000)
    for part, cells in _parts(result):
        left = _columns(cells)
        while left:  # in as many tables as the width needs: a name or number that is cut short tells nothing
            widths = [
                console.measure(_table(part, cells, left[:count]), options=unbounded).maximum
                for count in range(1, len(left) + 1)
            ]
            count = max(1, sum(width <= console.width for width in widths))
            console.print(_table(part, cells, left[:count]), width=widths[count - 1])
            left = left[count:]
    for part, why in result["skipped"].items():
        console.print(f"  without {part}: {why}")


def headlines(result: Mapping[str, Any]) -> str:
    """The few measures that a line has room for, with half the 95% interval's width; at least one of each part."""
    named = {name: measure for name, measure in result["measures"].items() if name in HEADLINES}
    for name, measure in result["measures"].items():
        part = name.partition("/")[0]
        if not any(chosen.startswith(f"{part}/") for chosen in named):
            named[name] = measure
    return ", ".join(f"{name} {_short(measure)}" for name, measure in named.items())


def write_tensorboard(folder: Path, result: Mapping[str, Any]) -> None:
    """Means as scalars at the checkpoint's step, and as text the tables with their intervals.

    A folder within the run's own: TensorBoard goes on reading only the newest file of a folder, so events beside those
    of a training that is still running would end its curves. An earlier evaluation of the same step is replaced.

    Args:
        folder: which is there.
    """
    step = result["step"]
    suffix = f".step-{step:08d}"
    with TemporaryDirectory() as aside:
        with SummaryWriter(aside, filename_suffix=suffix) as writer:
            for name, measure in result["measures"].items():
                writer.add_scalar(f"eval_{name}", measure["mean"], step)
            for part, cells in _parts(result):
                writer.add_text(f"eval/{part}", _markdown(part, cells), step)
        (written,) = Path(aside).iterdir()
        for earlier in folder.glob(f"events.out.*{suffix}"):
            remove_own(earlier)
        write_atomically(folder / written.name, written.read_bytes())


def _parts(result: Mapping[str, Any]) -> Iterator[tuple[str, Cells]]:
    parts: dict[str, Cells] = {}
    for name, measure in result["measures"].items():
        part, row, column = name.split("/")
        parts.setdefault(part, {}).setdefault(row, {})[column] = measure
    yield from parts.items()


def _columns(cells: Cells) -> list[str]:
    """In the order of their first appearance, the latent frames last and in theirs."""
    columns = list(dict.fromkeys(column for by_column in cells.values() for column in by_column))
    return sorted(columns, key=lambda column: int(column.removeprefix("frame_")) if "frame_" in column else -1)


def _table(part: str, cells: Cells, columns: list[str]) -> Table:
    numbers = (Column(column, justify="right", no_wrap=True) for column in ("n", *columns))
    table = Table(Column(part, no_wrap=True), *numbers)
    for row, by_column in cells.items():
        if not by_column.keys().isdisjoint(columns):
            table.add_row(row, _samples(by_column), *(_short(by_column.get(column)) for column in columns))
    return table


def _samples(by_column: Mapping[str, Mapping[str, Any]]) -> str:
    """How many samples a row's measures are of; fewer where a column has none for some."""
    return str(max(measure["n"] for measure in by_column.values()))


def _short(measure: Mapping[str, Any] | None) -> str:
    if measure is None:
        return ""
    if measure["low"] is None:
        return f"{measure['mean']:.4g}"
    spread = (measure["high"] - measure["low"]) / 2
    decimals = max(0, 1 - math.floor(math.log10(spread))) if spread else 3  # two digits of the spread
    return f"{measure['mean']:.{decimals}f} ±{spread:.{decimals}f}"


def _markdown(part: str, cells: Cells) -> str:
    columns = _columns(cells)
    lines = [f"|{part}|n|{'|'.join(columns)}|", "|---" * (len(columns) + 2) + "|"]
    for row, by_column in cells.items():
        lines.append(f"|{row}|{_samples(by_column)}|{'|'.join(_exact(by_column.get(name)) for name in columns)}|")
    return "\n".join(lines)


def _exact(measure: Mapping[str, Any] | None) -> str:
    if measure is None:
        return ""
    interval = "" if measure["low"] is None else f" [{measure['low']:.4g}, {measure['high']:.4g}]"
    return f"{measure['mean']:.4g}{interval}"
