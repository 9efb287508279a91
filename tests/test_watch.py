"""Which rank holds the others up, and who says so first."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from lumos_pl.errors import TemporaryError
from lumos_pl.machinery import torch_versions, watch
from lumos_pl.machinery.progress import mark, now
from lumos_pl.machinery.watch import Report, judged
from tests.processes import fork

HERE = socket.gethostname()


def report(rank: int, **said: Any) -> Report:
    plain: dict[str, Any] = {
        **{"rank": rank, "host": "node", "pid": 1000 + rank, "doing": "training on a batch", "step": 7, "count": 15},
        **{"seconds": 6.0, "limit_s": 5.0, "place": f"model.py:{rank} in forward", "waits": False, "number": 9},
    }
    return Report(**plain | said)


def waiting(rank: int, **said: Any) -> Report:
    return report(rank, waits=True, place="distributed_c10d.py:1 in all_reduce", **said)


@pytest.mark.parametrize(
    ("reports", "which"),
    [
        ([waiting(0), report(1), waiting(2)], [1]),  # amid its own work, where the others wait in an exchange
        ([waiting(0), waiting(1, count=14), waiting(2)], [1]),  # a batch behind the others
        ([waiting(0), waiting(1), report(2, number=None)], [2]),  # not heard of any more
        ([waiting(0, seconds=1.0), report(1)], [1]),  # the first waits for it, if not for as long
        ([waiting(0), waiting(1)], [0, 1]),  # nobody knows
        ([report(0, limit_s=600.0, seconds=5.5), waiting(1)], None),  # slow work that the other waits for
        ([report(0, seconds=0.1), report(1)], None),  # which goes on
    ],
)
def test_the_rank_that_holds_the_others_up_is_named(reports: list[Report], which: list[int] | None) -> None:
    stall = judged(reports)
    if which is None:
        assert stall is None
        return
    assert isinstance(stall, TemporaryError) and stall.exit_status == 75
    assert stall.what.startswith(f"rank {', '.join(map(str, which))} ")
    assert stall.where is not None and stall.where.startswith("step 7, ")
    assert stall.expected == "within 5 s"


def test_a_process_that_is_silent_is_known_where_it_is_ours() -> None:
    silent = report(1, number=None, host=HERE, pid=os.getpid())
    stall = judged([waiting(0), silent, report(2, number=None)])
    assert stall is not None and stall.silent == [os.getpid()]


def test_one_process_that_makes_no_progress_says_where() -> None:
    stall = judged([report(0)])
    assert stall is not None and "rank" not in stall.what and "model.py:0 in forward" in str(stall.where)


def wait_for_nothing(_: object) -> None:
    threading.Event().wait()


def fail(_: object) -> None:
    raise RuntimeError


def stall(folder: Path, tell: Callable[[object], None]) -> None:
    watch.TELLING_S = 0.2
    with watch.Watch(folder, 0, limit_s=0.2, slow_limit_s=0.2, tell=tell):
        threading.Event().wait(60)


@pytest.mark.parametrize("tell", [wait_for_nothing, fail])
def test_a_rank_ends_with_its_line_where_nobody_can_be_asked(tell: Callable[[object], None], tmp_path: Path) -> None:
    """As where the storage hangs, which is what the work waits for, and on which the ranks settle who tells."""
    stalled = fork(tmp_path / "printed", {}, stall, tmp_path, tell)
    assert stalled.wait() == 75
    assert sum(line.startswith("lumos: ") for line in stalled.printed.read_text().splitlines()) == 1


class Local:
    """What only a collection ends, and what is ended waits for the interpreter's list of threads then."""

    def __init__(self) -> None:
        self.own, self.cycle = threading.local(), self


def litter(folder: Path) -> None:
    """Threads whose frames are new at every look, and collections at any moment."""
    over = threading.Event()
    gc.set_threshold(100)

    def wait() -> None:
        while not over.wait(0.001):
            Local()

    for _ in range(20):
        threading.Thread(target=wait, daemon=True).start()
    with watch.Watch(folder, 0, limit_s=0.02, slow_limit_s=60, tell=fail):
        over.wait(1)
    over.set()
    os._exit(0)


@pytest.mark.seconds
def test_where_a_thread_is_can_be_asked_amid_collections(tmp_path: Path) -> None:
    """CPython 3.11 waits for itself without end where something is collected meanwhile (python/cpython#106883)."""
    littering = fork(tmp_path / "printed", {}, litter, tmp_path)
    end = time.monotonic() + 30
    while not littering.has_ended and time.monotonic() < end:
        time.sleep(0.01)
    if not littering.has_ended:
        os.kill(littering.pid, signal.SIGKILL)
    assert littering.wait() == 0


def test_marks_count_what_all_ranks_do_in_turn() -> None:
    before = now()
    mark("training on a batch", step=3, counts=True)
    mark("generating clips")
    assert (now().count, now().step, now().doing) == (before.count + 1, 3, "generating clips")
    assert now().since > before.since


@pytest.mark.parametrize("is_new", [False, True])
def test_the_backend_remembers_its_exchanges(is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL reads these as the process group is made, and writes a file of each rank where it ends a process itself."""
    monkeypatch.setattr(torch_versions, "KNOWS_NEW_NAMES", is_new)
    monkeypatch.setattr(os, "environ", {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"})
    torch_versions.record_exchanges(tmp_path)
    assert os.environ.pop("TORCH_NCCL_DUMP_ON_TIMEOUT") == "0"  # the user's own
    earlier = {"TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"}
    assert set(os.environ) == {"TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE"} | (set() if is_new else earlier)
    for name, value in os.environ.items():
        assert Path(value).parent == tmp_path if name.endswith("FILE") else int(value) > 0


def test_what_is_remembered_is_read(tmp_path: Path) -> None:
    if dist.is_initialized():
        pytest.skip("another test's process group is there")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert isinstance(torch_versions.flight_record(), bytes)
    finally:
        dist.destroy_process_group()
