"""Two and four processes on the CPU: the same training as in one, saved and resumed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

from experiments.read_config import load_experiment
from experiments.roll_call import end_of_all, failure_beside, forget_answers, silent_ranks
from experiments.run_folder import RunFolder
from experiments.together import check_one_folder, from_rank_0
from experiments.trainer import build_trainer
from lumos_pl.checkpoints.complete import checkpoint_name, kept_checkpoints
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.digests import check_digest
from lumos_pl.errors import ConfigError, LumosError, TemporaryError
from lumos_pl.machinery.attempts import read_attempts
from lumos_pl.machinery.lightning_private.ranks import RanksMeet
from lumos_pl.machinery.watch import ANSWER_S, LEAVING_S, Stall
from tests.experiments.conftest import SMALL, Train, metrics, result
from tests.processes import lumos, on_ranks
from tests.refusals import told

TWO = ["trainer.devices=2", "trainer.accumulate=1"]  # as many micro-batches a step as one process accumulates


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Run the command in a process and a group of its own, which starts the other ranks."""
    command = [sys.executable, "-m", "experiments.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def losses(run: Path) -> list[float]:
    return [record["loss/train"] for record in metrics(run) if "loss/train" in record]


def validations(run: Path) -> list[dict[str, float]]:
    found = [{name: value for name, value in record.items() if "/val" in name} for record in metrics(run)]
    return [figures for figures in found if figures]


@pytest.mark.seconds
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])  # ddp: the next test
def test_two_processes_train_like_one_and_resume(strategy: str, trained: Train, tmp_path: Path) -> None:
    steps = ["trainer.max_steps=4", "trainer.val_every_n_steps=2", "data.val_batches=3", "optimizer.ema_decay=0.9"]
    one = trained("one", *steps)
    name = ["run.name=two", f"run.dir={tmp_path / 'runs'}"]
    lumos("train", "debug", *SMALL, *steps, *TWO, f"trainer.strategy={strategy}", *name, world=2)
    two = tmp_path / "runs" / "debug" / "two"
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    norms = [[record["grad_norm"] for record in metrics(run) if "grad_norm" in record] for run in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)

    assert validations(two) == [pytest.approx(figures, abs=1e-5) for figures in validations(one)]

    never_stopped = result(two)["weights_sha256"]
    last = two / "checkpoints" / "step-00000004.ckpt"
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    lumos("resume", str(two), "data.num_workers=1", world=2)
    assert result(two)["weights_sha256"] == never_stopped
    assert len(losses(two)) == 4


@pytest.mark.seconds
def test_a_run_moves_from_two_processes_to_one(trained: Train, tmp_path: Path) -> None:
    steps = ["trainer.max_steps=2"]
    one = trained("one", *steps)
    name = ["run.name=two", f"run.dir={tmp_path / 'runs'}"]
    lumos("train", "debug", *SMALL, *steps, *TWO, "trainer.strategy=ddp", *name)  # which starts the other rank
    two = tmp_path / "runs" / "debug" / "two"
    longer = ["trainer.max_steps=4", "trainer.devices=1", "trainer.accumulate=2"]
    lumos("resume", str(two), *longer, "trainer.strategy=auto")
    lumos("resume", str(one), "trainer.max_steps=4")
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


def test_ranks_wait_for_each_other_as_long_as_asked(tmp_path: Path) -> None:
    """The backend waits for longer than a rank may stall: its watch speaks first."""
    settings = ["trainer.devices=2", "trainer.start_timeout_s=7"]
    for seconds in 5, 500:
        config = load_experiment("debug", [*settings, f"trainer.rank_timeout_s={seconds}"])
        trainer = build_trainer(config, RunFolder(tmp_path), [])
        assert isinstance(trainer.strategy, RanksMeet) and trainer.strategy.patience == timedelta(seconds=7)
        backend = getattr(trainer.strategy, "_timeout", timedelta(0))
        assert backend.total_seconds() > max(7, seconds) + 2 * ANSWER_S + LEAVING_S


@pytest.mark.parametrize("stopped", [True, False])
def test_a_silent_rank_0_that_started_this_one_is_woken_or_ended(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is stopped ends by itself once it goes on; one that holds Python's lock in C hears nothing."""
    rank_0 = subprocess.Popen(["sleep", "100"])
    if stopped:
        os.kill(rank_0.pid, signal.SIGSTOP)
        os.waitpid(rank_0.pid, os.WUNTRACED)
    monkeypatch.setattr("experiments.roll_call.launcher", lambda: rank_0.pid)
    stall = Stall("rank 0 stalls")
    stall.silent = [rank_0.pid]
    try:
        assert end_of_all(stall, tmp_path) == 75
        if stopped:
            os.waitpid(rank_0.pid, os.WCONTINUED)
            assert rank_0.poll() is None
        else:
            assert rank_0.wait() == -signal.SIGKILL
    finally:
        rank_0.kill()
        rank_0.wait()


def test_an_error_of_another_rank_is_told_from_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train_dataloader": None, "val_dataloaders": None, "world_size": 4, "global_rank": 1, "global_step": 7}
    trainer = cast(
        Trainer, SimpleNamespace(**parts, default_root_dir=tmp_path, strategy=SimpleNamespace(launcher=None))
    )
    monkeypatch.setattr("experiments.roll_call.silent_ranks", partial(silent_ranks, patience_s=0))
    assert silent_ranks(tmp_path, 3, 4, patience_s=0) == [0, 1, 2]
    timed_out = RuntimeError("Timed out waiting 5000ms for recv operation")
    failure = failure_beside(timed_out, trainer, 5)
    assert failure is not None and (failure.where, failure.got) == ("rank 1, step 7", str(timed_out))
    assert failure.what.startswith("rank 0, 2 ")  # who is silent
    for rank in 0, 2:
        silent_ranks(tmp_path, rank, 4, patience_s=0)
    failure = failure_beside(timed_out, trainer, 5)
    assert failure is not None and failure.where == "rank 1, step 7" and "rank 0, 2" not in failure.what
    forget_answers(tmp_path)
    assert silent_ranks(tmp_path, 0, 4, patience_s=0) == [1, 2, 3]
    assert silent_ranks(tmp_path, 0, 4, ended=lambda: [2]) == [2]
    assert failure_beside(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), trainer, 5) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_that_rest_on_the_host_train_alike(tmp_path: Path) -> None:
    settings = [*SMALL, "trainer.accelerator=gpu", "trainer.strategy=fsdp2", f"run.dir={tmp_path}"]
    for offload in "false", "true":
        lumos("train", "debug", *settings, f"trainer.cpu_offload={offload}", f"run.name={offload}")
    assert losses(tmp_path / "debug" / "true") == pytest.approx(losses(tmp_path / "debug" / "false"), abs=1e-4)


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_with_four(train: Train, tmp_path: Path) -> None:
    """Four micro-batches a step however they are shared out; and the folder of two ranks becomes one file.

    Of the four, every two hold a copy of the weights (HSDP), and rest it in the host's memory. The three steps of the
    two are six batches of theirs, which four do not divide.
    """
    one = train(
        "one", "trainer.max_steps=5", "trainer.accumulate=4", "optimizer.ema_decay=0.9", "checkpoint.every_n_steps=3"
    )
    runs = tmp_path / "runs" / "debug"
    settings = [*SMALL, "optimizer.ema_decay=0.9", "trainer.max_steps=3", "trainer.strategy=fsdp2"]
    places = ["run.name=two", f"run.dir={tmp_path / 'runs'}"]
    lumos("train", "debug", *settings, "trainer.devices=2", "trainer.accumulate=2", *places, world=2)
    checkpoint = runs / "two" / "checkpoints" / "step-00000003.ckpt"
    assert {file.name for file in checkpoint.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}

    lumos("export-hf", str(checkpoint), "--out", str(tmp_path / "exported"))
    (file,) = (tmp_path / "exported").glob("*.safetensors")
    gathered = load_file(file)
    for name, whole in load_decoder(one / "checkpoints" / "step-00000003.ckpt").net.named_parameters():
        torch.testing.assert_close(gathered[name], whole.data, atol=1e-5, rtol=1e-4)

    for ranks, shard_size in (1, "null"), (4, "2"):
        moved = runs / f"on_{ranks}"
        shutil.copytree(runs / "two", moved, symlinks=True)
        shared_out = [f"trainer.devices={ranks}", f"trainer.accumulate={4 // ranks}", "trainer.max_steps=5"]
        placed = [f"trainer.shard_size={shard_size}", f"trainer.cpu_offload={ranks == 4}"]
        lumos("resume", str(moved), *shared_out, *placed, world=ranks)
        assert losses(moved) == pytest.approx(losses(one), abs=1e-5)
        assert len(losses(moved)) == 5
        assert len(list((moved / "checkpoints" / "step-00000005.ckpt").glob("*.distcp"))) == ranks


def other_rank(pid: int) -> int:
    """The process that rank 0 of two started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (other,) = (child for child in map(int, children) if b"debug" in Path(f"/proc/{child}/cmdline").read_bytes())
    return other


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, 75)])
def test_what_the_background_saved_outlives_the_ranks(number: int, status: int, tmp_path: Path) -> None:
    """Told to stop, each finishes what is being written; when one is killed, the other ends and nothing is torn."""
    places = ["run.name=two", f"run.dir={tmp_path}", "trainer.val_every_n_steps=0", "checkpoint.every_n_steps=1"]
    settings = [*SMALL, *TWO, "trainer.max_steps=100000", "trainer.strategy=fsdp2", *places]
    run = tmp_path / "debug" / "two"
    process = start("train", "debug", *settings)
    try:
        while len(kept_checkpoints(run / "checkpoints")) < 2:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.01)
        os.kill(process.pid if number == signal.SIGTERM else other_rank(process.pid), number)
        assert process.wait(timeout=100) == status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for checkpoint in kept_checkpoints(run / "checkpoints"):
        check_digest(checkpoint)
    steps = len(losses(run))
    if number == signal.SIGTERM:
        assert (run / "checkpoints" / checkpoint_name(steps)).exists()
    lumos("resume", str(run), f"trainer.max_steps={steps + 1}", world=2)
    assert len(losses(run)) == steps + 1


@pytest.mark.slow
def test_a_rank_that_fails_at_the_very_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from lightning import Callback\n\n\nclass Fails(Callback):\n    def on_train_end(self, trainer, module):\n"
        "        if trainer.global_rank == 1:\n            raise OSError('no such thing')\n"
    )
    (tmp_path / "mine.yaml").write_text("base: debug\ncallbacks: {extra: [{class_path: own.Fails}]}\n")
    runs = f"run.dir={tmp_path / 'runs'}"
    process = start("train", str(tmp_path / "mine.yaml"), *SMALL, *TWO, "trainer.strategy=ddp", runs, "run.name=one")
    said = (process.communicate(timeout=240)[1] or b"").decode()
    assert process.returncode == 3 and said.count("lumos: ") == 1 and "no such thing" in said
    assert not (tmp_path / "runs" / "mine" / "one" / "result.json").exists()


@pytest.mark.slow
def test_a_rank_that_stalls_ends_the_run(tmp_path: Path) -> None:
    settings = [*SMALL, *TWO, "trainer.max_steps=100000", "trainer.strategy=ddp", "trainer.rank_timeout_s=5"]
    places = ["trainer.val_every_n_steps=0", "run.name=two", f"run.dir={tmp_path}"]
    run = tmp_path / "debug" / "two"
    process = start("train", "debug", *settings, *places)
    try:
        while not (run / "metrics.jsonl").exists() or not losses(run):
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.01)
        other = other_rank(process.pid)
        os.kill(other, signal.SIGSTOP)
        errors = process.communicate(timeout=200)[1].decode()
        what, where, *_ = told(errors.splitlines()[-1])
        assert what.startswith("rank 1 ") and where.startswith("step "), errors
        assert process.returncode == 75
        assert not Path(f"/proc/{other}").exists() or "Z" in Path(f"/proc/{other}/stat").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def see_one_folder(rank: int, world: int, folders: list[Path]) -> tuple[str, str, str] | None:
    try:
        check_one_folder(folders[rank], seen_within_s=0.5)
    except ConfigError as error:
        return str(error.file), str(error.where), str(error.got)
    return None


@pytest.mark.seconds
def test_ranks_with_a_folder_each_are_told_before_the_first_step(tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    assert on_ranks(2, see_one_folder, tmp_path, [shared, shared]) is None
    assert list(shared.iterdir()) == []
    other.mkdir()
    for another in other, tmp_path / "nothing":
        file, where, got = on_ranks(2, see_one_folder, tmp_path, [shared, another])
        assert file == str(shared) and where.startswith("rank 1 on ") and got
    assert list(other.iterdir()) == list(shared.iterdir()) == []


def follow_rank_0(rank: int, world: int) -> tuple[int, int, bool]:
    """What all ranks say of a value of rank 0's and of its failure."""

    def fail() -> None:
        raise TemporaryError("gone")

    value = from_rank_0(lambda: rank + 7)
    try:
        from_rank_0(fail)
    except LumosError as error:
        said: list[object] = [None] * world
        torch.distributed.all_gather_object(said, (value, error.exit_status, getattr(error, "is_told", False)))
        return said  # type: ignore[return-value]
    raise AssertionError


def test_rank_0_decides_for_all(tmp_path: Path) -> None:
    assert on_ranks(2, follow_rank_0, tmp_path) == [(7, 75, False), (7, 75, True)]


@pytest.mark.slow
def test_the_one_command_goes_on_with_other_numbers_of_processes(trained: Train, tmp_path: Path) -> None:
    """By torchrun: the batches of a step stay as many, and so do the figures."""
    one = trained("one", "trainer.max_steps=6")
    run = tmp_path / "runs" / "debug" / "moving"
    command = ["train", "debug", "--resume-or-start", *SMALL, "trainer.strategy=ddp", f"run.dir={tmp_path / 'runs'}"]
    command += ["run.name=moving", "trainer.devices=2", "trainer.accumulate=1"]
    for processes, steps in (1, 2), (2, 4), (1, 6):
        torchrun(processes, *command, f"trainer.max_steps={steps}")
    assert losses(run) == pytest.approx(losses(one), abs=1e-5)
    assert [event["ranks"] for event in read_attempts(run) if event["event"] == "start"] == [1, 2, 1]


def torchrun(processes: int, *command: str) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    done = subprocess.run([*launcher, "-m", "experiments.cli", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
