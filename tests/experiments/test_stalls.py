"""However one of two ranks ends or stalls, both end soon with 75, and one of them says which it was."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lumos_pl.module import LumosModule
from tests.experiments.conftest import SMALL
from tests.processes import fork, free_port, run_command

TIMEOUT_S = 5


def loop() -> None:
    while True:
        pass


WAYS = {
    "loops": loop,
    "waits": lambda: threading.Event().wait(),
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def train_until(way: str, rank: int, arguments: list[str], moment: str) -> None:
    """The command, in whose third step one rank is lost."""
    step_of = LumosModule.training_step

    def step(module: LumosModule, *given: Any) -> Any:
        if module.global_rank == rank and module.global_step == 2:
            Path(moment).write_text(str(time.time()))
            WAYS[way]()
        return step_of(module, *given)

    LumosModule.training_step = step  # type: ignore[method-assign]
    run_command(tuple(arguments))


FAST = {("is killed", 0)}  # of the others a quick test of lumos_pl/machinery/watch.py tells who is named
EACH = [
    pytest.param(way, rank, marks=[] if (way, rank) in FAST else [pytest.mark.slow]) for way in WAYS for rank in (0, 1)
]


@pytest.mark.seconds
@pytest.mark.parametrize(("way", "rank"), EACH)
def test_the_rank_is_named(way: str, rank: int, tmp_path: Path) -> None:
    """Of ranks that a launcher started, as torchrun and SLURM do: none of them can look after the other as a parent."""
    settings = [*SMALL, "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=1000", f"run.dir={tmp_path}"]
    timeouts = [f"trainer.rank_timeout_s={TIMEOUT_S}", "trainer.start_timeout_s=60", "trainer.val_every_n_steps=0"]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    arguments = ["train", "debug", *settings, *timeouts, "run.name=two"]
    ranks = [
        fork(tmp_path / f"{each}.said", {**together, "LOCAL_RANK": str(each)}, train_until, way, rank, arguments,
             str(tmp_path / "moment"))
        for each in (0, 1)
    ]  # fmt: skip
    other, ended = ranks[1 - rank].wait(), time.time()
    lost = ranks[rank].wait()
    said = "".join(one.printed.read_text() for one in ranks)
    lines = [line for line in said.splitlines() if line.startswith("lumos: rank ")]
    assert other == 75 and lost in (75, -signal.SIGKILL), said
    assert len(lines) == 1 and lines[0].startswith(f"lumos: rank {rank} "), said
    assert ended - float((tmp_path / "moment").read_text()) < TIMEOUT_S + 30  # on a busy machine; the watch takes 5
