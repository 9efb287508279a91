"""Figures that are kept beside a study's file, as NAME.csv, and how what the cells here have measured joins them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.study.cells import Cell
from experiments.study.collect import Condition, Key, read_conditions
from experiments.study.config import Study
from experiments.study.made_with import digests, measured_otherwise
from experiments.study.statistics import Values
from lumos_pl.errors import DataError
from lumos_pl.machinery.regular_file import read_regular

DIGEST = re.compile("[0-9a-f]{12}")  # see made_with.py


class Figures:
    """What a study knows: what its cells here have measured, and beside it what was kept.

    Args:
        kept: the file of kept figures; None: they do not count.
    Raises:
        DataError: see `read_kept`.
    """

    def __init__(self, study: Study, cells: Sequence[Cell], kept: Path | None) -> None:
        rows, self._made_before = ([], dict[Key, str]()) if kept is None else read_kept(study, kept)
        self._study, self._made_now = study, digests(study, cells)
        self._measured = read_conditions(study, cells)
        self._all = with_kept(self._measured, rows)

    @property
    def shown(self) -> list[Condition]:
        """The rows, measures and seeds that the study asks for now."""
        return of_study(self._study, self._all)

    @property
    def measured_here(self) -> set[Key]:
        return {(row.labels, name, seed) for row in self._measured for name, of in row.values.items() for seed in of}

    def measured_otherwise(self) -> list[str]:
        """See there."""
        return measured_otherwise(self.shown, self.measured_here, self._made_before, self._made_now)

    def csv(self) -> str:
        """All of them, to be kept."""
        here = self.measured_here
        made_with = {key: digest for key, digest in self._made_before.items() if key not in here}
        made_with |= {key: digest for key, digest in self._made_now.items() if key in here}
        return kept_csv(self._study, self._all, made_with)


def kept_csv(study: Study, conditions: Sequence[Condition], made_with: Mapping[Key, str]) -> str:
    """What the tables and their figures are made of, small enough to be kept: a line per row, seed and measure.

    Args:
        made_with: digests of the settings of those figures of which they are known.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_head(study))
    for row in conditions:
        for name, of_seeds in row.values.items():
            for seed, values in of_seeds.items():
                digest = made_with.get((row.labels, name, seed))
                figures = " ".join(map(_short, values.tolist()))
                writer.writerow([*row.labels, seed, name, figures, *([] if digest is None else [digest])])
    return text.getvalue()


def _head(study: Study) -> list[str]:
    """The last one is left out of lines of which it is not known, and was not there before."""
    return [*study.axes, "seed", "measure", "values", "settings"]


def _short(value: float) -> str:
    """Six digits; of a whole number, such as a count, all."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def read_kept(study: Study, file: Path) -> tuple[list[Condition], dict[Key, str]]:
    """All that `kept_csv` kept, in its order: of rows, seeds and measures that the study no longer has, too.

    Returns:
        the rows, and the digests of the settings of those figures of which they are known.
    Raises:
        DataError: another table, a value that is no finite number, or one figure twice.
    """
    text = read_regular(file).decode("utf-8-sig", errors="replace")  # a table calculation puts a mark before it
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    lines = list(csv.reader(io.StringIO(text)))
    head = _head(study)
    if not lines or lines[0] not in (head, head[:-1]):
        raise DataError("not this study's results", file=file, got=lines[:1], expected=",".join(head))
    found: dict[tuple[str, ...], dict[str, dict[int, Values]]] = {}
    made_with: dict[Key, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            *own, digest = line if len(line) == len(head) else [*line, ""]
            if len(own) != len(head) - 1 or not (digest == "" or DIGEST.fullmatch(digest)):
                raise ValueError(f"{len(line)} fields: {','.join(line)[:100]}")
            *labels, seed, name, values = own
            of_seeds = found.setdefault(tuple(labels), {}).setdefault(name, {})
            figures = np.array(values.split(), dtype=float)
            if not (len(figures) and np.isfinite(figures).all()):
                raise ValueError(f"{values!r} in place of finite numbers")
            if not np.array_equal(of_seeds.setdefault(int(seed), figures), figures):
                raise ValueError(f"{name} of seed {seed} a second time, with other values")
            if digest:
                made_with[tuple(labels), name, int(seed)] = digest
        except ValueError as error:
            raise DataError("not a line of results", file=file, where=f"line {number}", got=str(error)) from None
    return [Condition(labels=labels, values=row) for labels, row in found.items()], made_with


def with_kept(conditions: Sequence[Condition], kept: Sequence[Condition]) -> list[Condition]:
    """All rows, measures and seeds of both; where both have one, what the cells here have measured counts."""
    before = {row.labels: row.values for row in kept}
    rows = []
    for row in conditions:
        old = before.pop(row.labels, {})
        names = dict.fromkeys([*row.values, *old])
        filled = {name: dict(sorted({**old.get(name, {}), **row.values.get(name, {})}.items())) for name in names}
        rows.append(Condition(labels=row.labels, values=filled))
    return rows + [row for row in kept if row.labels in before]


def of_study(study: Study, conditions: Sequence[Condition]) -> list[Condition]:
    """What the study asks for now: its rows, measures and seeds alone."""
    asked = {(*trained.labels, *sampled.labels) for trained in study.trained for sampled in study.sampled}
    return [
        Condition(
            labels=row.labels,
            values={
                name: {seed: values for seed, values in row.values.get(name, {}).items() if seed in study.seeds}
                for name in study.measures
            },
        )
        for row in conditions
        if row.labels in asked
    ]
