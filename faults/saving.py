"""Kills at every point of saving a checkpoint."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch.distributed as dist
from lightning import Trainer

from faults.campaign import Campaign, Judge, Verdict
from faults.checkpoints import tiny_content
from faults.runs import FILE_EVENTS
from lumos_pl.checkpoints import saving
from lumos_pl.checkpoints.background import BackgroundWriter
from lumos_pl.checkpoints.complete import LAST, kept_checkpoints, newest_complete, remove_leftovers, step_of
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.saves import DirectCheckpointIO, Writing
from lumos_pl.checkpoints.saving import CheckpointConfig
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.machinery.stop_request import StopRequest

SAVES = 3
OPERATIONS = 110  # on files, about what they take
FOREIGN = {  # files of the user's around ours, of any content; "->" links to one outside, "/" is one in such a folder
    "step-00000002-good.ckpt", "step-best.ckpt", "step-best.ckpt.sha256", "step-1.ckpt", "notes.partial",
    "step-00000001.ckpt.partial", ".step-00000001.ckpt.partial", "step-00000001.ckpt", "step-00000002.ckpt",
    "step-00000002.ckpt.sha256", "last.ckpt", "step-00000003.ckpt/notes", "step-00000003.ckpt.sha256/notes",
    "last.ckpt/notes", "-> step-00000001.ckpt", "-> step-00000002.ckpt.sha256", "-> step-00000003.ckpt",
    "-> last.ckpt", "-> last.ckpt.partial", "-> step-00000002.ckpt.partial",
}  # fmt: skip
OTHER_FILE_SYSTEM = Path("/dev/shm")


class _Connector:
    def update_train_step_metrics(self) -> None:
        """As Lightning's, without loggers."""


class _StandIn:
    """What `Checkpointing` needs of a trainer; it saves as FSDP2, in the background, or as one process does."""

    is_global_zero, world_size, fast_dev_run, global_step = True, 1, False, 0
    loggers = ()

    def __init__(self, *, sharded: bool) -> None:
        self.content: Mapping[str, Any] = {}
        self._logger_connector = _Connector()
        self.train_dataloader = self.val_dataloaders = None
        self.strategy = SimpleNamespace(barrier=lambda name: None)
        self.fit_loop = SimpleNamespace()
        self._writer = None
        if sharded:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
            self._writer = BackgroundWriter(timedelta(seconds=60))

    def save_checkpoint(self, path: Path, *, storage_options: Writing | None = None) -> None:
        if self._writer is None or storage_options is None:
            DirectCheckpointIO().save_checkpoint(dict(self.content), path, storage_options)
        else:
            plain = {name: value for name, value in self.content.items() if name != "state_dict"}
            state = {"state_dict": self.content["state_dict"]}
            storage_options.written = self._writer.start(state, plain, path, storage_options.retry)


def _save_and_die(
    folder: Path, contents: Mapping[int, Mapping[str, Any]], *, left: int | None, keep: int, ready: int, sharded: bool
) -> None:
    """Save one checkpoint after the other, be killed after so many file operations or by others; never returns."""

    def count(event: str, _: object) -> None:
        nonlocal left
        if left is not None and event in FILE_EVENTS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = _StandIn(sharded=sharded)
    os.write(ready, bytes([0]))
    sys.addaudithook(count)
    checkpointing = saving.Checkpointing(folder, CheckpointConfig(keep=keep), {}, StopRequest())
    status = 70  # something that no kill explains
    try:
        for step, content in contents.items():
            trainer.content, trainer.global_step = content, step
            checkpointing._save(cast(Trainer, trainer), step)
            checkpointing._finish(cast(Trainer, trainer))
            os.write(ready, bytes([step]))
        status = 0
    finally:
        os._exit(status)


def _plant(run: Path, draw: random.Random) -> dict[str, str]:
    """Put files of a user's among those of a run; their names by their contents."""
    planted: dict[str, str] = {}
    taken: set[str] = set()
    for name in draw.sample(sorted(FOREIGN), draw.choice([0, 1, 3, 6])):
        path, content = run / name.removeprefix("-> "), f"theirs: {name}"
        place = path.relative_to(run).parts[0]
        if place in taken:
            continue
        taken.add(place)
        planted[content] = place
        path.parent.mkdir(exist_ok=True)
        if name.startswith("->"):
            target = run.with_name("outside") / place
            target.write_text(content)
            path.symlink_to(target)
        else:
            path.write_text(content)
    return planted


def _lost(run: Path, planted: Mapping[str, str]) -> list[str]:
    """What of the user's files is gone or changed, be it moved aside or not."""
    files = [file for folder in (run, run.with_name("outside")) for file in folder.rglob("*") if file.is_file()]
    found = {file.read_bytes() for file in files if file.lstat().st_size < 100}
    outside = {file.name: file.read_text(errors="replace") for file in run.with_name("outside").iterdir()}
    changed = [name for name, content in outside.items() if planted.get(content) != name]
    return [name for content, name in planted.items() if content.encode() not in found] + changed


def _leftovers(folder: Path, planted: Iterable[str]) -> list[str]:
    kept = {path.name for path in kept_checkpoints(folder)}
    known = kept | {f"{name}.sha256" for name in kept} | {LAST, RECORD, *planted}
    return [path.name for path in folder.iterdir() if path.name not in known and ".kept-" not in path.name]


@contextmanager
def _kill_points(folder: Path) -> Iterator[Judge]:
    contents = {step: tiny_content(step) for step in range(1, SAVES + 1)}

    def judge(draw: random.Random) -> Verdict | None:
        run, sharded = folder / "run", draw.random() < 0.4
        for place in run, run.with_name("outside"):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        planted = _plant(run, draw)
        left, keep = draw.randrange(OPERATIONS) if draw.random() < 0.6 else None, draw.choice([1, 2])
        elsewhere = OTHER_FILE_SYSTEM if OTHER_FILE_SYSTEM.is_dir() and draw.random() < 0.5 else folder
        with tempfile.TemporaryDirectory(dir=elsewhere) as temporary:
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.environ["TMPDIR"] = tempfile.tempdir = temporary
                _save_and_die(run, contents, left=left, keep=keep, ready=write, sharded=sharded)
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                pipe.read(1)  # it begins
                if left is None:
                    time.sleep(draw.random() * (0.3 if sharded else 0.05))  # about what it takes
                    os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
                finished = max(pipe.read(), default=0)
            orphans = [path.name for path in Path(temporary).iterdir()]
        done = f"{'sharded' if sharded else 'file'}, TMPDIR in {elsewhere}, {sorted(planted)}"
        verdict = _inspect(run, finished, orphans, planted, done)
        if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
            return Verdict("crash", "the saving process failed")
        return verdict if os.WIFSIGNALED(status) or verdict.outcome != "whole" else None  # all was saved before

    yield judge


def _inspect(run: Path, finished: int, orphans: list[str], planted: Mapping[str, str], done: str) -> Verdict:
    """What a kill left of the checkpoints of a run that had saved `finished` of them, and of a user's files."""
    done += f", {finished} saved"
    remove_leftovers(run)  # as a run does when it starts
    if gone := _lost(run, planted):
        return Verdict("user's lost", f"{done}: {gone}")
    if found := orphans + _leftovers(run, planted.values()):
        return Verdict("orphans", f"{done}: {found}")
    try:
        newest, passed_over = newest_complete(run)
    except CheckpointError as error:
        return Verdict("lost" if finished else "whole", f"{done}: {error}")
    step = step_of(newest)
    if step < finished:
        return Verdict("lost", f"{done}: {newest.name}")
    decoder = load_decoder(newest)
    original = tiny_content(step)["state_dict"]
    equal = all(bool((tensor == original[f"net.{name}"]).all()) for name, tensor in decoder.net.named_parameters())
    linked = not (run / LAST).is_symlink() or (run / LAST).exists()
    passed_over = [line for line in passed_over if not any(f"{run}/{name} " in f"{line} " for name in planted.values())]
    torn = passed_over or not equal or not linked
    return Verdict("torn" if torn else "whole", f"{done}: {newest.name}, {passed_over}")


SAVING = Campaign(
    name="saving",
    title="kill points while saving",
    instances=200,
    held=("whole",),
    broken=("torn", "lost", "orphans", "user's lost", "crash"),
    open=_kill_points,
)
