from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cli import main
from experiments.run_folder import NAME_VARIABLE
from lumos_pl.module import LumosModule
from tests.tiny_checkpoint import write_checkpoint

# Accumulation, caption dropout, masking, images and videos: all that an exact resume has to restore.
SMALL = [
    "trainer.max_steps=6",
    "trainer.accumulate=2",
    "trainer.val_every_n_steps=4",
    "checkpoint.every_n_steps=2",
    "data.caption_dropout=0.3",
    "data.given_prob=0.3",
    "data.synthetic.n_samples=10",
    "data.image.batch_size=2",
    "data.video.batch_size=1",
    "data.video.frames=9",
    "callbacks.progress_bar=false",
    "callbacks.log_every_n_steps=1",
    "callbacks.sample_grid_every_n_steps=0",
    "callbacks.heatmap_every_n_steps=0",
]

SMALL_TOKENIZER = [
    "world.train=6",
    "world.val=3",
    "world.frames=5",
    "data.frames=5",
    "data.size=32x32",
    "data.batch_size=2",
    "data.num_workers=0",
    "tokenizer.width=8",
    "tokenizer.patch_width=4",
    "tokenizer.blocks=1",
    "trainer.max_steps=4",
    "trainer.val_every_n_steps=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",  # a CPU without a unit for bf16 takes many times as long
    "checkpoint.every_n_steps=2",
    "callbacks.progress_bar=false",
    "callbacks.log_every_n_steps=1",
    "callbacks.sample_grid_every_n_steps=2",
]

Train = Callable[..., Path]
Sample = Callable[..., Path]


def train_small(folder: Path, name: str, *overrides: str, status: int = 0) -> Path:
    """Train `debug`, made small, in this process; returns the run's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(NAME_VARIABLE, "x")  # so that what the run sets is taken back
        patch.delenv(NAME_VARIABLE)
        arguments = ["train", "debug", f"run.dir={folder / 'runs'}", f"run.name={name}", *SMALL, *overrides]
        assert main(arguments) == status
    return folder / "runs" / "debug" / name


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train `debug`, made small, as a run of this name."""
    return partial(train_small, tmp_path)


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The finished run with such overrides, trained once a session; not to be changed."""
    return cache(lambda *overrides: train_small(tmp_path_factory.mktemp("original"), "original", *overrides))


@pytest.fixture
def trained(tmp_path: Path, originals: Train) -> Train:
    """A run of this name, as `train` would leave it, where nothing but its end matters: a copy, to be changed."""

    def copy(name: str, *overrides: str) -> Path:
        return Path(shutil.copytree(originals(*overrides), tmp_path / "runs" / "debug" / name, symlinks=True))

    return copy


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, any training step fails."""

    def fail(*_: object) -> None:
        raise AssertionError("a step was trained again")

    return lambda: monkeypatch.setattr(LumosModule, "training_step", fail)


def train_in(folder: Path, experiment: str, name: str, *overrides: str, status: int = 0) -> Path:
    """Train an experiment that makes its own clips, in this process; returns the run's folder."""
    places = [f"run.dir={folder / 'runs'}", f"world.folder={folder / 'clips'}", f"run.name={name}"]
    assert main(["train", experiment, *places, *overrides]) == status
    return folder / "runs" / experiment / name


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "tiny.ckpt", prefixes=("net.", "ema."))


@pytest.fixture
def sample(checkpoint: Path, tmp_path: Path) -> Sample:
    """Run the command with the tiny checkpoint; returns the folder of the clips."""

    def run(*arguments: str | Path, out: str = "out", status: int = 0) -> Path:
        folder = tmp_path / out
        assert main(["sample", "--ckpt", str(checkpoint), "--out", str(folder), *map(str, arguments)]) == status
        return folder

    return run


def codes(folder: Path) -> dict[str, Any]:
    return {file.stem: np.load(file, allow_pickle=False) for file in sorted((folder / "records").glob("*.npy"))}


def record(folder: Path, name: str = "00000-0") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "records" / f"{name}.json").read_text())
    return content


SMALL_DEMO = [
    "world.train=8",
    "world.val=2",
    "world.side=32",
    "world.frames=5",
    "model.n_layers=1",
    "data.video.batch_size=2",
    "data.val_batches=1",
    "trainer.max_steps=3",
    "trainer.precision=32-true",
    "trainer.val_every_n_steps=3",
    "callbacks.progress_bar=false",
    "callbacks.sample_grid_every_n_steps=0",
    "callbacks.sampled_clips_every_n_steps=0",
    "callbacks.prompts=[a red circle moves left, a blue square grows]",
    "callbacks.fidelity_captions=3",
    "sampling.steps=1",
]


def demo(folder: Path, name: str, *overrides: str, status: int = 0) -> Path:
    return train_in(folder, "demo", name, *SMALL_DEMO, *overrides, status=status)
