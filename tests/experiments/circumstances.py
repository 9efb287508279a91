"""What a failure needs besides its arguments: full disks, killed workers, signals."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from experiments.run_folder import RunFolder
from lumos_pl.checkpoints.saves import DirectCheckpointIO
from lumos_pl.loss.masked_cross_entropy import masked_cross_entropy
from lumos_pl.module import LumosModule
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule

Space = namedtuple("Space", "total used free")
FULL = "disk full: "  # before the name of a file that there is no space for


def kill_workers() -> None:
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signal.SIGKILL)


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


EVENTS: dict[str, tuple[type, str, Callable[[], None]]] = {  # by message: before which method something happens
    "data worker killed": (LumosModule, "training_step", kill_workers),
    "data worker killed: tokenizer training": (TokenizerModule, "training_step", kill_workers),
    "SIGTERM: training": (LumosModule, "training_step", ask_to_stop),
    "SIGTERM: sampling": (LumosPipeline, "generate", ask_to_stop),
}


@contextmanager
def before(kind: type, method: str, event: Callable[[], None]) -> Iterator[None]:
    """Have something happen whenever a method is called."""
    original = getattr(kind, method)

    def called(*arguments: Any, **named: Any) -> Any:
        event()
        return original(*arguments, **named)

    with patch.object(kind, method, called):
        yield


@contextmanager
def memory_of(n_bytes: int) -> Iterator[None]:
    """Have the machine seem to have so much memory, to the page."""
    asked = os.sysconf

    def sysconf(name: str | int) -> int:
        return n_bytes // asked("SC_PAGE_SIZE") if name == "SC_PHYS_PAGES" else asked(name)

    with patch.object(os, "sysconf", sysconf):
        yield


@contextmanager
def no_space_for(file: str) -> Iterator[None]:
    """Have the disk be full when what is written for a file is forced to it."""
    forced = os.fsync

    def fsync(descriptor: int) -> None:
        if file in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")
        forced(descriptor)

    with patch.object(os, "fsync", fsync):
        yield


@contextmanager
def broken_loss(after: int = 0) -> Iterator[None]:
    """Have a decoder's loss be NaN from some micro-batch on."""
    calls = count()

    def broken(*arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, token_loss = masked_cross_entropy(*arguments, **named)
        return loss * (float("nan") if next(calls) >= after else 1.0), token_loss

    with patch("lumos_pl.module.masked_cross_entropy", broken):
        yield


@contextmanager
def circumstances(name: str, run: Path) -> Iterator[None]:
    """What no argument can bring about, of the message of this name; `run` is the folder of its run."""
    with patch.dict(os.environ):
        match name:
            case "disk full":
                with patch.object(shutil, "disk_usage", lambda path: Space(1 << 30, 1 << 30, 0)):
                    yield
            case "batches beyond the memory":
                with memory_of(1 << 29):
                    yield
            case "two runs in one folder":
                with RunFolder(run).lock(rank=0):
                    yield
            case "NaN":
                with broken_loss():
                    yield
            case "disk full: amid a checkpoint":
                refused = OSError(errno.ENOSPC, "No space left on device")
                with patch.object(DirectCheckpointIO, "save_checkpoint", side_effect=refused):
                    yield
            case _ if name.startswith(FULL):
                with no_space_for(name.removeprefix(FULL)):
                    yield
            case _ if name in EVENTS:
                with before(*EVENTS[name]):
                    yield
            case _:
                yield
