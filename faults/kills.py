"""Runs that are killed, or told to stop, and gone on with."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from callbacks.jsonl_logger import read_records
from faults.campaign import Campaign, Judge, Verdict
from faults.runs import SETTINGS, Death, Run, last_step, sample_log, wait_for_step
from lumos_pl.checkpoints.complete import newest_complete
from lumos_pl.checkpoints.reading import read_checkpoint
from lumos_pl.errors import CheckpointError

STEPS = 16
IDENTICAL = "resumed bit-identical"
WRONG_FIGURES = "lines lost", "lines doubled", "other figures"
EVERY = 3  # steps between two checkpoints
TIMED = "throughput/"  # figures that are other ones each time
OF_THE_MACHINE = (  # figures that depend on when it was started, and on what else it does
    "step_time/", "data_wait", "gpu_memory/", "ranks/", "tokens_per_second", "mfu", "checkpoint/", "restarts",
)  # fmt: skip


def _train(folder: Path, name: str, *settings: str) -> list[str]:
    return ["train", "debug", f"run.dir={folder / 'runs'}", f"run.name={name}", *SETTINGS, *settings]


def _run_folder(folder: Path, name: str) -> Path:
    return folder / "runs" / "debug" / name


def _end(run: Path) -> dict[str, Any]:
    """All that a run's last checkpoint has of its training."""
    content = read_checkpoint(newest_complete(run / "checkpoints")[0])
    return {name: content[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


def _adapter_files(run: Path) -> dict[str, bytes]:
    """What a run of an adapter is for, and its average; of any other run nothing."""
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.glob("adapter*/*"))}


def first_difference(one: object, other: object, where: str = "") -> str | None:
    """Where two checkpoints differ, bit for bit; None: nowhere."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if torch.equal(one, other) and one.dtype == other.dtype else where
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(filter(None, (first_difference(one[k], other[k], f"{where}.{k}") for k in one)), None)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (first_difference(a, b, f"{where}.{i}") for i, (a, b) in pairs)), None)
    return None if one == other else where


Figures = dict[tuple[str, int, str], list[Any]]  # by logger, step and name


def lines(run: Path) -> Figures:
    """Every value of metrics.jsonl."""
    found: Figures = defaultdict(list)
    for record in read_records(run / "metrics.jsonl"):
        names = [name for name in record if not name.startswith(OF_THE_MACHINE)]
        for name in names if set(names) - {"step", "epoch"} else ():
            found["metrics.jsonl", int(record["step"]), name].append(record[name])
    return _untimed(found)


def figures(run: Path) -> Figures:
    """All that a run logged: every value of metrics.jsonl, and every scalar that TensorBoard shows."""
    found: Figures = defaultdict(list, lines(run))
    shown = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    for name in shown.Tags()["scalars"]:
        for event in () if name.startswith(OF_THE_MACHINE) else shown.Scalars(name):
            found["TensorBoard", event.step, name].append(event.value)
    return _untimed(found)


def _untimed(found: Figures) -> Figures:
    return {key: [""] * len(values) if key[2].startswith(TIMED) else values for key, values in found.items()}


def wrong_figures(expected: Figures, got: Figures) -> Verdict | None:
    """What became of the lines, if they are not each there once."""
    for outcome, one, other in ("lines lost", expected, got), ("lines doubled", got, expected):
        for key, values in one.items():
            if len(values) > len(other.get(key, [])):
                return Verdict(outcome, f"{key}: {values}, {other.get(key)}")
    for key, values in expected.items():
        if values != got[key]:
            return Verdict("other figures", f"{key}: {values}, {got[key]}")
    return None


def _base(folder: Path) -> Path:
    """A run whose decoder adapters belong to."""
    assert Run(_train(folder, "base", "trainer.max_steps=2"), folder / "base.jsonl").wait() == 0
    return _run_folder(folder, "base")


@contextmanager
def _kills_of_adapters(folder: Path) -> Iterator[Judge]:
    """Of one kind or the other."""
    with ExitStack() as held:
        judges = [held.enter_context(_kills(folder / name, adapter)) for name, adapter in ADAPTERS.items()]
        yield lambda draw: draw.choice(judges)(draw)


@contextmanager
def _kills(folder: Path, adapter: Sequence[str] = ()) -> Iterator[Judge]:
    """
    Args:
        adapter: settings of one to train instead of a decoder.
    """
    folder.mkdir(exist_ok=True)
    limits = [f"trainer.max_steps={STEPS}", f"checkpoint.every_n_steps={EVERY}", *adapter]
    if adapter:
        limits.append(f"init_from={_base(folder)}")
    whole_log = folder / "whole.jsonl"
    status = Run(_train(folder, "whole", *limits), whole_log).wait()
    assert status == 0, whole_log.with_suffix(".said").read_text()
    whole = _run_folder(folder, "whole")
    expected, expected_log, expected_figures = _end(whole), sample_log(whole_log), figures(whole)
    expected_files = _adapter_files(whole)

    def judge(draw: random.Random) -> Verdict | None:
        name, log = "killed", folder / "killed.jsonl"
        run_folder = _run_folder(folder, name)
        shutil.rmtree(run_folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        workers = [draw.choice([0, 2]) for _ in range(3)]
        kills = sorted(draw.randrange(-1, STEPS) for _ in range(draw.choice([1, 1, 2])))
        saving = [draw.random() < 0.5 for _ in kills]  # those at the save that comes next
        done = f"killed at steps {kills} ({saving}: while it is saved) with {workers} workers"
        for step, saved, n_workers in zip([*kills, None], [*saving, False], workers, strict=False):
            begun = (run_folder / "config.yaml").is_file()
            setting = f"data.num_workers={n_workers}"
            arguments = ["resume", str(run_folder), setting] if begun else _train(folder, name, *limits, setting)
            death = None
            if step is not None and saved:
                death = Death(step=min(STEPS, (max(step, 0) // EVERY + 1) * EVERY), after=draw.randrange(1, 40))
                done += f", {death}"
            run = Run(arguments, log, death)
            if death is not None:
                if run.wait() != -signal.SIGKILL:
                    return None  # it had ended before
            elif step is not None:
                wait_for_step(run, log, step)
                time.sleep(draw.random() * (0.05 if step >= 0 else 2))
                if not run.kill():
                    return None
            elif (status := run.wait()) != 0:
                return Verdict("not resumed", f"{done}: exit {status}: {run.said.read_text()[-1000:]}")
        if difference := first_difference(expected, _end(run_folder)):
            return Verdict("other weights", f"{done}: {difference}")
        if _adapter_files(run_folder) != expected_files:
            return Verdict("other weights", f"{done}: the adapter's own files")
        if sample_log(log) != expected_log:
            return Verdict("other samples", done)
        if (wrong := wrong_figures(expected_figures, figures(run_folder))) is not None:
            return Verdict(wrong.outcome, f"{done}: {wrong.detail}")
        return Verdict(IDENTICAL, done)

    yield judge


KILLS = Campaign(
    name="kills",
    title="kills",
    instances=30,
    held=(IDENTICAL,),
    broken=("not resumed", "other weights", "other samples", *WRONG_FIGURES),
    open=_kills,
)
ADAPTERS = {  # through PEFT's layer, with draws and norms; and through the one of our own, with rows beside it
    "dora": ("adapter.kind=dora", "adapter.rank=2", "adapter.dropout=0.2"),
    "lora": ("adapter.kind=lora", "adapter.rank=2", "adapter.words=[97]", "adapter.codes=[7]"),
}
KILLS_OF_ADAPTERS = replace(
    KILLS, name="adapters", title="kills of an adapter's training", instances=10, open=_kills_of_adapters
)


@contextmanager
def _stops(folder: Path) -> Iterator[Judge]:
    def judge(draw: random.Random) -> Verdict:
        log, run_folder = folder / "stopped.jsonl", _run_folder(folder, "stopped")
        shutil.rmtree(run_folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        workers, step, signals = draw.choice([0, 2]), draw.randrange(0, 6), draw.choice([1, 1, 2, 5])
        limits = ["trainer.max_steps=100000", "checkpoint.every_n_steps=0", f"data.num_workers={workers}"]
        run = Run(_train(folder, "stopped", *limits), log)
        wait_for_step(run, log, step)
        time.sleep(draw.random() * 0.05)
        for _ in range(signals):
            run.signal(signal.SIGTERM)
            time.sleep(draw.random() * 0.02)
        status, done = run.wait(), f"{signals} SIGTERMs at step {step}, {workers} workers"
        if status != 143:
            return Verdict("other exit", f"{done}: {status}: {run.said.read_text()[-1000:]}")
        try:
            saved, passed_over = newest_complete(run_folder / "checkpoints")
        except CheckpointError as error:
            return Verdict("steps lost", f"{done}: {error}")
        if passed_over:
            return Verdict("torn", f"{done}: {passed_over}")
        saved_steps, begun = read_checkpoint(saved)["global_step"], last_step(log)
        lost = saved_steps <= begun  # the step that was under way is finished and saved too
        return Verdict("steps lost" if lost else "exit 143", f"{done}: {saved_steps} of {begun + 1}")

    yield judge


STOPS = Campaign(
    name="sigterms",
    title="SIGTERMs",
    instances=20,
    held=("exit 143",),
    broken=("other exit", "torn", "steps lost"),
    open=_stops,
)
