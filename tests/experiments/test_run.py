"""Whole runs, small: what is in the folder, what it prints, what it refuses."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from lightning import Trainer

from experiments.assemble import with_makeable_clips
from experiments.cli import main
from experiments.config import ExperimentConfig
from experiments.read_config import load_experiment
from experiments.run_folder import NAME_VARIABLE, RunFolder
from experiments.train import weights_sha256
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.errors import CheckpointError, ConfigError, TemporaryError
from lumos_pl.machinery.atomic_file import naming
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.module import LumosModule
from tests.experiments.circumstances import broken_loss
from tests.experiments.conftest import Train, metrics, result
from tests.refusals import refused, told


def test_a_run_leaves_everything_behind(trained: Train) -> None:
    run = trained("one")
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


def test_only_the_newest_checkpoints_are_kept(train: Train) -> None:
    run = train("one", "checkpoint.every_n_steps=1", "checkpoint.keep=2")
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [
        f"step-{step:08d}.ckpt{digest}" for step in (5, 6) for digest in ("", ".sha256")
    ]


def test_without_an_interval_the_end_is_saved(train: Train) -> None:
    run = train("one", "trainer.max_steps=3", "checkpoint.every_n_steps=0", "checkpoint.keep=0")
    assert [path.name for path in (run / "checkpoints").glob("step-*.ckpt")] == ["step-00000003.ckpt"]


def test_the_average_is_of_the_weights_after_the_step(train: Train) -> None:
    run = train("one", "trainer.max_steps=2", "optimizer.ema_decay=1e-9")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    names = [name.removeprefix("net.") for name in state if name.startswith("net.")]
    assert names
    for name in names:
        torch.testing.assert_close(state[f"ema.{name}"], state[f"net.{name}"], atol=1e-7, rtol=0)


def test_learning_rate_and_validation_are_logged_at_their_steps(train: Train) -> None:
    run = train("one", "optimizer.warmup_steps=3", "optimizer.lr=3e-3", "trainer.val_every_n_steps=2")
    rates = {record["step"]: record[key] for record in metrics(run) for key in record if key.endswith("pg1")}
    assert list(rates.values()) == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3, 3e-3, 3e-3])
    assert [record["step"] for record in metrics(run) if "loss/val" in record] == [1, 3, 5]
    assert set(result(run)["loss"]) == {"loss/train", "loss/val"}


def test_the_optimizer_gets_clipped_gradients(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step_of = LumosModule.optimizer_step

    def step(module: LumosModule, *arguments: object) -> None:
        step_of(module, *arguments)  # type: ignore[arg-type]
        gradients = [p.grad for p in module.net.parameters() if p.grad is not None]  # type: ignore[union-attr]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    monkeypatch.setattr(LumosModule, "optimizer_step", step)
    run = train("one", "trainer.max_steps=2", "optimizer.grad_clip=0.01")
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
    assert min(record["grad_norm"] for record in metrics(run) if "grad_norm" in record) > 0.01


def test_the_weights_digest_is_of_names_and_values() -> None:
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def digest(**modules: torch.nn.Module) -> str:
        return weights_sha256(torch.nn.ModuleDict(modules).named_parameters())

    before = digest(a=a, b=b)
    assert digest(b=b, a=a) == before
    assert digest(a=a, c=b) != before
    with torch.no_grad():
        b.bias[0] += 1
    assert digest(a=a, b=b) != before


def test_a_second_run_of_the_same_name_is_refused(
    train: Train, trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("one", "trainer.max_steps=2")
    before = (run / "result.json").read_text()
    train("one", status=2)
    assert str(run) in told(capsys.readouterr().err)
    assert (run / "result.json").read_text() == before


def test_a_folder_in_use_is_refused_with_the_pid(trained: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("one", "trainer.max_steps=2")
    with RunFolder(run).lock(rank=0):
        assert main(["resume", str(run), "trainer.max_steps=4"]) == TemporaryError.exit_status
    assert told(capsys.readouterr().err)[1:3] == [str(run), f"got pid {os.getpid()}"]


@pytest.mark.seconds
@pytest.mark.parametrize("content", [b"", b"[]", b'{"steps": "2"}', b'{"steps": null}', b"{}", b"\xff", b"[" * 9999])
def test_a_damaged_result_is_one_line(content: bytes, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """And what its fix says writes it anew."""
    run = train("one", "trainer.max_steps=1")
    (run / "result.json").write_bytes(content)
    capsys.readouterr()
    assert main(["resume", str(run)]) == 3
    error = capsys.readouterr().err
    assert f"{run}/result.json" in error and error.count("\n") == 1
    (run / "result.json").unlink()
    assert main(["resume", str(run)]) == 0
    assert RunFolder(run).has_ended(1)


def test_the_lock_names_only_who_holds_it(tmp_path: Path) -> None:
    for _ in range(2):
        with RunFolder(tmp_path).lock(rank=0):
            assert (tmp_path / "run.lock").read_text() == str(os.getpid())


def test_processes_agree_on_a_runs_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_experiment("debug", [f"run.dir={tmp_path}"])
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused(ConfigError, where="run.name"):
        RunFolder.named("debug", config)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert RunFolder.named("debug", config).path.name == "slurm-17"
    assert os.environ[NAME_VARIABLE] == "slurm-17"
    monkeypatch.setenv(NAME_VARIABLE, "agreed")
    folder = RunFolder.named("debug", config)
    with folder.lock(rank=1):
        assert folder.path == tmp_path / "debug" / "agreed" and not folder.path.exists()  # rank 0 makes it


@pytest.mark.seconds
def test_latest_stands_for_the_newest_run(train: Train) -> None:
    train("one", "trainer.max_steps=1")
    newest = train("another", "trainer.max_steps=1")
    assert resolve_named(newest.parent / "latest" / "checkpoints") == newest / "checkpoints"
    assert main(["resume", str(newest.parent / "latest"), "trainer.max_steps=2"]) == 0
    assert result(newest)["steps"] == 2
    assert resolve_named(newest) == newest
    with refused(ConfigError, file=newest):
        resolve_named(newest / "latest")


def test_resume_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert told(capsys.readouterr().err)[1:3] == [str(tmp_path), "got no config.yaml"]


def test_fine_tuning_starts_from_another_runs_weights(train: Train, trained: Train) -> None:
    first = trained("first")
    checkpoint = first / "checkpoints" / "last.ckpt"
    still = train("still", f"init_from={checkpoint}", "optimizer.lr=1e-12", "optimizer.weight_decay=0", "seed=9")
    trained, kept = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (first, still))
    for name, weight in trained["state_dict"].items():
        torch.testing.assert_close(kept["state_dict"][name], weight, atol=1e-6, rtol=0)


@pytest.mark.seconds
def test_a_resume_needs_no_init_from(train: Train, trained: Train) -> None:
    source = trained("first", "trainer.max_steps=1") / "checkpoints" / "step-00000001.ckpt"
    run = train("second", "trainer.max_steps=1", f"init_from={source}")
    source.unlink()
    assert main(["resume", str(run), "trainer.max_steps=2"]) == 0


def test_init_from_nothing_is_refused(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("one", f"init_from={tmp_path / 'nowhere.ckpt'}", status=4)
    assert told(capsys.readouterr().err)[1:3] == [str(tmp_path / "nowhere.ckpt"), "init_from"]


@pytest.mark.seconds
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_leaves(
    number: signal.Signals, train: Train, trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained("whole")
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
    assert signal.getsignal(number) == signal.SIG_IGN  # to the end of the process
    signal.signal(number, before)
    run = whole.parent / "stopped"
    assert (run / "checkpoints" / "last.ckpt").resolve().name == "step-00000003.ckpt"
    assert main(["resume", str(run)]) == 0
    assert result(run)["weights_sha256"] == result(whole)["weights_sha256"]


def test_a_loss_that_is_not_finite_stops_before_the_update(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    with broken_loss(after=3 * 2):  # two micro-batches a step
        run = train("one", "trainer.val_every_n_steps=0", status=5)
    assert told(capsys.readouterr().err)[1].startswith("step 3, samples image/")
    kept = sorted(path.name for path in (run / "checkpoints").glob("step-*.ckpt"))
    assert kept == ["step-00000002.ckpt"]


def test_what_the_storage_fails_of_while_training_may_pass(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(module: LumosModule, *arguments: object) -> object:
        with naming(tmp_path / "a picture"):
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(LumosModule, "training_step", step)
    train("one", status=75)
    assert told(capsys.readouterr().err)[1] == str(tmp_path / "a picture")


def test_auto_is_the_cpu_where_there_is_no_gpu(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (train("auto", "trainer.accelerator=auto", "trainer.max_steps=1") / "result.json").is_file()


def test_a_run_that_asks_for_validation_by_half_is_warned(train: Train) -> None:
    with pytest.warns(UserWarning, match="nothing is validated"):
        run = train("half", "data.val_root=null", "trainer.max_steps=1")
    with warnings.catch_warnings(record=True) as said:  # that does not begin: its failure is all there is to say
        warnings.simplefilter("always")
        assert main(["resume", str(run), "layout.codebook_size=120"]) == CheckpointError.exit_status
    assert not [one for one in said if "validated" in str(one.message)]


def test_prompts_need_a_text_tokenizer() -> None:
    config = load_experiment("debug", ["callbacks.prompts=[a cat]", "visual_tokenizer=embedded"])
    texts_are_ids: Any = SimpleNamespace(tokenizer=None)
    with refused(ConfigError, where="data.text_tokenizer"):
        with_makeable_clips(cast(ExperimentConfig, config), texts_are_ids)
    config = load_experiment("t2v_1b", ["visual_tokenizer=embedded"])
    assert config.callbacks.prompts
    with pytest.warns(UserWarning, match=r"data\.text_tokenizer"):
        shown = with_makeable_clips(cast(ExperimentConfig, config), texts_are_ids)
    assert shown.callbacks.prompts == []
    with_both = SimpleNamespace(tokenizer="anything")
    assert with_makeable_clips(cast(ExperimentConfig, config), cast(Any, with_both)) == config


@pytest.mark.seconds
def test_masks_can_be_swapped_in_one_line(train: Train) -> None:
    digests = set()
    for override in ("mask.kind=tube", "mask.kind=random", "model.rope=3d_block", "mask.schedule=linear"):
        run = train(override.replace("=", "-"), override, "trainer.max_steps=2")
        digests.add(result(run)["weights_sha256"])
        shutil.rmtree(run)
    assert len(digests) == 4


def test_a_full_disk_keeps_the_earlier_checkpoint_and_the_next_one_is_tried(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer.save_checkpoint

    def full(trainer: Trainer, path: Path, **options: Any) -> None:
        save(trainer, path, **options)
        if trainer.global_step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    run = train("one")
    left = {path.name for path in (run / "checkpoints").iterdir()}
    names = {f"step-0000000{step}.ckpt{end}" for step in (2, 6) for end in ("", ".sha256")}
    assert left == {RECORD, "last.ckpt", *names}


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", "debug", f"run.dir={tmp_path / 'file'}"]) == 2
    assert told(capsys.readouterr().err)[2:4] == ["run.dir", "got Not a directory"]
