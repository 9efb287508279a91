"""The trainings on the way from a folder to a film: where each lies, its command, how long one of its steps takes."""

from __future__ import annotations

from pathlib import Path

from callbacks.jsonl_logger import last_figure
from experiments.merging import text_override
from experiments.own.settings import LEAST_STEPS
from experiments.own.steps import Steps
from experiments.run_folder import RunFolder
from lumos_pl.errors import DataError

TIMING, TIMING_STEPS = "timing", 12
A_SHORT_TRY = "data.val_root=null", "trainer.val_every_n_steps=0", "callbacks.log_every_n_steps=4"


class Trainings:
    """Of a folder's steps; all lie in its `runs/`."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._runs = steps, steps.folder / "runs"

    def folder(self, experiment: str, name: str) -> Path:
        return self._runs / experiment / name

    def run(self, step: str, about: str, experiment: str, name: str, *words: str) -> None:
        """Train, as a step; see `Steps.run`."""
        place = text_override("run.dir", str(self._runs)), f"run.name={name}"
        self._steps.run(step, about, "train", experiment, "--resume-or-start", *place, *words)

    def time(self, what: str, experiment: str, *words: str) -> None:
        """Train a few steps, `WHAT_timing`: after it `step_seconds` is known."""
        about = f"the {what}: a short try, to know how long a step takes here"
        self.run(f"{what}_timing", about, experiment, TIMING, *words, f"trainer.max_steps={TIMING_STEPS}", *A_SHORT_TRY)

    def step_seconds(self, experiment: str) -> float:
        """Of its short try.

        Raises:
            DataError: it timed no step.
        """
        folder = self.folder(experiment, TIMING)
        seconds = last_figure(RunFolder(folder).metrics, "throughput/step_seconds_median")
        if seconds is None:
            raise DataError("no step was timed", file=folder, fix="remove it, and start again")
        return seconds


def told(steps: int, usual: str) -> str:
    """How many steps a training has, and why."""
    return f"{steps} steps, {usual if steps > LEAST_STEPS else 'the fewest there are, however little the time'}"
