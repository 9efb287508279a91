"""Cases that hang, fail and die, a driver that is killed, and time that runs out."""

from __future__ import annotations

import io
import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.gpu.driver import ROOT, NoWorkerError, Workers, run_case
from tests.bench.stand_ins import HERE, case, counted, drive


class Clock:
    """Time that passes only where a limit is waited for, however busy the machine is.

    Args:
        pids: the file by which a case says that it hangs: only then its limit passes.
    Attributes:
        now: in seconds.
        answer_s: how long every answer takes.
    """

    def __init__(self, pids: Path) -> None:
        self.now, self.answer_s = 0.0, 0.0
        self._pids, self._seen = pids, ""

    def monotonic(self) -> float:
        return self.now

    def select(self, reads: list[Any], _: list[Any], __: list[Any], limit_s: float) -> tuple[list[Any], ...]:
        while not (ready := select.select(reads, [], [], 0.01)[0]):
            said = self._pids.read_text() if self._pids.exists() else ""
            if len(said.split()) == 2 and said != self._seen:
                self._seen = said
                self.now += limit_s
                return [], [], []
        self.now += self.answer_s
        return ready, [], []


@pytest.fixture(autouse=True)
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(tmp_path / "pids")
    for place in "bench.gpu.driver.time", "bench.gpu.driver.select", f"{HERE}.time":
        monkeypatch.setattr(place, clock)
    return clock


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Ended, whether or not somebody has asked for its status."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.seconds
def test_one_line_for_each_case_whatever_becomes_of_it(tmp_path: Path, clock: Clock) -> None:
    log, pids, printed = tmp_path / "ran", tmp_path / "pids", io.StringIO()
    first, second = counted(log, "first", "second")
    listed = [first, case("hangs", "hang", 0.7, pids=str(pids)), case("fails", "fail"), case("dies", "die"), second]
    record = drive(listed, tmp_path / "gpu.json", console=Console(file=printed, width=200))
    assert clock.now == 0.7
    assert {name: (result["state"], result.get("failed")) for name, result in record.results.items()} == {
        "first": ("measured", None),
        "hangs": ("exceeded", "exceeded its 0.7 s"),
        "fails": ("failed", "ValueError: no such thing"),
        "dies": ("failed", "the worker died: SIGSEGV"),
        "second": ("measured", None),
    }
    assert printed.getvalue().splitlines() == [
        "first | 1000.0 ms",
        "hangs | exceeded: exceeded its 0.7 s",
        "fails | failed: ValueError: no such thing",
        "dies | failed: the worker died: SIGSEGV",
        "second | 1000.0 ms",
    ]
    for pid in map(int, pids.read_text().split()):  # the worker, and what the case had started
        wait_for(partial(is_gone, pid))
    assert json.loads((tmp_path / "gpu.json").read_text())["results"] == record.results
    assert "no such" in (tmp_path / "gpu.log").read_text()


@pytest.mark.seconds
def test_one_process_measures_until_it_is_spent(tmp_path: Path) -> None:
    listed = [*counted(tmp_path / "ran", "a"), case("spoils", "spoil"), *counted(tmp_path / "ran", "b", "c")]
    results = drive(listed, tmp_path / "gpu.json").results
    pids = [results[name]["figures"]["pid"] for name in ("a", "spoils", "b", "c")]
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.seconds
def test_a_killed_driver_leaves_nothing_behind_and_nothing_is_measured_again(tmp_path: Path) -> None:
    out, log, pids = tmp_path / "gpu.json", tmp_path / "ran", tmp_path / "pids"
    program = f"from {HERE} import drive_until_killed as drive; drive({str(out)!r}, {str(log)!r}, {str(pids)!r})"
    driver = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    finally:
        driver.kill()
        driver.wait()
    for pid in map(int, pids.read_text().split()):
        wait_for(partial(is_gone, pid))
    assert list(json.loads(out.read_text())["results"]) == ["one", "two"]
    pids.unlink()  # nothing hangs any more
    drive(counted(log, "one", "two", "three"), out)
    assert log.read_text().split() == ["one", "two", "three"]
    assert list(json.loads(out.read_text())["results"]) == ["one", "two", "three"]


@pytest.mark.seconds
def test_what_was_measured_is_measured_again_only_when_asked_for_or_by_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, log = tmp_path / "gpu.json", tmp_path / "ran"
    listed = [*counted(log, "a"), case("b", "fail"), case("c", "hang", 0.3, pids=str(tmp_path / "pids"))]
    drive(listed, out)
    before = json.loads(out.read_text())["results"]
    drive(listed, out)
    assert json.loads(out.read_text())["results"] == before
    drive(listed[:1], out, again=True)
    assert log.read_text().split() == ["a", "a"]
    monkeypatch.setattr("bench.gpu.record.code_digest", lambda: "other")
    drive(listed[:1], out)
    assert log.read_text().split() == ["a", "a", "a"]
    assert list(json.loads(out.read_text())["results"]) == ["a", "b", "c"]


@pytest.mark.seconds
def test_it_ends_in_time_and_says_what_was_not_begun(tmp_path: Path, clock: Clock) -> None:
    out, pids = tmp_path / "gpu.json", str(tmp_path / "pids")
    listed = [
        *counted(tmp_path / "ran", "long"),  # 20 s, half of which is not left
        case("cut", "hang", 1.9, pids=pids),
        case("late", "hang", 1.9, pids=pids),
    ]
    record = drive(listed, out, seconds=1.8)
    assert clock.now == 1.8
    assert record.not_begun == json.loads(out.read_text())["not_begun"] == ["long", "late"]
    assert record.results["cut"]["state"] == "cut short"
    again = drive([*listed[:1], case("cut", "fail")], out)  # as it got less than its time, it is tried once more
    assert again.not_begun == []
    assert {name: result["state"] for name, result in again.results.items()} == {"long": "measured", "cut": "failed"}


def test_a_late_start_leaves_no_time(tmp_path: Path, clock: Clock) -> None:
    clock.answer_s = 0.5
    with Workers(tmp_path / "log", f"{HERE}:describe") as workers:
        assert run_case(case("half of it", "fail", 1.4), workers, 1.1) is None
        answered = run_case(case("all of it", "fail", 1.4), workers, 5)
        assert answered is not None and answered["state"] == "failed"


@pytest.mark.seconds
def test_a_worker_that_cannot_start_is_told(tmp_path: Path) -> None:
    with Workers(tmp_path / "log", f"{HERE}:fail") as workers, pytest.raises(NoWorkerError, match="no such thing"):
        workers.start()
    with Workers(tmp_path / "log", f"{HERE}:die") as workers, pytest.raises(NoWorkerError, match="SIGSEGV"):
        workers.start()
