"""`lumos eval RUN --watch`: each checkpoint once, whoever dies, beside a training that takes them away."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.cli import main
from experiments.evaluation import watch as watching
from experiments.evaluation.settings import EvalSettings
from experiments.evaluation.subject import Subject
from experiments.evaluation.watch import Watcher
from lumos_pl.checkpoints.complete import remove
from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.lease import Leases
from lumos_pl.machinery.retrying import RetryConfig
from tests.callbacks.tiny_run import events
from tests.experiments.conftest import Train
from tests.processes import fork, run_command
from tests.refusals import refused, told

FEW = EvalSettings(only=("loss",), clips=2, mask_ratios=(0.7,), device="cpu")
AT_ONCE = RetryConfig(attempts=2, wait_s=0)


@pytest.fixture
def run(trained: Train) -> Path:
    """A finished run with checkpoints of steps 2, 4 and 6."""
    return trained("watched")


def watch(run: Path, settings: EvalSettings = FEW, **arguments: Any) -> tuple[Watcher, list[str]]:
    said: list[str] = []
    made = Watcher(run, settings, say=said.append, retry=AT_ONCE, **{"poll_s": 0.01, **arguments})
    return made, said


def measured(run: Path) -> dict[int, Any]:
    results = [json.loads(file.read_text()) for file in sorted((run / "eval").glob("step-*.json"))]
    return {result["step"]: result for result in results}


def left_over(run: Path) -> list[str]:
    """What else than results and curves is in the folder of the results."""
    names = [path.name for path in (run / "eval").iterdir() if path.name != ".written"]
    return [name for name in names if not name.endswith((".json", ".curves"))]


@pytest.mark.seconds
def test_every_checkpoint_of_a_finished_run_once_the_newest_first(run: Path) -> None:
    watcher, said = watch(run)
    assert watcher.work() == 3
    assert [line.partition(":")[0] for line in said] == ["step 6", "step 4", "step 2"]
    assert "loss/tube_0.7/loss" in said[0] and "±" in said[0]
    results = measured(run)
    assert list(results) == [2, 4, 6] and left_over(run) == []
    assert results[4]["source"] == str(run / "checkpoints" / "step-00000004.ckpt")

    (file,) = (run / "eval").glob("events.*")
    curve = events(file).Scalars("eval_loss/tube_0.7/loss")
    means = {step: result["measures"]["loss/tube_0.7/loss"]["mean"] for step, result in results.items()}
    assert {point.step: pytest.approx(point.value) for point in curve} == means and len(curve) == 3
    lows = [point.value for point in events(file).Scalars("eval_interval/loss/tube_0.7/loss/low")]
    assert all(low <= point.value for low, point in zip(lows, curve, strict=True))

    before = {file: file.stat().st_mtime_ns for file in (run / "eval").glob("*.json")}
    again, said = watch(run)
    assert again.work() == 0 and said == []
    assert {file: file.stat().st_mtime_ns for file in (run / "eval").glob("*.json")} == before


@pytest.mark.seconds
def test_it_waits_for_a_run_and_follows_it_to_its_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is comes bit by bit, each time that the watcher waits."""
    whole = run.rename(run.with_name("whole"))
    steps = [f"checkpoints/step-0000000{n}.ckpt" for n in (2, 4, 6)]
    arrivals = [["config.yaml"], *([f"{step}.sha256", step] for step in steps), ["result.json"]]

    def arrive(seconds: float) -> None:
        for name in arrivals.pop(0):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(whole / name, run / name)

    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=time.monotonic, sleep=arrive))
    watcher, said = watch(run)
    assert watcher.work() == 3 and arrivals == []
    assert [line.partition(":")[0] for line in said if line.startswith("step")] == ["step 2", "step 4", "step 6"]
    assert said[0].startswith("waiting") and said[1].startswith("waiting")


def test_once_ends_with_those_that_are_there(run: Path) -> None:
    (run / "result.json").unlink()  # it goes on
    watcher, _ = watch(run)
    assert watcher.work(once=True) == 3


def one_watcher(run: Path) -> None:
    Watcher(run, FEW, poll_s=0.01).work()


@pytest.mark.seconds
def test_several_watchers_share_the_work(run: Path, tmp_path: Path) -> None:
    team = [fork(tmp_path / str(n), {}, one_watcher, run) for n in range(3)]
    assert [member.wait() for member in team] == [0, 0, 0]
    lines = [line for member in team for line in member.printed.read_text().splitlines() if "±" in line]
    assert sorted(line.partition(":")[0] for line in lines) == ["step 2", "step 4", "step 6"]
    assert list(measured(run)) == [2, 4, 6] and left_over(run) == []
    (file,) = (run / "eval").glob("events.*")
    assert [point.step for point in events(file).Scalars("eval_loss/tube_0.7/loss")] == [2, 4, 6]


def die_amid(run: Path, number: int) -> None:
    def killed(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)

    Subject.open = killed  # type: ignore[method-assign, assignment]
    run_command(("eval", str(run), "--watch", "--only", "loss", "--clips", "2", "--device", "cpu"))


@pytest.mark.seconds
def test_a_killed_watchers_checkpoint_is_taken_over(run: Path, tmp_path: Path) -> None:
    assert fork(tmp_path / "printed", {}, die_amid, run, signal.SIGKILL).wait() == -signal.SIGKILL
    assert len(left_over(run)) == 2  # its lease, and the checkpoint's second name
    watcher, said = watch(run, lease_s=0.1)
    assert watcher.work() == 3
    assert said[0].startswith("step 4")  # whether another is alive takes a while to see
    assert list(measured(run)) == [2, 4, 6] and left_over(run) == []


@pytest.mark.seconds
def test_a_signal_gives_the_lease_back_at_once(run: Path, tmp_path: Path) -> None:
    stopped = fork(tmp_path / "printed", {}, die_amid, run, signal.SIGTERM)
    assert stopped.wait() == 143
    assert told(stopped.printed.read_text())[1] == str(run)
    with Leases(run / "eval", lease_s=1e6).taken("step-00000006") as lease:
        assert lease is not None
    assert [name for name in left_over(run) if ".lease-" not in name] == []  # and holds no checkpoint any more
    watcher, said = watch(run, lease_s=1e6)
    assert watcher.work() == 3 and said[0].startswith("step 6")


@pytest.mark.seconds
def test_a_checkpoint_that_is_rotated_away_while_it_is_read_is_measured_all_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Subject.open

    def rotated(source: Path, settings: EvalSettings) -> Subject:
        assert remove(run / "checkpoints" / source.name)
        return opened(source, settings)

    monkeypatch.setattr(Subject, "open", rotated)
    watcher, _ = watch(run)
    assert watcher.work() == 3
    assert list(measured(run)) == [2, 4, 6] and left_over(run) == []
    assert not list((run / "checkpoints").glob("step-*"))


def test_without_hard_links_one_that_is_rotated_away_is_said_and_the_others_are_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    opened = Subject.open

    def rotated(source: Path, settings: EvalSettings) -> Subject:
        if "4" in source.name:
            assert remove(source)
        return opened(source, settings)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Subject, "open", rotated)
    watcher, said = watch(run)
    assert watcher.work() == 2
    assert list(measured(run)) == [2, 6] and left_over(run) == []
    (line,) = [line for line in said if line.startswith("step 4")]
    assert "removed" in line


def test_a_damaged_one_is_passed_over_by_a_line_once(run: Path) -> None:
    file = run / "checkpoints" / "step-00000004.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    watcher, said = watch(run)
    assert watcher.work() == 2
    (line,) = [line for line in said if line.startswith("step 4")]
    assert str(file) in line and "damaged" in line
    assert list(measured(run)) == [2, 6]


@pytest.mark.seconds
@pytest.mark.parametrize(("failures", "steps"), [(1, [2, 4, 6]), (99, [2, 6])])
def test_trouble_of_the_storage_is_tried_again_and_then_left_for_later(
    run: Path, monkeypatch: pytest.MonkeyPatch, failures: int, steps: list[int]
) -> None:
    opened, left = Subject.open, [failures]

    def troubled(source: Path, settings: EvalSettings) -> Subject:
        if "4" in source.name and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(source, settings)

    monkeypatch.setattr(Subject, "open", troubled)
    watcher, said = watch(run)
    if failures == 1:
        assert watcher.work() == 3
    else:
        with refused(TemporaryError, file=run / "checkpoints"):
            watcher.work()
        assert len([line for line in said if line.startswith("step 4")]) == 1
    assert list(measured(run)) == steps


def test_a_storage_that_is_gone_is_to_be_tried_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(watching, "kept_checkpoints", fail)
    with refused(TemporaryError, file=run):
        watch(run)[0].work()


@pytest.mark.seconds
def test_results_of_other_settings_are_not_mixed(run: Path, tmp_path: Path) -> None:
    assert watch(run)[0].work() == 3
    with refused(ConfigError, file="step-00000002.json", where="clips", got=3, expected=2):
        watch(run, replace(FEW, clips=3))[0].work()
    assert watch(run, replace(FEW, clips=3, out=tmp_path / "out"))[0].work() == 3
    assert len(list((tmp_path / "out" / "eval").glob("step-*.json"))) == 3


def test_what_has_a_results_name_and_is_none_is_kept(run: Path) -> None:
    (run / "eval").mkdir()
    theirs = run / "eval" / "step-00000004.json"
    theirs.write_text("mine")
    assert main(["eval", str(run), "--watch", "--only", "loss", "--clips", "2", "--device", "cpu"]) == 3
    assert theirs.read_text() == "mine"


@pytest.mark.seconds
def test_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(run), "--only", "loss", "--clips", "2", "--device", "cpu"]
    assert main([*command, "--watch"]) == 0
    assert "step 6: loss/" in capsys.readouterr().out
    for wrong in (["--once"], ["--watch", "--poll", "0"], ["--watch", "data.colour=red"]):
        assert main([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["eval", str(run / "checkpoints" / "last.ckpt"), "--watch"]) == 2
    assert main(["eval", str(tmp_path / "nothing"), "--watch", "--once"]) == 2
