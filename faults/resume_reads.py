"""What the ranks of a resumed run read of its checkpoint to see that it is whole, counted."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from experiments import train
from faults.campaign import Campaign, Judge, Verdict
from faults.cluster import Schedule
from faults.cluster_faults import Cluster, Fault
from faults.experiment import EVERY, write_data, write_experiment
from faults.storage import Storage, Trouble, bytes_read

ONCE = "each byte read once"
METADATA = ".metadata"  # of a folder: which part of it holds what, which each rank has to know to read its own


def _note_reads(checkpoints: Path, told: Path) -> None:
    """In a rank: write down what it had read when all ranks knew that the checkpoint is whole."""
    nothing = Trouble(error=0, under=str(checkpoints), operations=())
    Storage([nothing]).install()
    look: Any = vars(train)["look_through_together"]

    @wraps(look)
    def noted(*arguments: Any, **options: Any) -> None:
        before = bytes_read()
        look(*arguments, **options)
        read = {Path(file).name: n for file, n in (bytes_read() - before).items()}
        with told.open("a") as file:  # all ranks'
            file.write(json.dumps(read) + "\n")

    vars(train)["look_through_together"] = noted


@contextmanager
def _resumes(folder: Path) -> Iterator[Judge]:
    data = write_data(folder / "data")
    run, told = folder / "runs" / "tiny" / "x", folder / "told"

    def judge(draw: random.Random) -> Verdict:
        for old in folder / "try", run:
            shutil.rmtree(old, ignore_errors=True)
        told.unlink(missing_ok=True)
        strategy, ranks = draw.choice(["fsdp2", "fsdp2", "ddp"]), draw.choice([4, 4, 2])
        trainer = {"max_steps": 2 * EVERY, "strategy": strategy, "val_every_n_steps": 100}
        experiment = write_experiment(folder / "tiny.yaml", data, folder / "runs", trainer=trainer)
        schedule = Schedule(experiment, Cluster(run=run, data=data), folder / "try")
        begun = schedule.attempt(ranks, stop_after=EVERY)
        files = _files(run / "checkpoints")
        count = Fault(about="counting", prepared=lambda: _note_reads(run / "checkpoints", told))
        resumed = schedule.attempt(ranks, count)
        done = f"{strategy}: {begun} {resumed}: {resumed.said[-1500:]}"
        if set(resumed.statuses.values()) != {0} or min(resumed.samples, default=0) != EVERY:
            return Verdict("not resumed", done)
        lines = told.read_text().splitlines() if told.exists() else []
        read = sum((Counter(json.loads(line)) for line in lines), Counter[str]())
        got = {name: read[name] for name in files}
        if len(lines) != ranks or any(got[name] < size for name, size in files.items()):
            return Verdict("not read", f"{done}: {got}, of {files}")
        most = {name: size * (ranks + 1 if name == METADATA else 1) for name, size in files.items()}
        again = {name: n for name, n in got.items() if n > most[name]}
        return Verdict("read again" if again else ONCE, f"{done}: {got}, of {files}")

    yield judge


def _files(checkpoints: Path) -> dict[str, int]:
    """The sizes of the files of the newest checkpoint."""
    newest = max(path for path in checkpoints.iterdir() if path.suffix == ".ckpt" and path.name.startswith("step-"))
    return {file.name: file.stat().st_size for file in (newest.iterdir() if newest.is_dir() else [newest])}


RESUME_READS = Campaign(
    name="resume-reads",
    title="resumes by several ranks",
    instances=6,
    held=(ONCE,),
    broken=("read again", "not read", "not resumed"),
    open=_resumes,
)
