"""Leases: one holder at a time, whoever dies, and nothing that is none of ours is touched."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace

import pytest

from lumos_pl.machinery import lease
from lumos_pl.machinery.lease import LeaseLostError, Leases
from tests.processes import fork


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that waiting processes see, to be set."""
    now = [0.0]
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    return now


def test_one_holds_it_until_it_is_given_back(tmp_path: Path) -> None:
    one, other = (Leases(tmp_path, lease_s=60) for _ in range(2))
    with one.taken("work") as held:
        assert held is not None
        held.check()
        with other.taken("work") as second, other.taken("other work") as third:
            assert second is None and third is not None
        assert str(os.getpid()) in other.holder("work")
    with other.taken("work") as held:
        assert held is not None


def test_what_an_exception_ends_is_given_back(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), Leases(tmp_path, lease_s=60).taken("work"):
        raise SystemExit(143)
    with Leases(tmp_path, lease_s=60).taken("work") as held:
        assert held is not None


def hold_and_die(folder: Path) -> None:
    with Leases(folder, lease_s=60).taken("work", note="left behind"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_holders_work_is_taken_over_when_it_was_silent_for_long_enough(
    tmp_path: Path, clock: list[float]
) -> None:
    assert fork(tmp_path / "printed", {}, hold_and_die, tmp_path).wait() == -signal.SIGKILL
    forgotten: list[str] = []
    waiting = Leases(tmp_path, lease_s=60, forget=forgotten.append)
    for now, is_taken in ((0.0, False), (59.0, False), (61.0, True)):
        clock[0] = now
        with waiting.taken("work") as held:
            assert (held is not None) == is_taken
    assert forgotten == ["left behind"]


def test_a_holder_that_writes_is_alive_whatever_its_clock_says(tmp_path: Path, clock: list[float]) -> None:
    waiting = Leases(tmp_path, lease_s=60)
    with Leases(tmp_path, lease_s=1e6).taken("work"):
        file = tmp_path / "work.lease-0"
        for now in range(0, 600, 50):
            clock[0] = now
            file.write_text(json.dumps(json.loads(file.read_text()) | {"renewed": now, "until": -now}))
            with waiting.taken("work") as held:
                assert held is None


def test_it_is_renewed_by_itself(tmp_path: Path) -> None:
    with Leases(tmp_path, lease_s=0.04).taken("work"):
        file = tmp_path / "work.lease-0"
        first = file.read_bytes()
        while file.read_bytes() == first:
            pass


def test_a_holder_learns_that_its_work_was_taken_over(tmp_path: Path, clock: list[float]) -> None:
    waiting = Leases(tmp_path, lease_s=60)
    with Leases(tmp_path, lease_s=1e6).taken("work") as slow:
        assert slow is not None
        for now in (0.0, 61.0):
            clock[0] = now
            with waiting.taken("work") as quick:
                assert (quick is not None) == bool(now)
        with pytest.raises(LeaseLostError):
            slow.check()
        waiting.clear("work")  # it was done
        with pytest.raises(LeaseLostError):
            slow.check()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    for round_ in range(20):
        together, held = Barrier(8), list[int]()

        def take(number: int, work: str, together: Barrier = together, held: list[int] = held) -> None:
            leases = Leases(tmp_path, lease_s=60)
            together.wait()
            with leases.taken(work) as lease:
                if lease is not None:
                    held.append(number)
                together.wait()  # all have tried

        team = [Thread(target=take, args=(n, f"work-{round_}")) for n in range(8)]
        for member in team:
            member.start()
        for member in team:
            member.join()
        assert len(held) == 1


def test_what_is_no_lease_is_neither_written_nor_removed(tmp_path: Path, clock: list[float]) -> None:
    theirs = tmp_path / "work.lease-0"
    theirs.write_text("mine")
    (tmp_path / "work.lease-x").write_text("mine")
    waiting = Leases(tmp_path, lease_s=60)
    for now in (0.0, 61.0):
        clock[0] = now
        with waiting.taken("work") as held:
            assert (held is not None) == bool(now)
    waiting.clear("work")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "work.lease-0": "mine",
        "work.lease-x": "mine",
    }
