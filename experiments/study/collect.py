"""What the cells measured, found by the keys of the study's measures.

result.KEY    in the run's result.json: dotted, a list's items by number
metrics.TAG   in metrics.jsonl: the mean over the last tenth of the steps, e.g. metrics.loss_frame/train/mean; and of
              those means metrics.loss_frame/PHASE/spread, and /fall: by what share of the first frame's loss the
              later ones lie below it
cost.teraflops, cost.parameters, cost.steps
              operations of the training up to there, counted; parameters of the decoder
NAME.KEY      what the evaluation of that name measured, by the names of `lumos eval`, e.g. eval.fidelity/heldout/joint:
              a value for each of its samples that has one, or their statistic; its wall times too
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.jsonl_logger import read_records
from experiments.evaluation.evaluate import TIMES_FILE
from experiments.evaluation.report import Result, Times
from experiments.study.cells import Cell, Evaluation
from experiments.study.config import Study, Variant
from experiments.study.cost import cost_of
from experiments.study.statistics import Estimate, Values, estimate
from lumos_pl.errors import DataError, did_you_mean
from lumos_pl.machinery.json_file import read_json

TAIL = 0.1  # of the steps, at the end
FRAME_TAG = "loss_frame"
FRAME = re.compile("frame_([0-9]{1,6})")  # a column of an evaluation
STATES = ("done", "failed", "missing")

Curve = list[tuple[int, float]]
"""(finished steps, value)."""
Key = tuple[tuple[str, ...], str, int]
"""A row's labels, a measure and a seed."""


def unit_of(key: str) -> str | None:
    """What a measure of an evaluation is counted in; None where that is nothing, or not known."""
    source, _, name = key.partition(".")
    part, row, column = parts if len(parts := name.split("/")) == 3 else ("", "", "")
    if source == "metrics":
        return None
    if row.startswith("psnr"):
        return "dB"
    if part in ("loss", "context", "horizon") and (column == "loss" or column.startswith(("frame_", "over_"))):
        return "nats"
    if part in ("fidelity", "horizon"):
        return "s" if column == "seconds" else "share"
    return None


def is_counted(key: str) -> bool:
    """Whether a measure is known of the settings alone: it has no interval."""
    return key.startswith("cost.")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A row of the tables: a way to train and a way to draw clips, over the seeds that were measured.

    Args:
        values: for each measure and seed; a measure that a run does not have is absent.
    """

    labels: tuple[str, ...]
    values: Mapping[str, Mapping[int, Values]]

    @property
    def words(self) -> str:
        return ", ".join(self.labels) or "all"

    def estimate(self, study: Study, measure: str) -> Estimate:
        """Of one measure; where that is a share, but no difference of shares, its interval keeps to 0 to 1."""
        key = study.measures[measure]
        share = unit_of(key) == "share" and "/fall/" not in key
        return estimate(list(self.values[measure].values()), share=share)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained cell's curves.

    Args:
        curves: by their tags in metrics.jsonl.
        frames: the loss of each latent frame on common ground, by evaluation and row, e.g. ("eval", "tube_0.7").
    """

    variant: Variant
    seed: int
    curves: Mapping[str, Curve]
    frames: Mapping[tuple[str, str], Mapping[int, float]]


def read_runs(cells: Sequence[Cell]) -> list[Run]:
    return [
        Run(
            variant=cell.variant,
            seed=cell.seed,
            curves=read_curves(cell.folder.metrics),
            frames=_evaluated_frames(cell),
        )
        for cell in cells
        if cell.is_trained()
    ]


def read_curves(metrics: Path) -> dict[str, Curve]:
    """Every series of a run; values that are not finite are left out."""
    curves: dict[str, Curve] = {}
    for record in read_records(metrics):
        step = int(record.pop("step")) + 1
        for tag, value in record.items():
            if math.isfinite(float(value)):
                curves.setdefault(tag, []).append((step, float(value)))
    return curves


def up_to(curves: Mapping[str, Curve], step: int | None) -> dict[str, Curve]:
    """The series as they were after so many steps; None: all of them."""
    cut = {tag: [point for point in curve if step is None or point[0] <= step] for tag, curve in curves.items()}
    return {tag: curve for tag, curve in cut.items() if curve}


def tail_means(curves: Mapping[str, Curve]) -> dict[str, float]:
    """The mean of each series over the last tenth of the run's steps, where it has a value there.

    The spread over the frames is that of the frames' means: the mean of the steps' spreads would be wider
    by the noise of a single batch.
    """
    last = max((curve[-1][0] for curve in curves.values()), default=0)
    tails = {tag: [value for step, value in curve if step > last * (1 - TAIL)] for tag, curve in curves.items()}
    means = {tag: sum(tail) / len(tail) for tag, tail in tails.items() if tail}
    for phase in "train", "val":
        if frames := frame_losses(means, phase):
            low, high, mean = min(frames.values()), max(frames.values()), sum(frames.values()) / len(frames)
            if mean:
                means[f"{FRAME_TAG}/{phase}/spread"] = (high - low) / mean
            first, *later = frames.values()
            if later and first:
                means[f"{FRAME_TAG}/{phase}/fall"] = 1 - sum(later) / len(later) / first
    return means


def frame_losses(means: Mapping[str, float], phase: str) -> dict[int, float]:
    """The loss of each latent frame among the figures of a run."""
    tag = re.compile(rf"{FRAME_TAG}/{phase}/([0-9]{{1,6}})")
    return {int(found[1]): means[name] for name in sorted(means) if (found := tag.fullmatch(name))}


def _evaluated_frames(cell: Cell) -> dict[tuple[str, str], dict[int, float]]:
    frames: dict[tuple[str, str], dict[int, float]] = {}
    for evaluation in filter(Evaluation.is_done, cell.evaluations):
        for name, values in read_measures(evaluation).items():
            part, row, column = name.split("/")
            if part == "loss" and values and (frame := FRAME.fullmatch(column)):
                of_row = frames.setdefault((evaluation.name, row), {})
                of_row[int(frame[1])] = sum(values) / len(values)
    return frames


def read_conditions(study: Study, cells: Sequence[Cell]) -> list[Condition]:
    """The rows of the study in their order, with what there is of each."""
    values: dict[tuple[str, ...], dict[str, dict[int, Values]]] = {}
    for cell in cells:
        for sampled, found in _measured(study, cell):
            row = values.setdefault(cell.variant.labels + sampled.labels, {name: {} for name in study.measures})
            for name, figures in found.items():
                row[name][cell.seed] = figures
    return [Condition(labels=labels, values=row) for labels, row in values.items()]


def _measured(study: Study, cell: Cell) -> list[tuple[Variant, dict[str, Values]]]:
    """For each way to draw clips, the measures of a cell; of one that is not done, what is there already."""
    result: dict[str, Any] = {}
    curves: dict[str, Curve] = {}
    if cell.is_trained():
        result, curves = {"result": cell.folder.read_result()}, read_curves(cell.folder.metrics)
    rows = []
    for sampled in study.sampled:
        if sampled.step is not None and sampled.step > cell.config.trainer.max_steps:
            continue
        own = result | ({"metrics": tail_means(up_to(curves, sampled.step))} if curves else {})
        own |= {"cost": cost_of(cell.config, sampled.step)} if cell.is_trained() else {}
        own |= {e.name: read_measures(e) for e in cell.evaluations if e.variant == sampled and e.is_done()}
        found = {name: look_up(own, key) for name, key in study.measures.items()}
        rows.append((sampled, {name: figures for name, figures in found.items() if figures is not None}))
    return rows


def read_measures(evaluation: Evaluation) -> dict[str, list[float]]:
    """Each measure's values, by its name; of one without values for single samples its mean. Wall times too."""
    fix = "move it away, and measure anew"
    measures = read_json(evaluation.file, Result, fix=fix)["measures"].items()
    for name, found in measures:
        values, n = found.get("values"), found.get("n")
        if values is not None and n not in (None, n_values := sum(value is not None for value in values)):
            where = f"measures.{name}.values"
            raise DataError("wrong field", file=evaluation.file, where=where, got=n_values, expected=n, fix=fix)
    known = {name: [v for v in found.get("values") or [found["mean"]] if v is not None] for name, found in measures}
    return known | {
        name: [seconds] for name, seconds in read_json(evaluation.folder / TIMES_FILE, Times, fix=fix).items()
    }


def look_up(sources: Mapping[str, Any], key: str) -> Values | None:
    """A measure's values, [1], or [M] of a list; None where there is no such number."""
    source, _, rest = key.partition(".")
    found = sources.get(source)
    for part in rest.split(".") if source == "result" else [rest]:
        match found:
            case dict() if part in found:
                found = found[part]
            case list() if part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            case _:
                return None
    numbers: list[Any] = found if isinstance(found, list) else [found]
    if not all(type(number) in (int, float) and abs(number) <= sys.float_info.max for number in numbers):
        return None
    return np.array(numbers, dtype=float) if numbers else None


def unmeasured(study: Study, cells: Sequence[Cell], conditions: Sequence[Condition]) -> Iterator[str]:
    """A line of each measure that no row has though a cell is done, with the nearest name of what that one measured."""
    lost = [name for name in study.measures if not any(row.values[name] for row in conditions)]
    cell = next((cell for cell in cells if cell.is_done()), None)
    if not lost or cell is None:
        return
    known = [f"metrics.{tag}" for tag in tail_means(read_curves(cell.folder.metrics))]
    known += [f"{e.name}.{name}" for e in cell.evaluations for name in read_measures(e)]
    known += [f"result.{name}" for name in cell.folder.read_result()]
    for name in lost:
        key = study.measures[name]
        near = did_you_mean(key, known)
        yield f"no cell has measured {name}: {key}" + (f" | {near}" if near else "")


def state(cell: Cell) -> str:
    """One of `STATES`."""
    return "done" if cell.is_done() else "failed" if cell.message is not None else "missing"


def results_csv(study: Study, cells: Sequence[Cell]) -> str:
    """A line per cell and way to draw clips; of several samples the mean, nothing where nothing is known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*study.axes, "seed", "state", *study.measures])
    for cell in cells:
        for sampled, found in _measured(study, cell):
            means = [repr(float(found[name].mean())) if name in found else "" for name in study.measures]
            writer.writerow([*cell.variant.labels, *sampled.labels, cell.seed, state(cell), *means])
    return text.getvalue()
