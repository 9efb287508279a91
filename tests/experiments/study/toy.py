"""A study of the smallest runs, and cells of it that look finished without having run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.evaluation.evaluate import TIMES_FILE
from experiments.study.cells import Cell, plan_cells
from experiments.study.config import Study, load_study
from tests.experiments.conftest import SMALL

TOY = {
    "about": "Does it run?",
    "base": "debug",
    "overrides": [word for word in SMALL if not word.startswith("callbacks.")],
    "grid": {"mask.kind": ["tube", "random"]},
    "seeds": [0, 1],
    "measures": {"loss": "metrics.loss/train", "spread": "metrics.loss_frame/val/spread"},
}

LOGS_MORE = "callbacks.extra=[{class_path: lightning.pytorch.callbacks.Timer}]"  # or anything else of the user's


def write_toy(folder: Path, **changes: Any) -> str:
    """The study's file, with some of its keys changed."""
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump(TOY | changes, sort_keys=False))
    return str(file)


def plan_toy(folder: Path, **changes: Any) -> tuple[Study, list[Cell]]:
    study = load_study(write_toy(folder, **changes))
    return study, plan_cells(study, [f"run.dir={folder / 'runs'}"])


def pretend(cell: Cell, losses: Sequence[float]) -> None:
    """Make the cell look trained, with these training losses."""
    cell.begin()
    cell.folder.write_result({"steps": cell.config.trainer.max_steps, "loss": {"loss/train": losses[-1]}})
    lines = [json.dumps({"step": step, "loss/train": loss}) for step, loss in enumerate(losses)]
    cell.folder.metrics.write_text("\n".join(lines) + "\n")


def pretend_evaluated(cell: Cell, measures: Mapping[str, Sequence[float | None] | None]) -> None:
    """Make each of the cell's evaluations look done, with the values of each measure and a mean of 0.5."""
    for evaluation in cell.evaluations:
        evaluation.folder.mkdir(parents=True, exist_ok=True)
        found = {name: {"mean": 0.5, "values": values} for name, values in measures.items()}
        evaluation.file.write_text(json.dumps({"settings": evaluation.settings.recorded(), "measures": found}))
        (evaluation.folder / TIMES_FILE).write_text(json.dumps({"fidelity/clip/seconds": 0.25}))
