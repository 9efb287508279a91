"""SIGTERM at any moment, with a grace of a few seconds before SIGKILL."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from faults.campaign import Campaign, Draw, Judge, Verdict
from faults.cluster import FINISHED, References, Schedule, judged
from faults.cluster_faults import GRACE_S, Cluster, Fault
from faults.experiment import write_data, write_experiment
from faults.job import STOPPED, Job, is_for_a_person
from faults.kills import WRONG_FIGURES
from lumos_pl.module import LumosModule
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling import generate

IN_TIME = "out in time and resumed bit-identical"
MOMENTS = "start", "training", "validation", "sampling", "decoding", "saving"
COMING_S = 60.0  # to the moment
SLOW: dict[str, tuple[Any, str, float]] = {  # what takes so many seconds a call, as with a large model
    "training": (OptimizedModule, "loss_to_minimize", 0.3),
    "validation": (LumosModule, "validation_step", 0.6),
    "sampling": (generate, "_forward", 0.4),
    "decoding": (LumosPipeline, "decode", 1.2),
    "saving": (torch, "save", 1.5),
}
CLIPS: dict[str, dict[str, Any]] = {  # so that there is something to sample and to decode
    "layout": {"preset": "compact", "codebook_size": 1000},
    "callbacks": {
        "prompts": [f"a circle that moves {way}" for way in ("left", "right", "up", "down", "in", "out")],
        "sampled_clips_every_n_steps": 4,
    },
    "clip": {"width": 32, "height": 32, "frames": 9, "fps": 12},
    "sampling": {"steps": 4},
    "data": {"root": "synthetic", "val_root": "synthetic", "val_batches": 24, "synthetic": {"n_samples": 10}},
    "trainer": {"grace_s": GRACE_S},
}


def slow_down(moment: str, arrived: Path) -> None:
    """Have what is done at a moment take its time, and note in a file when it is first done."""
    target, name, seconds = SLOW[moment]
    real: Callable[..., Any] = getattr(target, name)

    @wraps(real)
    def slow(*arguments: Any, **options: Any) -> Any:
        arrived.touch()
        time.sleep(seconds)
        return real(*arguments, **options)

    setattr(target, name, slow)


def _arrives(job: Job, arrived: Path) -> bool:
    deadline = time.monotonic() + COMING_S
    while not arrived.exists() and not job.ended() and time.monotonic() < deadline:
        time.sleep(0.005)
    return arrived.exists()


@contextmanager
def _graces(folder: Path) -> Iterator[Judge]:
    data = write_data(folder / "data")
    experiment = write_experiment(folder / "tiny.yaml", data, folder / "runs", visual_tokenizer="embedded", **CLIPS)
    references = References(experiment, data, folder)
    run = folder / "runs" / "tiny" / "x"

    def judge(draw: Draw) -> Verdict:
        shutil.rmtree(folder / "try", ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        moment = MOMENTS[draw.number % len(MOMENTS)]
        return stopped(draw, moment, Schedule(experiment, Cluster(run=run, data=data), folder / "try"), references)

    yield judge


def stopped(draw: random.Random, moment: str, schedule: Schedule, references: References) -> Verdict:
    """Stop a run at a moment of the kind, see it leave in time, and repeat the command to its end."""
    ranks, arrived = draw.choice([1, 1, 2]), schedule.folder / "arrived"
    delay = draw.random() * (3.0 if moment == "start" else 1.5)
    took: list[float] = []

    def amid(job: Job) -> None:
        if moment != "start" and not _arrives(job, arrived):
            return
        time.sleep(delay)
        begun = time.monotonic()
        job.signal(signal.SIGTERM)
        while not job.ended() and time.monotonic() < begun + GRACE_S:
            time.sleep(0.01)
        took.append(time.monotonic() - begun)
        job.signal(signal.SIGKILL)

    prepare = (lambda: None) if moment == "start" else (lambda: slow_down(moment, arrived))
    about = f"SIGTERM {delay:.2f} s into {moment}"
    attempt = schedule.attempt(ranks, Fault(about=about, amid=amid, prepared=prepare))
    done = f"{attempt}, left after {took or None} s: {attempt.said[-1500:]}"
    if not took:
        return Verdict("moment missed", done)
    statuses = set(attempt.statuses.values())
    if -signal.SIGKILL in statuses:
        return Verdict("killed", done)
    if not statuses <= {*STOPPED, -signal.SIGTERM}:
        return Verdict("other exit", done)
    ended = max(attempt.samples, default=0)  # that many steps were over when the last one that began did so
    if ended > (attempt.saved or 0):
        return Verdict("steps lost", done)
    again = schedule.attempt(ranks)
    if any(status is None or is_for_a_person(status) or status for status in again.statuses.values()):
        return Verdict("not resumed", f"{done} {again}: {again.said[-1500:]}")
    verdict = judged(schedule, references)
    return Verdict(IN_TIME, done) if verdict.outcome == FINISHED else verdict


GRACE = Campaign(
    name="grace",
    title="SIGTERMs with 5 s of grace",
    instances=30,
    held=(IN_TIME,),
    broken=(
        *("killed", "other exit", "steps lost", "not resumed", "moment missed"),
        *("other weights", "other samples", *WRONG_FIGURES),
    ),
    open=_graces,
)
