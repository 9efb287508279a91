"""Whole runs, small: what is in the folder, what it prints, what it refuses."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer

from experiments.cli import main
from experiments.run_folder import RunFolder, resolve_latest
from lumos_pl.errors import ConfigError
from lumos_pl.module import LumosModule
from tests.experiments.conftest import Train, metrics, result


def forget(run: Path, *steps: int) -> None:
    """Delete checkpoints, as if the run had been killed before them."""
    for step in steps:
        (run / "checkpoints" / f"step-{step:08d}.ckpt").unlink()


def test_a_run_leaves_everything_behind(train: Train) -> None:
    run = train("one")
    names = {path.name.split(".")[0] for path in run.iterdir()}
    assert names >= {"config", "checkpoints", "events", "metrics", "result"}
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    kept = sorted(path.name for path in (run / "checkpoints").glob("*.ckpt"))
    assert kept == ["last.ckpt", *(f"step-{step:08d}.ckpt" for step in (2, 4, 6))]
    assert (run / "checkpoints" / "last.ckpt").resolve().name == "step-00000006.ckpt"
    end = result(run)
    assert end["steps"] == 6 and len(end["weights_sha256"]) == 64
    assert len(end["frame_loss"]["train"]["frames"]) == 3
    steps = [record["step"] for record in metrics(run) if "loss/train" in record]
    assert steps == list(range(6))
    losses = [record["loss/train"] for record in metrics(run) if "loss/train" in record]
    assert losses[-1] < losses[0]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["lumos"]["config"]["seed"] == 0


@pytest.mark.parametrize("kind", ["image", "video", "joint"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_never_stopped(kind: str, workers: int, train: Train) -> None:
    settings = [f"data.kind={kind}", "optimizer.ema_decay=0.9"]
    whole = train("whole", *settings)
    killed = train("killed", *settings)
    forget(killed, 4, 6)
    (killed / "result.json").unlink()
    assert main(["resume", str(killed), f"data.num_workers={workers}"]) == 0
    assert result(killed)["weights_sha256"] == result(whole)["weights_sha256"]
    same = [[(r["step"], r["loss/train"]) for r in metrics(run) if "loss/train" in r] for run in (whole, killed)]
    assert same[0] == same[1]
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, killed)]
    assert any(name.startswith("ema.") for name in states[0])
    for name, weight in states[0].items():
        assert torch.equal(weight, states[1][name]), name


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("one")
    expected = result(run)["weights_sha256"]
    newest = run / "checkpoints" / "step-00000006.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert main(["resume", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "passed over: checkpoint is damaged" in printed and "step-00000006.ckpt" in printed
    assert "resuming from" in printed and "step-00000004.ckpt" in printed
    assert result(run)["weights_sha256"] == expected


def test_a_longer_run_goes_on_and_settings_may_change(train: Train) -> None:
    run = train("one")
    assert main(["resume", str(run), "trainer.max_steps=8", "optimizer.lr=1e-9", "optimizer.warmup_steps=0"]) == 0
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-9


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("data.synthetic.n_samples=12", "data."),
        ("data.video.batch_size=2", "data.video.batch_size"),
        ("data.caption_dropout=0.2", "data.caption_dropout"),
        ("layout.codebook_size=99", "manifest"),
        ("model.rope=1d", "model.rope"),
        ("seed=3", "seed"),
        ("trainer.accumulate=3", "batches_per_step"),
    ],
)
def test_resume_with_something_else_is_refused(
    override: str, where: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("one", "trainer.max_steps=2")
    assert main(["resume", str(run), override]) == 4
    error = capsys.readouterr().err
    assert error.startswith("lumos: the run was made with something else") and where in error
    assert error.count("\n") == 1 and "--allow-changes" in error


def test_changes_can_be_allowed(train: Train) -> None:
    run = train("one", "trainer.max_steps=2")
    assert main(["resume", str(run), "--allow-changes", "data.caption_dropout=0.2", "trainer.max_steps=3"]) == 0
    assert result(run)["steps"] == 3


def test_a_second_run_of_the_same_name_is_refused(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("one", "trainer.max_steps=2")
    before = (run / "result.json").read_text()
    train("one", status=2)
    assert "this run exists" in capsys.readouterr().err
    assert (run / "result.json").read_text() == before


def test_a_folder_in_use_is_refused_with_the_pid(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("one", "trainer.max_steps=2")
    with RunFolder(run).lock(rank=0):
        assert main(["resume", str(run), "trainer.max_steps=4"]) == 2
    error = capsys.readouterr().err
    assert "another process writes to this run" in error and str(os.getpid()) in error


def test_latest_stands_for_the_newest_run(train: Train) -> None:
    train("one", "trainer.max_steps=1")
    newest = train("another", "trainer.max_steps=1")
    assert resolve_latest(newest.parent / "latest" / "checkpoints") == newest / "checkpoints"
    assert main(["resume", str(newest.parent / "latest"), "trainer.max_steps=2"]) == 0
    assert result(newest)["steps"] == 2
    assert resolve_latest(newest) == newest
    with pytest.raises(ConfigError, match="no run yet"):
        resolve_latest(newest / "latest")


def test_resume_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "not a run's folder" in capsys.readouterr().err


def test_fine_tuning_starts_from_another_runs_weights(train: Train) -> None:
    first = train("first")
    checkpoint = first / "checkpoints" / "last.ckpt"
    still = train("still", f"init_from={checkpoint}", "optimizer.lr=1e-12", "optimizer.weight_decay=0", "seed=9")
    trained, kept = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (first, still))
    for name, weight in trained["state_dict"].items():
        torch.testing.assert_close(kept["state_dict"][name], weight, atol=1e-6, rtol=0)


def test_init_from_nothing_is_refused(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("one", f"init_from={tmp_path / 'nowhere.ckpt'}", status=4)
    assert "no such checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_leaves(
    number: signal.Signals, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole")
    step_of = LumosModule.training_step

    def step(module: LumosModule, *arguments: object) -> object:
        if module.global_step == 2 and not getattr(module, "signalled", False):
            module.signalled = True  # amid the accumulation of step 3
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return step_of(module, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LumosModule, "training_step", step)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        train("stopped")
    assert left.value.code == 128 + number
    assert signal.getsignal(number) == before
    run = whole.parent / "stopped"
    assert (run / "checkpoints" / "last.ckpt").resolve().name == "step-00000003.ckpt"
    assert main(["resume", str(run)]) == 0
    assert result(run)["weights_sha256"] == result(whole)["weights_sha256"]


def test_a_loss_that_is_not_finite_stops_before_the_update(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step_of = LumosModule._step

    def step(module: LumosModule, batch: object) -> dict[str, torch.Tensor]:
        outputs = step_of(module, batch)  # type: ignore[arg-type]
        if module.trainer.global_step == 3:
            outputs["loss"] = outputs["loss"] * float("nan")
        return outputs

    monkeypatch.setattr(LumosModule, "_step", step)
    run = train("one", "trainer.val_every_n_steps=0", status=5)
    error = capsys.readouterr().err
    assert error.startswith("lumos: loss is not finite | step 3, samples image/")
    assert error.count("\n") == 1
    kept = sorted(path.name for path in (run / "checkpoints").glob("step-*.ckpt"))
    assert kept == ["step-00000002.ckpt"]


def test_masks_can_be_swapped_in_one_line(train: Train) -> None:
    digests = set()
    for override in ("mask.kind=tube", "mask.kind=random", "model.rope=3d_block", "mask.schedule=linear"):
        run = train(override.replace("=", "-"), override, "trainer.max_steps=2")
        digests.add(result(run)["weights_sha256"])
        shutil.rmtree(run)
    assert len(digests) == 4


def test_a_full_disk_keeps_the_earlier_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = Trainer.save_checkpoint

    def full(trainer: Trainer, path: Path) -> None:
        save(trainer, path)
        if trainer.global_step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    run = train("one", status=4)
    error = capsys.readouterr().err
    assert error.startswith("lumos: checkpoint cannot be saved") and "No space left" in error and error.count("\n") == 1
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {"step-00000002.ckpt", "step-00000002.ckpt.sha256", "last.ckpt"}
    monkeypatch.undo()
    assert main(["resume", str(run)]) == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", "debug", f"run.dir={tmp_path / 'file'}"]) == 2
    assert "the run's folder cannot be made" in capsys.readouterr().err
