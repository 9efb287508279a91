"""Runs of `lumos` in processes of their own, which can be killed: forked, so that none imports torch anew."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from experiments import cli
from faults.processes import forked
from lumos_pl.optimized_module import OptimizedModule

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.symlink", "os.rmdir", "os.mkdir", "shutil.rmtree", "ctypes.dlsym"}
"""What Python says of operations on files; the last comes before each of renameat2's."""
MAX_SECONDS = 600  # for a run that should end by itself, on a busy machine
SETTINGS = (  # accumulation, dropout of captions, masking, images and videos: all that an exact resume has to restore
    "trainer.accumulate=2", "data.caption_dropout=0.3", "data.given_prob=0.3", "data.synthetic.n_samples=10",
    "data.image.batch_size=2", "data.video.batch_size=1", "data.video.frames=9", "trainer.val_every_n_steps=0",
    "optimizer.ema_decay=0.9", "callbacks.progress_bar=false", "callbacks.log_every_n_steps=1",
    "callbacks.sample_grid_every_n_steps=0", "callbacks.heatmap_every_n_steps=0",
)  # fmt: skip


class Death(NamedTuple):
    """A kill amid the saving of a step: at so many operations on files after its checkpoint begins to be completed.

    The first of them give the checkpoint its name, further ones come after that.
    """

    step: int
    after: int

    def hook(self) -> Callable[[str, tuple[Any, ...]], None]:
        left = -1

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in FILE_EVENTS:
                return
            if left < 0 and f"step-{self.step:08d}.ckpt.sha256" in str(arguments[0]):
                left = self.after
            elif left > 0:
                left -= 1
            if left == 0:
                os.killpg(0, signal.SIGKILL)

        return count


class Run:
    """`lumos` in a process group of its own; the samples of every batch are written into `sample_log`."""

    def __init__(
        self,
        arguments: Sequence[str],
        sample_log: Path,
        death: Death | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            prepare: done in the process before its command is begun.
        """
        self.said = sample_log.with_suffix(".said")
        self.pid = forked(lambda: lumos(list(arguments), sample_log, death, prepare), self.said)
        os.setpgid(self.pid, self.pid)  # by whichever of the two comes first
        self._status: int | None = None

    def ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def signal(self, number: int) -> None:
        """To the run and its data workers."""
        if not self.ended():
            os.killpg(self.pid, number)

    def wait(self, at_most: float = MAX_SECONDS) -> int:
        """The exit status, negative where a signal ended it.

        Raises:
            TimeoutError: it went on for so many seconds, and was killed.
        """
        deadline = time.monotonic() + at_most
        while not self.ended():
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise TimeoutError(f"a run went on for {at_most:.0f} s: {self.said.read_text()[-2000:]}")
            time.sleep(0.005)
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def kill(self) -> bool:
        """Whether it was this that ended the run."""
        self.signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


def lumos(
    arguments: list[str], sample_log: Path, death: Death | None = None, prepare: Callable[[], None] = lambda: None
) -> int:
    """The command in this process, whose samples are written down."""
    log_samples(sample_log)
    prepare()
    if death is not None:
        sys.addaudithook(death.hook())
    return cli.main(arguments)


def at_each_loss(act: Callable[[OptimizedModule, Tensor, Sequence[str]], object]) -> None:
    """From now on, do something in this process the moment the loss of a batch, and its samples, are known."""
    minimized = OptimizedModule.loss_to_minimize

    def watched(module: OptimizedModule, loss: Tensor, n_targets: int, samples: Sequence[str]) -> Tensor:
        act(module, loss, samples)
        return minimized(module, loss, n_targets, samples)

    OptimizedModule.loss_to_minimize = watched  # type: ignore[method-assign, assignment]


def log_samples(file: Path) -> None:
    """Have every batch's loss and samples written down."""
    start = time.time_ns()

    def note(module: OptimizedModule, loss: Tensor, samples: Sequence[str]) -> None:
        entry = {"start": start, "step": module.global_step, "loss": float(loss).hex(), "samples": list(samples)}
        with file.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    at_each_loss(note)


def sample_log(file: Path) -> dict[int, list[Any]]:
    """Loss and samples of every batch of each step, as the last process that came to the step had them."""
    steps: dict[int, tuple[int, list[Any]]] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        entry = json.loads(line)
        start, step = entry["start"], entry["step"]
        if step not in steps or steps[step][0] != start:
            steps[step] = start, []
        steps[step][1].append((entry["loss"], entry["samples"]))
    return {step: batches for step, (_, batches) in sorted(steps.items())}


def wait_for_step(run: Run, file: Path, step: int) -> None:
    """Until the run began the step, or ended."""
    while not run.ended() and last_step(file) < step:
        time.sleep(0.002)


def last_step(file: Path) -> int:
    """The last step that began, and with that the number of those that ended; -1: none began."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else -1
