"""Schedules of a cluster that fails: one command is repeated until it says that it is finished."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from faults.campaign import Campaign, Judge, Verdict
from faults.cluster_faults import NONE, Cluster, Fault, draw_fault
from faults.experiment import STEPS, one_command, write_data, write_experiment
from faults.job import Job, StartedJob, is_for_a_person
from faults.kills import WRONG_FIGURES, Figures, lines, wrong_figures
from faults.object_store import BUCKET, ObjectStore, object_store
from faults.runs import at_each_loss
from faults.torchrun import RESTARTS, TorchrunJob
from lumos_pl.checkpoints.complete import newest_complete, step_of
from lumos_pl.errors import LumosError
from lumos_pl.optimized_module import OptimizedModule

FINISHED = "finished and identical"
MOST_ATTEMPTS = 14
MOST_S = 90.0  # of an attempt, on a busy machine
RETRIES = {"attempts": 4, "wait_s": 0.01, "longest_wait_s": 0.1}


@dataclass
class Attempt:
    """What became of one.

    Args:
        fault: done to it.
        samples: of every step that it began, its micro-batches in their order.
        saved: the step of the newest whole checkpoint when it had ended; None: none.
    """

    fault: Fault
    ranks: int
    statuses: dict[int, int | None] = field(default_factory=dict)
    samples: dict[int, list[list[str]]] = field(default_factory=dict)
    saved: int | None = None
    said: str = ""

    def __str__(self) -> str:
        begun = f"steps {min(self.samples)} to {max(self.samples)}" if self.samples else "no step"
        return f"[{self.ranks} ranks, {self.fault.about}: {begun}, exit {self.statuses}, saved {self.saved}]"


@dataclass
class Schedule:
    """The attempts of a run, one after the other.

    Args:
        experiment: its YAML.
        folder: for what they say.
        torchrun: whether it starts the ranks, and starts them again by itself.
    """

    experiment: Path
    cluster: Cluster
    folder: Path
    added: list[str] = field(default_factory=list)
    torchrun: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    def attempt(self, ranks: int, fault: Fault = NONE, *, stop_after: int | None = None) -> Attempt:
        """Start the one command, and let the fault happen to it.

        Args:
            stop_after: have rank 0 stop itself in good order once so many steps are done.
        """
        logs = self.folder / f"attempt-{len(self.attempts)}"
        logs.mkdir(parents=True)
        made = Attempt(fault, ranks)
        self.attempts.append(made)

        def prepare(rank: int) -> None:
            if self.cluster.store is not None:
                os.environ.update(self.cluster.store.environment)
            if stop_after is not None and rank == 0:
                _stop_in(stop_after - 1)
            fault.prepare(rank, self.folder / "troubles")

        name = self.cluster.run.name
        kind = TorchrunJob if self.torchrun else StartedJob
        job = kind(one_command(self.experiment, *self.added, name=name), logs, ranks=ranks, prepare=prepare)
        fault.amid(job)
        made.statuses = job.wait(MOST_S * (1 + RESTARTS) if self.torchrun else MOST_S)
        made.said = job.said
        made.samples = _samples(job)
        fault.after()
        made.saved = saved_step(self.cluster.run)
        return made

    @property
    def samples(self) -> dict[int, list[list[str]]]:
        """Of every step, as the last attempt that came to it had them."""
        steps: dict[int, list[list[str]]] = {}
        for attempt in self.attempts:
            steps |= attempt.samples
        return steps

    @property
    def ranks_by_step(self) -> list[int]:
        """How many ranks each step that counts was trained by."""
        steps: dict[int, int] = {}
        for attempt in self.attempts:
            steps |= dict.fromkeys(attempt.samples, attempt.ranks)
        return [ranks for _, ranks in sorted(steps.items())]


def _stop_in(step: int) -> None:
    def stop(module: OptimizedModule, *_: object) -> None:
        if module.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    at_each_loss(stop)


def _samples(job: Job) -> dict[int, list[list[str]]]:
    """By step, the micro-batches in the order of the data: the ranks take turns."""
    steps: dict[int, dict[tuple[int, int], list[str]]] = {}
    for rank in job.ranks:
        for (_, step), batches in groupby(job.batches_of(rank), key=lambda batch: (batch.start, batch.step)):
            for turn, batch in enumerate(batches):
                steps.setdefault(step, {})[turn, rank] = batch.samples
    return {step: [batch for _, batch in sorted(taken.items())] for step, taken in sorted(steps.items())}


def saved_step(run: Path) -> int | None:
    try:
        return step_of(newest_complete(run / "checkpoints")[0])
    except LumosError:
        return None


@dataclass(frozen=True)
class Outcome:
    """What is left of a finished run."""

    weights: str
    samples: dict[int, list[list[str]]]
    lines: Figures

    @classmethod
    def of(cls, schedule: Schedule) -> Outcome:
        run = schedule.cluster.run
        return cls(json.loads((run / "result.json").read_text())["weights_sha256"], schedule.samples, lines(run))


class References:
    """Runs that nothing disturbs, by how many ranks train each step: sums over other ranks are rounded otherwise."""

    def __init__(self, experiment: Path, data: Path, folder: Path) -> None:
        self._experiment, self._data, self._folder = experiment, data, folder
        self._found: dict[tuple[int, ...], Outcome] = {}

    def of(self, ranks_by_step: list[int]) -> Outcome:
        key = tuple(ranks_by_step)
        if key not in self._found:
            name = f"whole-{len(self._found)}"
            cluster = Cluster(run=self._folder / "runs" / self._experiment.stem / name, data=self._data)
            schedule = Schedule(self._experiment, cluster, self._folder / name)
            done = 0
            for ranks, steps in groupby(key):
                done += len(list(steps))
                attempt = schedule.attempt(ranks, stop_after=None if done == len(key) else done)
                assert set(attempt.statuses.values()) == {0 if done == len(key) else 143}, f"{attempt}: {attempt.said}"
            self._found[key] = Outcome.of(schedule)
        return self._found[key]


def judged(schedule: Schedule, references: References) -> Verdict:
    """A finished schedule, beside the run that nothing disturbed."""
    done = " ".join(map(str, schedule.attempts))
    for before, attempt in zip(schedule.attempts, schedule.attempts[1:], strict=False):
        if attempt.samples and min(attempt.samples) != (before.saved or 0) and before.saved is not None:
            return Verdict("steps lost", f"{done}: it went on at {min(attempt.samples)}, saved were {before.saved}")
    if len(schedule.ranks_by_step) != STEPS:
        return Verdict("other samples", f"{done}: steps {sorted(schedule.samples)}")
    expected, got = references.of(schedule.ranks_by_step), Outcome.of(schedule)
    if got.samples != expected.samples:
        return Verdict("other samples", f"{done}: {got.samples} {expected.samples}")
    if got.weights != expected.weights:
        return Verdict("other weights", done)
    wrong = wrong_figures(expected.lines, got.lines)
    return Verdict(FINISHED, done) if wrong is None else Verdict(wrong.outcome, f"{done}: {wrong.detail}")


def repeat(draw: random.Random, schedule: Schedule, worlds: list[int], n_faults: int) -> Verdict | None:
    """Start the command again until it is finished; a verdict where no scheduler could go on."""
    for number in range(MOST_ATTEMPTS):
        ranks = draw.choice(worlds)
        saved = schedule.attempts[-1].saved or 0 if schedule.attempts else 0
        steps = max(1, STEPS - saved)
        fault = draw_fault(draw, schedule.cluster, ranks, steps) if number < n_faults else NONE
        attempt = schedule.attempt(ranks, fault)
        done = f"{' '.join(map(str, schedule.attempts))}: {attempt.said[-3000:]}"
        if None in attempt.statuses.values():
            return Verdict("hang", done)
        if any(is_for_a_person(status) for status in attempt.statuses.values() if status is not None):
            return Verdict("person needed", done)
        if "Traceback" in attempt.said:
            return Verdict("traceback", done)
        if set(attempt.statuses.values()) == {0}:
            return None
    return Verdict("not finished", done)


@contextmanager
def _schedules(folder: Path) -> Iterator[Judge]:
    data = write_data(folder / "data")
    retries = {"data": {"retry": RETRIES}, "checkpoint": {"retry": RETRIES}}
    experiment = write_experiment(folder / "tiny.yaml", data, folder / "runs", **retries)
    references = References(experiment, data, folder)
    with ExitStack() as stack:
        store: ObjectStore | None = None

        def judge(draw: random.Random) -> Verdict:
            nonlocal store
            for old in folder.glob("try*"):
                shutil.rmtree(old)
            run = folder / "runs" / "tiny" / "x"
            shutil.rmtree(run, ignore_errors=True)
            where = draw.choice(["", "", "folder", "folder", "s3"])
            if where == "s3" and store is None:
                store = stack.enter_context(object_store())
            uploads = folder / "try-uploads" if where == "folder" else None
            cluster = Cluster(run=run, data=data, uploads=uploads, store=store if where == "s3" else None)
            added = []
            if uploads is not None:
                added = [f"checkpoint.upload={uploads.as_uri()}"]
            elif where == "s3":
                added = [f"checkpoint.upload=s3://{BUCKET}/{draw.getrandbits(60):x}"]
            worlds = draw.choice([[1], [1], [2], [2], [4], [1, 2, 4], [2, 4]])
            torchrun = 1 not in worlds and draw.random() < 0.5
            schedule = Schedule(experiment, cluster, folder / "try", added, torchrun)
            verdict = repeat(draw, schedule, worlds, n_faults=draw.randint(2, 5))
            return verdict or judged(schedule, references)

        yield judge


CLUSTER = Campaign(
    name="cluster",
    title="schedules of a cluster that fails",
    instances=40,
    held=(FINISHED,),
    broken=(
        *("not finished", "person needed", "hang", "traceback"),
        *("steps lost", "other weights", "other samples", *WRONG_FIGURES),
    ),
    open=_schedules,
)
