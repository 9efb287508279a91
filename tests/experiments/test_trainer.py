"""What a configuration may ask of Lightning's Trainer, and what a run then still keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from PIL import Image

from callbacks.log_image import log_image, shows_images
from experiments.cli import main
from experiments.config import plain
from experiments.loggers import build_loggers
from experiments.read_config import load_experiment, saved_config
from lumos_pl.batch import MaskedBatch
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.encoding import encode_gif, encode_png
from tests.experiments.conftest import Train, metrics, result
from tests.refusals import refused, told

SEEN: list[tuple[str, ...]] = []  # the samples of every batch that `Seen` saw
HERE = "tests.experiments.test_trainer"


class Seen(Callback):
    """Notes the batches, and ends a run early."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after = stop_after

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        SEEN.append(tuple(batch.appearances))
        if self.stop_after and len(SEEN) == self.stop_after:
            trainer.should_stop = True

    def on_validation_batch_end(self, *_: Any) -> None:
        SEEN.append(("val",))


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def with_seen(**init_args: int) -> str:
    return f"callbacks.extra=[{json.dumps({'class_path': f'{HERE}.Seen', 'init_args': init_args})}]"


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.seconds
def test_arguments_of_the_trainer_reach_it(train: Train) -> None:
    words = ["limit_val_batches=1", "num_sanity_val_steps=1", "profiler=simple", "enable_model_summary=false"]
    run = train("a", *(f"trainer.{word}" for word in words), "trainer.detect_anomaly=true", with_seen())
    assert SEEN.count(("val",)) == 2 and SEEN[0] == ("val",)  # before the first step, and after the fourth
    assert "run_training_epoch" in (run / "fit-profile.txt").read_text()
    assert len(list((run / "checkpoints").glob("step-*.ckpt"))) == 3 and result(run)["steps"] == 6


@pytest.mark.seconds
@pytest.mark.parametrize("n", ["true", "3"])
def test_a_dry_run_ends_well_and_leaves_no_trace_that_hinders_the_run(n: str, train: Train) -> None:
    run = train("a", f"trainer.fast_dev_run={n}", with_seen())
    assert len(SEEN) == {"true": 2, "3": 6}[n]  # as many batches of training as of validation
    assert not any((run / name).exists() for name in ("config.yaml", "metrics.jsonl", "result.json"))
    assert not list((run / "checkpoints").iterdir())
    assert result(train("a"))["steps"] == 6


def test_a_run_does_not_go_on_dry(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("a", "trainer.max_steps=2")
    before = {file.name: file.read_bytes() for file in (run / "config.yaml", run / "metrics.jsonl")}
    assert main(["resume", str(run), "trainer.fast_dev_run=true"]) == 2
    assert "trainer.fast_dev_run" in told(capsys.readouterr().err)
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.seconds
def test_batches_that_are_overfitted_come_again_and_again(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train("a", "trainer.overfit_batches=2", with_seen(), "trainer.val_every_n_steps=0")
    assert SEEN[:2] * 6 == SEEN and SEEN[0] != SEEN[1]
    assert result(run)["steps"] == 6
    train("b", "trainer.overfit_batches=3", status=2)
    assert "trainer.overfit_batches | got 3" in capsys.readouterr().err


@pytest.mark.seconds
def test_a_run_that_is_ended_early_saves_whole_steps_and_goes_on_as_if_it_had_not(train: Train, tmp_path: Path) -> None:
    from experiments.cli import main

    whole = train("whole")
    run = train("early", with_seen(stop_after=3))  # amid the second step of two batches each
    assert result(run)["steps"] == 2 and [file.name for file in (run / "checkpoints").glob("step*2.ckpt")]
    assert main(["resume", str(run), "callbacks.extra=[]"]) == 0
    assert result(run)["weights_sha256"] == result(whole)["weights_sha256"]
    losses, expected = ([line["loss/train"] for line in metrics(r) if "loss/train" in line] for r in (run, whole))
    assert losses == expected


def test_time_that_is_up_is_an_early_end_too(train: Train) -> None:
    run = train("a", "trainer.max_time={milliseconds: 1}")
    assert result(run)["steps"] == 1 and list((run / "checkpoints").glob("step-00000001.ckpt"))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["limit_val_batches=-1", "fast_dev_run=-2", "max_time=soon", "profiler=x"])
def test_what_lightning_refuses_is_one_line_too(
    argument: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train("a", f"trainer.{argument}", status=2)
    error = capsys.readouterr().err
    assert error.startswith("lumos: ") and error.count("\n") == 1


@pytest.mark.parametrize(("has_unit", "settled"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_is_settled_where_a_run_begins(
    has_unit: bool, settled: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("experiments.trainer_config.has_bf16", lambda device: has_unit)
    config = load_experiment("debug", ["trainer.precision=auto", "trainer.accelerator=cpu"])
    monkeypatch.setattr("experiments.trainer_config.has_bf16", lambda device: not has_unit)
    assert config.trainer.precision == saved_config(plain(config), tmp_path).trainer.precision == settled


def test_arguments_are_written_down_and_read_again() -> None:
    config = load_experiment("debug", ["trainer.limit_val_batches=2", "trainer.profiler=simple"])
    assert config.trainer.lightning == {"limit_val_batches": 2, "profiler": "simple"}
    assert saved_config(plain(config), Path("config.yaml")) == config


# -- loggers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["wandb", "mlflow"])
def test_a_logger_whose_package_is_missing_names_it(word: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    try:
        __import__(word)
    except ModuleNotFoundError:
        with refused(ConfigError, where="loggers[0]") as caught:
            build_loggers([word], tmp_path)
        assert word in str(caught.value.fix)


def test_files_of_loggers_go_into_the_runs_folder_and_no_start_deletes_another_ones(tmp_path: Path) -> None:
    by_path = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"name": "mine"}}
    for step in 0, 3:
        for logger in build_loggers(["csv", by_path, "tensorboard"], tmp_path):
            logger.log_metrics({"loss": 1.0}, step)
            logger.save()
            logger.finalize("success")
    assert len(list(tmp_path.glob("csv/*/metrics.csv"))) == len(list(tmp_path.glob("mine/*/metrics.csv"))) == 2
    assert list(tmp_path.glob("events.out.*"))


class Gallery(CSVLogger):
    """A logger with Lightning's `log_image` and `log_video`, as W&B's has them."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self.shown: dict[str, int | None] = {}

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        assert all(isinstance(image, Image.Image) for image in images)
        self.shown[key] = step

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **kwargs: list[Any]) -> None:
        assert kwargs["format"] == ["gif"] and videos[0].read().startswith(b"GIF8")
        self.shown[key] = step


def test_pictures_go_to_loggers_that_show_them(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    gallery, plainly = Gallery(str(tmp_path / "a")), CSVLogger(str(tmp_path / "b"))
    loggers: list[Logger] = [gallery, plainly]
    trainer = Trainer(logger=loggers, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    assert shows_images(trainer)
    log_image(trainer, "still", encode_png(picture), 3)
    log_image(trainer, "moving", encode_gif([picture, Image.new("RGB", (8, 8), "red")], 100), 4)
    assert gallery.shown == {"still": 3, "moving": 4}


@pytest.mark.seconds
def test_without_a_logger_that_shows_pictures_nothing_breaks(train: Train) -> None:
    run = train("a", "loggers=[]", "callbacks.sample_grid_every_n_steps=2", "callbacks.heatmap_every_n_steps=2")
    assert result(run)["steps"] == 6 and metrics(run) and not list(run.glob("events.out.*"))
