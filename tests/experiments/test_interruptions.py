"""Runs that are stopped, met twice, or gone on with in another way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml

from experiments.cli import main
from experiments.run_folder import RunFolder
from lumos_pl.checkpoints.complete import kept_checkpoints, remove
from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest
from lumos_pl.module import LumosModule
from tests.experiments.conftest import SMALL, Train, metrics, result
from tests.processes import fork, run_command
from tests.refusals import told


def run_in_a_group_of_its_own(arguments: tuple[str, ...]) -> None:
    os.setsid()
    run_command(arguments)


@pytest.mark.seconds
def test_a_signal_to_the_whole_group_saves_despite_workers(tmp_path: Path) -> None:
    settings = [*SMALL, f"run.dir={tmp_path / 'runs'}", "run.name=one", "trainer.max_steps=100000"]
    arguments = ("train", "debug", *settings, "data.num_workers=2")
    process = fork(tmp_path / "printed", {}, run_in_a_group_of_its_own, arguments)
    run = tmp_path / "runs" / "debug" / "one"
    while not (run / "metrics.jsonl").exists() or not any(record["step"] >= 3 for record in metrics(run)):
        assert not process.has_ended, process.printed.read_text()
        time.sleep(0.02)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 143, process.printed.read_text()
    assert "Traceback" not in process.printed.read_text()
    saved = kept_checkpoints(run / "checkpoints")[-1]
    assert int(saved.stem.removeprefix("step-")) >= 4


def test_before_training_a_signal_leaves_at_once(handlers: object) -> None:
    with pytest.raises(StoppedBySignal) as left, StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 143
    os.kill(os.getpid(), signal.SIGTERM)  # on the way out, a second one changes nothing


def test_the_first_signal_decides(handlers: object) -> None:
    with StopRequest() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGINT


def test_without_a_signal_the_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        stop.defer()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.seconds
def test_a_run_killed_before_its_first_checkpoint_starts_anew(trained: Train) -> None:
    run = trained("one")
    expected = result(run)["weights_sha256"]
    for checkpoint in kept_checkpoints(run / "checkpoints"):
        remove(checkpoint)
    (run / "result.json").unlink()
    assert main(["resume", str(run)]) == 0
    assert result(run)["weights_sha256"] == expected
    assert [record["step"] for record in metrics(run) if "loss/train" in record] == list(range(6))


def test_a_finished_run_is_left_as_it_is(trained: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("one", "trainer.max_steps=2")
    before = (run / "result.json").read_text()
    assert main(["resume", str(run)]) == 0
    assert "at its end: step 2 of 2" in capsys.readouterr().out
    assert (run / "result.json").read_text() == before


def stop_after_saving(run: Path) -> list[dict[str, Any]]:
    """Take back all that a run has but its checkpoints, as if it had been stopped in its last validation."""
    lines = metrics(run)
    kept = [record for record in lines if "loss/val" not in record and "loss_frame/val/mean" not in record]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    (run / "result.json").unlink()
    return lines


def by_step(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In one order, and without the epoch: all of a run is one, but Lightning counts on after its last batch."""
    plain = [{key: value for key, value in record.items() if key != "epoch"} for record in records]
    return sorted(plain, key=lambda record: (record["step"], sorted(record)))


def what_counts(run: Path) -> dict[str, Any]:
    return {key: result(run)[key] for key in ("steps", "loss", "frame_loss", "weights_sha256")}


@pytest.mark.seconds
@pytest.mark.parametrize(  # validated after the last step, or last two steps before
    ("saving", "steps"), [("checkpoint.keep=1", 4), ("checkpoint.every_n_steps=0", 6)]
)
def test_after_its_last_step_a_run_is_closed_and_not_trained(
    saving: str, steps: int, train: Train, no_training: Callable[[], None]
) -> None:
    run = train("one", f"trainer.max_steps={steps}", saving, "callbacks.log_every_n_steps=5")
    expected, lines = what_counts(run), metrics(run)
    if steps == 4:
        stop_after_saving(run)
    else:
        (run / "result.json").unlink()
    no_training()
    for _ in range(2):  # and stopped once more on the way
        assert main(["resume", str(run)]) == 0
        assert what_counts(run) == expected
        assert by_step(metrics(run)) == by_step(lines)
        (run / "result.json").unlink()


@pytest.mark.seconds
def test_a_signal_in_the_last_validation_cuts_it_off(
    train: Train,
    trained: Train,
    tmp_path: Path,
    handlers: object,
    monkeypatch: pytest.MonkeyPatch,
    no_training: Callable[[], None],
) -> None:
    settings = ["trainer.max_steps=4", "checkpoint.keep=1"]
    whole = trained("whole", *settings)
    step_of, validated = LumosModule.validation_step, []

    def step(module: LumosModule, *arguments: Any) -> Any:
        validated.append(module.global_step)
        os.kill(os.getpid(), signal.SIGTERM)
        return step_of(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LumosModule, "validation_step", step)
        with pytest.raises(SystemExit) as left:
            train("stopped", *settings)
    assert left.value.code == 143 and validated == [4]
    run = tmp_path / "runs" / "debug" / "stopped"
    assert not (run / "result.json").exists()
    no_training()
    assert main(["resume", str(run)]) == 0
    assert what_counts(run) == what_counts(whole)


def test_a_signal_on_the_way_back_to_the_last_validation_is_heard(
    trained: Train, handlers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("one", "trainer.max_steps=4")
    (run / "result.json").unlink()
    monkeypatch.setattr(LumosModule, "validation_step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as left:
        main(["resume", str(run)])
    assert left.value.code == 130
    assert not (run / "result.json").exists()


def test_a_signal_noted_before_is_answered_once_nothing_has_to_wait(handlers: object) -> None:
    with StopRequest() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedBySignal) as left:
            stop.at_once()
    assert left.value.code == 143


def test_a_validation_that_was_cut_off_is_made_up_for(trained: Train) -> None:
    run = trained("one")
    expected = what_counts(run)
    remove(run / "checkpoints" / "step-00000006.ckpt")
    lines = stop_after_saving(run)
    assert main(["resume", str(run)]) == 0
    assert what_counts(run) == expected
    validated = [[(r["step"], r["loss/val"]) for r in records if "loss/val" in r] for records in (lines, metrics(run))]
    assert validated[0] and validated[0] == validated[1]


def test_overrides_of_a_resume_stay(trained: Train) -> None:
    run = trained("one", "trainer.max_steps=2")
    assert main(["resume", str(run), "trainer.max_steps=3", "optimizer.lr=1e-5"]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["max_steps"], config["optimizer"]["lr"]) == (3, 1e-5)


def test_a_refused_second_run_changes_nothing(train: Train, trained: Train) -> None:
    run = trained("one", "trainer.max_steps=1")
    for checkpoint in kept_checkpoints(run / "checkpoints"):
        remove(checkpoint)
    before = (run / "config.yaml").read_text()
    with RunFolder(run).lock(rank=0):
        train("one", "seed=7", status=75)
    assert (run / "config.yaml").read_text() == before


def test_a_checkpoint_of_another_strategy_is_refused(trained: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("one", "trainer.max_steps=1")
    try:
        assert main(["resume", str(run), "trainer.strategy=fsdp2", "trainer.max_steps=2"]) == 4
    finally:
        dist.destroy_process_group()  # in which the one rank had met
    assert "trainer.strategy" in told(capsys.readouterr().err)


def test_a_flipped_bit_in_init_from_is_found(train: Train, trained: Train, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = trained("one", "trainer.max_steps=1") / "checkpoints" / "step-00000001.ckpt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    train("two", f"init_from={checkpoint}", status=4)
    assert str(checkpoint) in told(capsys.readouterr().err)
