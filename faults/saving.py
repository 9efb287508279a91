"""Kills at every point of saving a checkpoint."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch.distributed as dist
from lightning import Trainer

from faults.campaign import Campaign, Judge, Verdict
from faults.checkpoints import tiny_content
from lumos_pl.checkpoints import saving
from lumos_pl.checkpoints.background import BackgroundWriter
from lumos_pl.checkpoints.complete import LAST, newest_complete, read_checkpoint, remove_leftovers
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.saving import CheckpointConfig, DirectCheckpointIO
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.stop_request import StopRequest

SAVES = 3
EVENTS = {"open", "os.rename", "os.remove", "os.symlink", "os.rmdir", "os.mkdir", "shutil.rmtree"}
OTHER_FILE_SYSTEM = Path("/dev/shm")


class _StandIn:
    """What `Checkpointing` needs of a trainer; it saves as FSDP2, in the background, or as one process does."""

    is_global_zero, world_size, fast_dev_run = True, 1, False

    def __init__(self, *, sharded: bool) -> None:
        self.content: Mapping[str, Any] = {}
        self.train_dataloader = self.val_dataloaders = None
        self.strategy = SimpleNamespace(barrier=lambda name: None, writing=None)
        self._writer = None
        if sharded:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
            self._writer = BackgroundWriter(timedelta(seconds=60))

    def save_checkpoint(self, path: Path) -> None:
        if self._writer is None:
            DirectCheckpointIO().save_checkpoint(dict(self.content), path)
        else:
            plain = {name: value for name, value in self.content.items() if name != "state_dict"}
            self.strategy.writing = self._writer.start({"state_dict": self.content["state_dict"]}, plain, path)


def _save_and_die(folder: Path, contents: list[dict[str, Any]], draw: random.Random, ready: int, sharded: bool) -> None:
    """Save one checkpoint after the other, be killed at a file operation or wait for it; never returns."""
    left = draw.randrange(150) if draw.random() < 0.6 else None

    def count(event: str, _: object) -> None:
        nonlocal left
        if left is not None and event in EVENTS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = _StandIn(sharded=sharded)
    os.write(ready, bytes([0]))
    sys.addaudithook(count)
    checkpointing = saving.Checkpointing(folder, CheckpointConfig(keep=draw.choice([1, 2])), {}, StopRequest())
    status = 70  # something that no kill explains
    try:
        for content in contents:
            trainer.content = content
            checkpointing._save(cast(Trainer, trainer), content["global_step"])
            checkpointing._finish(cast(Trainer, trainer))
            os.write(ready, bytes([content["global_step"]]))
        status = 0
    finally:
        os._exit(status)


def _leftovers(folder: Path) -> list[str]:
    kept = {path.name for path in folder.glob("step-*.ckpt")}
    known = kept | {f"{name}.sha256" for name in kept} | {LAST}
    return [path.name for path in folder.iterdir() if path.name not in known]


@contextmanager
def _kill_points(folder: Path) -> Iterator[Judge]:
    contents = [tiny_content(step) for step in range(1, SAVES + 1)]

    def judge(draw: random.Random) -> Verdict:
        while (verdict := killed(draw)) is None:  # all was saved before
            pass
        return verdict

    def killed(draw: random.Random) -> Verdict | None:
        run, sharded = folder / "run", draw.random() < 0.4
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        elsewhere = OTHER_FILE_SYSTEM if OTHER_FILE_SYSTEM.is_dir() and draw.random() < 0.5 else folder
        with tempfile.TemporaryDirectory(dir=elsewhere) as temporary:
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.environ["TMPDIR"] = tempfile.tempdir = temporary
                _save_and_die(run, contents, draw, write, sharded)
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                pipe.read(1)  # it begins
                time.sleep(draw.random() * (0.3 if sharded else 0.05))  # about what it takes
                os.kill(pid, signal.SIGKILL)
                status = os.waitpid(pid, 0)[1]
                finished = max(pipe.read(), default=0)
            orphans = [path.name for path in Path(temporary).iterdir()]
        verdict = _inspect(run, finished, orphans, f"{'sharded' if sharded else 'file'}, TMPDIR in {elsewhere}")
        if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
            return Verdict("crash", "the saving process failed")
        return verdict if os.WIFSIGNALED(status) or verdict.outcome != "whole" else None

    yield judge


def _inspect(run: Path, finished: int, orphans: list[str], done: str) -> Verdict:
    """What a kill left of the checkpoints of a run that had saved `finished` of them."""
    done += f", {finished} saved"
    remove_leftovers(run)  # as a run does when it starts
    if found := orphans + _leftovers(run):
        return Verdict("orphans", f"{done}: {found}")
    try:
        newest, passed_over = newest_complete(run)
    except CheckpointError as error:
        return Verdict("lost" if finished else "whole", f"{done}: {error}")
    step = int(read_checkpoint(newest)["global_step"])
    if step < finished:
        return Verdict("lost", f"{done}: {newest.name}")
    decoder = load_decoder(newest)
    original = tiny_content(step)["state_dict"]
    equal = all(bool((tensor == original[f"net.{name}"]).all()) for name, tensor in decoder.net.named_parameters())
    linked = not (run / LAST).is_symlink() or (run / LAST).exists()
    torn = passed_over or not equal or step != int(newest.name[5:13]) or not linked
    return Verdict("torn" if torn else "whole", f"{done}: {newest.name}, {passed_over}")


SAVING = Campaign(
    name="saving",
    title="kill points while saving",
    instances=200,
    held=("whole",),
    broken=("torn", "lost", "orphans", "crash"),
    open=_kill_points,
)
