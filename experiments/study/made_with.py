"""With which settings a kept figure was measured, as a digest beside it: figures of other ones do not pass for new.

Two settings that differ where nothing is measured, in where files lie or in what machine worked, have one digest. A
setting that is as by default is left out, so that a later version with more settings comes to the same. Of a file by
its path nothing is known: another one there is not noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from experiments.changes import counts
from experiments.config import plain
from experiments.evaluation.settings import EvalSettings
from experiments.study.cells import Cell
from experiments.study.collect import Condition, Key
from experiments.study.config import Study, Variant
from lumos_pl.checkpoints.named import PLACES, WORDS
from lumos_pl.settings.differences import Difference, differences

DIGITS = 12
OF_MACHINES = ("trainer.precision", "trainer.accelerator", "device")


def digests(study: Study, cells: Sequence[Cell]) -> dict[Key, str]:
    """Of each row, measure and seed that the study asks for, by the settings that it has now."""

    @cache
    def of_training(place: int) -> list[Difference]:
        config = cells[place].config
        return list(differences(plain(type(config)()), plain(config)))

    return {
        (cell.variant.labels + sampled.labels, name, cell.seed): _digest(
            _counting(of_training(place), cell, sampled, key.partition(".")[0])
        )
        for place, cell in enumerate(cells)
        for sampled in study.sampled
        for name, key in study.measures.items()
    }


def _counting(made: Sequence[Difference], cell: Cell, sampled: Variant, source: str) -> Iterator[tuple[str, Any]]:
    """The settings that a measure of this source depends on."""
    evaluation = next((e for e in cell.evaluations if (e.name, e.variant) == (source, sampled)), None)
    for where, _, asked in made:
        is_path = PLACES.fullmatch(where) is not None and asked not in WORDS
        is_of_sampling = evaluation is not None and where.startswith("sampling.")
        if (counts(where) or where == "init_from" or is_of_sampling) and not is_path and where not in OF_MACHINES:
            yield where, asked
    if evaluation is not None:
        for where, _, asked in differences(EvalSettings().recorded(), evaluation.settings.recorded()):
            if where not in OF_MACHINES:
                yield f"evaluation.{where}", asked


def _digest(settings: Iterator[tuple[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(sorted(settings), sort_keys=True).encode()).hexdigest()[:DIGITS]


def measured_otherwise(
    conditions: Sequence[Condition], here: Container[Key], kept: Mapping[Key, str], now: Mapping[Key, str]
) -> list[str]:
    """The cells, in words, of which kept figures are shown that were measured with other settings than the study's.

    Args:
        conditions: the rows that are shown.
        here: the figures that the cells here have measured.
        kept, now: digests of kept figures, and of the study's settings.
    """
    shown = {
        (row.labels, name, seed): f"{row.words} (seed {seed})"
        for row in conditions
        for name, of in row.values.items()
        for seed in of
    }
    other = [key for key in shown if key not in here and key in kept and kept[key] != now.get(key)]
    return list(dict.fromkeys(shown[key] for key in other))
