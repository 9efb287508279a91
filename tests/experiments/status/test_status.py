"""What `lumos status` tells of folders whose state is known by construction."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.status.status import read_status
from lumos_pl.errors import TemporaryError
from lumos_pl.machinery.file_lock import file_lock
from tests.experiments.conftest import Train
from tests.refusals import refused, told

HERE = socket.gethostname()
CONFIG = "trainer: {max_steps: 100}\ncheckpoint: {every_n_steps: 20}\n"
START = {"event": "start", "time": 1000.0, "step": 0, "ranks": 2, "host": HERE, "pid": 1}
END = {"event": "end", "time": 2000.0, "step": 57, "status": 0, "line": ""}
UNUSED_PID = 2**22 + 1  # above the most that Linux gives


def make_run(folder: Path, *attempts: dict[str, Any], logged: int | None = 57, saved: int | None = 40) -> Path:
    """A run of 100 steps that logged up to one and saved another."""
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG)
    (run / "attempts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in attempts))
    if logged is not None:
        first = {"step": 9, "loss/val": 3.5, "loss/train": 4.0}
        last = {"step": logged - 1, "loss/train": 2.5, "throughput/step_seconds_median": 3.0}
        (run / "metrics.jsonl").write_text(f'{json.dumps(first)}\n{json.dumps(last)}\n{{"step": 99, "loss/tr')
    if saved is not None:
        checkpoint = run / "checkpoints" / f"step-{saved:08d}.ckpt"
        checkpoint.write_bytes(bytes(3000))
        checkpoint.with_name(f"{checkpoint.name}.sha256").write_text(f"{'0' * 64}  {checkpoint.name}\n")
    return run


def age(run: Path, seconds: float) -> None:
    for file in [*run.rglob("*")]:
        os.utime(file, (time.time() - seconds,) * 2)


@contextmanager
def nobody_writes(run: Path) -> Iterator[None]:
    """Nothing in the folder is another afterwards, whether it was opened or not."""

    def seen() -> dict[str, Any]:
        return {
            str(path): (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            for path in [run, *run.rglob("*")]
            for status in [path.lstat()]
        }

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize(
    ("attempts", "pid", "state", "word"),
    [
        ([START, END | {"status": 143}], "", "stopped", "SIGTERM"),
        ([START, END | {"status": 130}], "", "stopped", "SIGINT"),
        (
            [START, END | {"status": 5, "line": "the loss is not finite | step 57"}],
            "",
            "failed",
            "not finite | step 57",
        ),
        ([START, END | {"status": 75, "line": "a mount is away"}, START], str(UNUSED_PID), "killed", str(UNUSED_PID)),
        ([START, END | {"status": 75, "line": "a mount is away"}], "", "failed", "the same command"),
        ([START], str(UNUSED_PID), "killed", HERE),
        ([], str(UNUSED_PID), "killed", str(UNUSED_PID)),  # of before there were attempts
        ([], "", "stopped", "nothing tells"),
        ([START, END], "", "stopped", "own settings"),
    ],
)
def test_how_a_run_ended(attempts: list[dict[str, Any]], pid: str, state: str, word: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, *attempts)
    (run / "run.lock").write_text(pid)
    with nobody_writes(run):
        status = read_status(run)
    assert (status.state, status.step, status.max_steps, status.undone) == (state, 57, 100, 17)
    assert word in status.said
    assert status.restarts == (sum(one["event"] == "start" for one in attempts) - 1 if attempts else None)
    assert status.losses == {"loss/train": (56, 2.5), "loss/val": (9, 3.5)}
    assert status.saved is not None and (status.saved.step, status.saved.n_bytes) == (40, 3000)
    assert status.next_save is status.ends_in is None  # it does not go on by itself


def test_the_sources_of_a_mixture(tmp_path: Path) -> None:
    """57 steps of the training, which left out 3 of the order: of three in four, and one in four from step 20 on."""
    run = make_run(tmp_path, START)
    sources = {"films": {"weight": 3}, "art": {"weight": [[20, 0], [20, 1]]}, "never": {"weight": [[90, 0], [91, 1]]}}
    data = json.dumps({"sources": sources, "skip_steps": ["4-5", 60]})
    (run / "config.yaml").write_text(f"{CONFIG}data: {data}\n")
    (run / "metrics.jsonl").write_text('{"step": 56, "loss/train": 2.5, "loss_source/train/films": 2.25}\n')
    found = read_status(run).sources
    assert {name: source.loss for name, source in found.items()} == {"films": (56, 2.25), "art": None, "never": None}
    assert found["films"].steps + found["art"].steps == 57 and found["never"].steps == 0  # type: ignore[operator]
    assert found["art"].steps == pytest.approx((57 + 2 - 20) / 4, abs=1)
    for damaged in "[a]", "{sources: [a]}", "{sources: {films: 3}}", "{sources: {films: {weight: much}}}":
        (run / "config.yaml").write_text(f"{CONFIG}data: {damaged}\n")
        assert {source.steps for source in read_status(run).sources.values()} <= {None}


def test_a_run_that_runs(tmp_path: Path) -> None:
    """The lock stays with whoever has it; when the next save is due and the end follow from the speed."""
    run = make_run(tmp_path, START)
    shard = {
        "step": 3,
        "shard": "d/a.tar",
        "sha256": "0" * 64,
        "place": None,
        "key": None,
        "samples": 64,
        "reason": "x",
    }
    sample = shard | {"shard": "d/b.tar", "place": 5, "key": "clip-5", "samples": 1}
    (run / "left_out.jsonl").write_text(f'{json.dumps(shard)}\n{json.dumps(sample)}\n{{"st')
    with file_lock(run / "run.lock"), nobody_writes(run):
        status = read_status(run)
        with refused(TemporaryError, file=run), file_lock(run / "run.lock"):
            pass
    assert status.state == "running" and str(os.getpid()) in status.said and HERE in status.said
    assert (status.next_save, status.next_save_in, status.ends_in) == (60, 3 * 3.0, 43 * 3.0)
    assert (status.undone, status.left_out, status.seconds_per_step) == (17, 65, 3.0)
    assert status.saves_left == status.disk_free // 3000


def test_the_lock_is_never_taken_from_a_run_that_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: at each call to the system that may lock, another process finds it free."""
    run = make_run(tmp_path)
    (run / "run.lock").write_text(str(UNUSED_PID))
    taken = []
    monkeypatch.setattr("fcntl.flock", lambda *_: taken.append("flock"))
    monkeypatch.setattr("fcntl.lockf", lambda *_: taken.append("lockf"))
    assert read_status(run).state == "killed" and taken == []


def test_a_run_that_was_killed_left_its_lock_free(tmp_path: Path) -> None:
    """The process, not its pid, is what counts: another one may have the pid by now."""
    run = make_run(tmp_path, START)
    code = f"""
from pathlib import Path
from lumos_pl.machinery.file_lock import file_lock
with file_lock(Path({str(run / "run.lock")!r})):
    print("held", flush=True)
    input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    assert read_status(run).state == "running"
    holder.kill()
    holder.communicate()
    assert (run / "run.lock").read_text() == str(holder.pid) and read_status(run).state == "killed"
    (run / "run.lock").write_text(str(os.getpid()))
    assert read_status(run).state == "killed"


@pytest.mark.parametrize(("quiet", "state"), [(5, "running"), (100_000, "silent")])
def test_of_another_machines_process_only_what_it_writes_is_seen(quiet: float, state: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, START | {"host": "node-7"})
    (run / "run.lock").write_text("4711")
    age(run, quiet)
    status = read_status(run)
    assert status.state == state and "pid 4711 on node-7" in status.said


@pytest.mark.parametrize(
    ("logged", "saved", "attempts", "state"),
    [(None, None, [], "never started"), (None, None, [START], "killed"), (12, None, [START], "killed")],
)
def test_a_run_without_a_checkpoint(
    logged: int | None, saved: int | None, attempts: list[dict[str, Any]], state: str, tmp_path: Path
) -> None:
    status = read_status(make_run(tmp_path, *attempts, logged=logged, saved=saved))
    assert (status.state, status.step, status.undone) == (state, logged or 0, logged or 0)
    assert status.saved is status.saves_left is None


def test_the_latest_run_is_found_before_its_first_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, START, saved=None)
    assert main(["status", str(tmp_path / "latest"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(tmp_path / "run")


def test_a_checkpoint_counts_when_it_is_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path, START)
    (run / "checkpoints" / "step-00000060.ckpt").mkdir()  # a folder without its digest
    (run / "checkpoints" / ".step-00000080.ckpt.0123456789abcdef.partial").mkdir()
    status = read_status(run)
    assert status.saved is not None and status.saved.step == 40 and not status.is_saving
    with file_lock(run / "run.lock"):
        assert read_status(run).is_saving


def test_a_long_record_is_read_from_its_end(tmp_path: Path) -> None:
    """In a few MiB; what stands far before the end is found too."""
    run = make_run(tmp_path, START)
    line = json.dumps({"step": 60, "grad_norm": 1.0, "padding": "x" * 900}) + "\n"
    with (run / "metrics.jsonl").open("w") as file:
        file.write(json.dumps({"step": 9, "loss/val": 3.5}) + "\n")
        file.writelines([line] * 20_000)
        file.write(json.dumps({"step": 69, "loss/train": "nan"}) + "\n")
    tracemalloc.start()
    status = read_status(run)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status.step == 70 and status.losses == {"loss/train": (69, "nan"), "loss/val": (9, 3.5)}
    assert peak < 8 << 20


def test_a_real_run(trained: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """Its end, and as one of several; piped, which it is here, without a frame."""
    run = trained("one")
    capsys.readouterr()  # what the training printed
    with nobody_writes(run):
        assert main(["status", str(run), "--json"]) == 0
    told_of = json.loads(capsys.readouterr().out)
    assert (told_of["state"], told_of["step"], told_of["saved"]["step"]) == ("finished", 6, 6)
    assert told_of["losses"]["loss/val"][0] == 3 and told_of["seconds_per_step"] > 0
    assert main(["status", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "state\tfinished" in printed and "6 of 6" in printed and "│" not in printed
    (run.parent / "notes").mkdir()
    assert main(["status", *map(str, run.parent.iterdir())]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 and len(rows[0].split("\t")) == len(heading.split("\t"))
    assert main(["status", str(run), str(run.parent / "notes"), "--json"]) == 0
    assert [one["run"] for one in json.loads(capsys.readouterr().out)] == [str(run)]


@pytest.mark.parametrize("name", ["absent", "notes", "notes/latest"])
def test_what_is_no_run_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    assert main(["status", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and told(captured.err)


def test_a_file_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not waited for."""
    run = make_run(tmp_path)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    assert main(["status", str(run)]) == 3
    assert str(run / "metrics.jsonl") in told(capsys.readouterr().err)


def test_it_does_not_wait_for_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path, START)
    code = f"""
import sys
from experiments.cli import main
main(["status", {str(run)!r}])
assert not {{"torch", "lightning"}} & set(sys.modules), "loaded"
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
