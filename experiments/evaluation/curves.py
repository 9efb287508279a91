"""What several checkpoints of a run were measured at, as curves in TensorBoard, beside those of the training."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.utils.tensorboard import SummaryWriter

from experiments.evaluation.report import Result
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.own_files import remove_own

_NAME = re.compile(r"events\.out\.tfevents\.([0-9]{10,12}\.[0-9]{6})\.curves")
WITH_MARGINS = re.compile("loss/[^/]+/loss|fidelity/.+")  # measures whose intervals are curves of their own


def write_curves(folder: Path, results: Sequence[Result]) -> None:
    """Replace the curves that are there by those of all these results, in the order of their steps.

    Watchers finish steps in any order, and TensorBoard drops what it has of later steps when an earlier one comes: so
    a new file has all of the curves, under a name that comes after the last one's, and says that they begin anew.

    Args:
        folder: which is there.
        results: of different steps, at least one.
    """
    ordered = sorted(results, key=lambda result: result["step"])
    with TemporaryDirectory() as aside:
        with SummaryWriter(aside, purge_step=ordered[0]["step"]) as writer:
            for result in ordered:
                _add(writer, result)
            if margins := [name for name in ordered[-1]["measures"] if WITH_MARGINS.fullmatch(name)]:
                writer.add_custom_scalars(_layout(margins))
        (written,) = Path(aside).iterdir()
        newest = max(map(_stamp, _curves(folder)), default=0.0)
        stamp = round(max(time.time(), newest + 1e-5), 6)  # the clock of whoever wrote that one may be ahead
        write_atomically(folder / f"events.out.tfevents.{stamp:.6f}.curves", written.read_bytes())
    for path in _curves(folder):
        if _stamp(path) < stamp:  # another watcher may be doing the same, of whom one goes last
            remove_own(path)


def _curves(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]


def _add(writer: SummaryWriter, result: Result) -> None:
    for name, measure in result["measures"].items():
        writer.add_scalar(f"eval_{name}", measure["mean"], result["step"])
        low, high = measure.get("low"), measure.get("high")
        if WITH_MARGINS.fullmatch(name) and low is not None and high is not None:
            writer.add_scalar(_low(name), low, result["step"])
            writer.add_scalar(_high(name), high, result["step"])


def _layout(names: Sequence[str]) -> dict[str, dict[str, list[object]]]:
    """The page of custom scalars: a chart of each measure with its interval as a band."""
    layout: dict[str, dict[str, list[object]]] = {}
    for name in names:
        charts = layout.setdefault(f"eval {name.partition('/')[0]}", {})
        charts[name] = ["Margin", [f"eval_{name}", _low(name), _high(name)]]
    return layout


def _low(name: str) -> str:
    return f"eval_interval/{name}/low"


def _high(name: str) -> str:
    return f"eval_interval/{name}/high"


def _stamp(path: Path) -> float:
    match = _NAME.fullmatch(path.name)
    assert match is not None, "asked of what has such a name"
    return float(match[1])
