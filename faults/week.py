"""A week of a cluster in small: a script that only ever repeats the one command, and a fault every few seconds."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments import cli
from faults.campaign import Campaign, Draw, Judge, Verdict
from faults.cluster import FINISHED, RETRIES, saved_step
from faults.cluster_faults import GRACE_S
from faults.experiment import one_command, write_data, write_experiment
from faults.job import StartedJob, is_for_a_person
from faults.kills import WRONG_FIGURES, lines, wrong_figures
from faults.processes import children_of
from faults.storage import WRITES, Trouble
from faults.troubled import PAUSE, SAMPLES, TROUBLES, tell

STEPS, FAULT_EVERY_S, PAUSE_S = 300, 20.0, 0.1  # the last a micro-batch
KEEP_EVERY = 5  # steps between two checkpoints
MOST_S = 1500.0
ROOT = Path(cli.__file__).parents[1]
SCRIPT = """
while :; do
  "$@" >>"$SAID" 2>&1
  status=$?
  echo "$(date +%s.%N) $status" >>"$STATUSES"
  case $status in 0) exit 0;; 1|2|3|4|5|70) exit $status;; esac
done
"""


@dataclass
class Machine:
    """Where the script works.

    Args:
        script: its process.
        happened: when (seconds of the Unix clock) what was done to it, and the newest checkpoint's step then.
    """

    folder: Path
    script: subprocess.Popen[bytes]
    happened: list[tuple[float, str, int | None]] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny" / "x"

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def command(self) -> int | None:
        """The process of the command that the script waits for."""
        return next(iter(children_of(self.script.pid)), None)

    def signal(self, number: int) -> None:
        if (pid := self.command) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def trouble(self, one: Trouble) -> str:
        tell(self.folder / "troubles", [one])
        return str(one)


def kill(draw: random.Random, machine: Machine) -> str:
    machine.signal(signal.SIGKILL)
    return "killed"


def lose(draw: random.Random, machine: Machine) -> str:
    machine.signal(signal.SIGKILL)
    shutil.rmtree(machine.run, ignore_errors=True)
    return "the machine and its disk lost"


def preempt(draw: random.Random, machine: Machine) -> str:
    pid, begun = machine.command, time.monotonic()
    machine.signal(signal.SIGTERM)
    while machine.command == pid and time.monotonic() - begun < GRACE_S:
        time.sleep(0.02)
    if machine.command == pid and pid is not None:
        machine.signal(signal.SIGKILL)
        return "SIGTERM, and SIGKILL after its grace"
    return f"SIGTERM, left after {time.monotonic() - begun:.1f} s"


def storage(draw: random.Random, machine: Machine) -> str:
    data = machine.folder / "data"
    under = draw.choice([machine.run, data, machine.uploads])
    operations = draw.choice([("open", "read"), WRITES]) if under != data else ("open", "read")
    seconds = draw.choice([0.02, 0.1, 3.0])
    number = draw.choice([errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
    return machine.trouble(Trouble(error=number, under=str(under), operations=operations, seconds=seconds))


def full_disk(draw: random.Random, machine: Machine) -> str:
    seconds, operations = draw.choice([0.5, 3.0, 8.0]), ("create", "write")
    return machine.trouble(Trouble(error=errno.ENOSPC, under=str(machine.run), operations=operations, seconds=seconds))


KINDS: tuple[Callable[[random.Random, Machine], str], ...] = (kill, preempt, lose, storage, storage, full_disk)


def _started(folder: Path, experiment: Path) -> Machine:
    command = [sys.executable, "-m", "faults.troubled", *one_command(experiment)]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1",
        "SAID": str(folder / "said"),
        "STATUSES": str(folder / "statuses"), TROUBLES: str(folder / "troubles"), SAMPLES: str(folder / "samples"),
        PAUSE: str(PAUSE_S),
    }  # fmt: skip
    script = ["bash", "-c", SCRIPT, "repeat", *command]
    return Machine(folder, subprocess.Popen(script, cwd=ROOT, env=environment, start_new_session=True))


def _lived(draw: random.Random, machine: Machine, every_s: float) -> int | None:
    """Do something to the machine every few seconds until the script ends; its exit status, None: it never did.

    What would keep a run from any progress, a fault before anything new is saved, happens now and then only.
    """
    begun = last = time.monotonic()
    before = None
    while machine.script.poll() is None and time.monotonic() - begun < MOST_S:
        time.sleep(0.05)
        saved = saved_step(machine.run)
        if time.monotonic() - last < every_s or (saved == before and draw.random() > 0.0005):
            continue
        happened, when = draw.choice(KINDS)(draw, machine), time.time()
        machine.happened.append((when, happened, saved))
        last, before = time.monotonic(), saved
    if machine.script.poll() is None:
        os.killpg(machine.script.pid, signal.SIGKILL)
        return None
    return machine.script.wait()


def _statuses(machine: Machine) -> list[tuple[float, int]]:
    file = machine.folder / "statuses"
    told = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(float(when), int(status)) for when, status in told]


def _attempts(machine: Machine) -> list[dict[str, Any]]:
    """The beginnings of those whose account is still there."""
    file = machine.run / "attempts.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [event for event in events if event["event"] == "start"]


def table(machine: Machine, begun: float) -> Table:
    """What happened, in the order of time."""
    shown = Table("second", "what happened", "step saved", "exit", title="a week in small")
    rows = [(when, what, "" if saved is None else str(saved), "") for when, what, saved in machine.happened]
    rows += [(when, "the command ended", "", str(status)) for when, status in _statuses(machine)]
    rows += [(event["time"], "an attempt began training", str(event["step"]), "") for event in _attempts(machine)]
    for when, *rest in sorted(rows):
        shown.add_row(f"{when - begun:.0f}", *rest)
    return shown


def _experiment(folder: Path, name: str, uploads: Path | None, steps: int) -> Path:
    checkpoint = {"every_n_steps": KEEP_EVERY, "keep": 3, "retry": RETRIES}
    if uploads is not None:
        checkpoint["upload"] = uploads.as_uri()
    trainer = {"max_steps": steps, "val_every_n_steps": 10, "grace_s": GRACE_S}
    data = folder / "data"
    where = folder / f"{name}.yaml"
    return write_experiment(
        where, data, folder / "runs", trainer=trainer, checkpoint=checkpoint, data={"retry": RETRIES}
    )


@contextmanager
def weeks(folder: Path, *, steps: int = STEPS, every_s: float = FAULT_EVERY_S) -> Iterator[Judge]:
    """Runs of so many steps, with a fault every so many seconds."""
    write_data(folder / "data")
    (folder / "whole").mkdir()
    whole = StartedJob(one_command(_experiment(folder, "whole", None, steps)), folder / "whole")
    assert whole.wait() == {0: 0}, whole.said
    undisturbed = folder / "runs" / "whole" / "x"

    def judge(draw: Draw) -> Verdict:
        for old in (folder / "runs" / "tiny", folder / "uploads"):
            shutil.rmtree(old, ignore_errors=True)
        for name in "troubles", "said", "statuses", "samples":
            (folder / name).unlink(missing_ok=True)
        begun = time.time()
        machine = _started(folder, _experiment(folder, "tiny", folder / "uploads", steps))
        status = _lived(draw, machine, every_s)
        Console().print(table(machine, begun))
        done = f"{len(machine.happened)} faults, exits {[status for _, status in _statuses(machine)]}"
        if status is None:
            return Verdict("not finished", f"{done}: {machine.happened}")
        if status or any(is_for_a_person(one) and one < 128 for _, one in _statuses(machine)):
            said = (folder / "said").read_text(errors="replace")
            told = [line for line in said.splitlines() if line.startswith(("lumos:", "Traceback"))]
            return Verdict("person needed", f"{done}: {machine.happened} {told[-3:]}")
        weights = [
            json.loads((run / "result.json").read_text())["weights_sha256"] for run in (undisturbed, machine.run)
        ]
        if weights[0] != weights[1]:
            return Verdict("other weights", f"{done}: {machine.happened}")
        wrong = wrong_figures(lines(undisturbed), lines(machine.run))
        return Verdict(FINISHED, done) if wrong is None else Verdict(wrong.outcome, f"{done}: {wrong.detail}")

    yield judge


WEEK = Campaign(
    name="week",
    title="week in small with 300 steps and a fault every 20 s",
    instances=1,
    held=(FINISHED,),
    broken=("not finished", "person needed", "other weights", *WRONG_FIGURES),
    open=weeks,
)
WEEK_OF_A_TEST = replace(
    WEEK, title="week in small with 30 steps and a fault every 5 s", open=partial(weeks, steps=30, every_s=5.0)
)
