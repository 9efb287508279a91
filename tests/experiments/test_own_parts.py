"""Parts of a user's own: out of files beside the YAML where the user names them, never because a run's file does."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from data_modules.readers import READERS
from experiments import user_files
from experiments.cli import main
from experiments.config import ExperimentConfig
from experiments.read_config import load_experiment, read_config, saved_config
from experiments.run_folder import NAME_VARIABLE
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.masking import MASK_KINDS, SCHEDULES
from lumos_pl.models.mm_rope import ROPE_KINDS
from lumos_pl.optimizer import OPTIMIZERS
from lumos_pl.pipeline import LumosPipeline
from tests.experiments.conftest import SMALL, metrics, result
from tests.processes import lumos
from tests.refusals import refused
from tests.tiny_checkpoint import write_checkpoint

PARTS = '''
from pathlib import Path

import torch
from lightning.pytorch import Callback
from data_modules.synthetic import synthetic_shards
from lumos_pl.models.mm_rope import RopeKind

Path(__file__).with_suffix(".executed").touch()


def halves(ratio, n_frames, n_positions, *, generator):
    """The first half of every frame."""
    return (torch.arange(n_positions) < max(1, ratio() * n_positions)).repeat(n_frames, 1)


def steady(u):
    return 0.8


def sgd(config, parameters):
    return torch.optim.SGD([parameter for _, parameter in parameters], lr=config.lr)


def blobs(root, kind, config, layout):
    return synthetic_shards(config.synthetic, layout, kind=kind, split=root, frames=config.source(kind).frames)


backwards = RopeKind(axes=lambda index: 2 - index % 3, scale=None)


class Note(Callback):
    def __init__(self, path, words="done"):
        self.path, self.words = path, words

    def on_train_end(self, trainer, module):
        Path(self.path).write_text(f"{self.words} after {trainer.global_step}")
'''
MINE = """
base: debug
mask: {kind: own_parts_of_mine.halves, schedule: own_parts_of_mine.steady}
model: {rope: own_parts_of_mine.backwards}
optimizer: {kind: own_parts_of_mine.sgd}
data: {reader: own_parts_of_mine.blobs, root: train, val_root: val}
loggers: [csv]
callbacks:
  extra:
    - class_path: own_parts_of_mine.Note
      init_args: {path: note.txt}
"""
MODULE = "own_parts_of_mine"
NAMES = {f"{MODULE}.{name}" for name in ("halves", "steady", "backwards", "sgd", "blobs", "Note")}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder, mine.yaml with own_parts_of_mine.py beside it; what it registers goes again."""
    monkeypatch.delenv(NAME_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(PARTS)
    (folder / "mine.yaml").write_text(MINE)
    yield folder / "mine.yaml"
    forget()


def forget() -> None:
    """As a new process begins: nothing imported, nothing registered."""
    for known in (MASK_KINDS, SCHEDULES, ROPE_KINDS, OPTIMIZERS, READERS):
        for name in [name for name in known if "." in name]:
            del known[name]  # type: ignore[attr-defined]
    for module in MODULE, "bad_reader":
        sys.modules.pop(module, None)
    sys.path[:] = [entry for entry in sys.path if Path(entry) not in user_files.user_folders]
    user_files.user_folders.clear()


def executed(folder: Path) -> bool:
    return any(folder.rglob("*.executed"))


def train(mine: Path, *overrides: str, status: int = 0) -> Path:
    runs = mine.parent.parent / "runs"
    assert main(["train", str(mine), f"run.dir={runs}", "run.name=a", *SMALL, *overrides]) == status
    return runs / "mine" / "a"


# -- where the user says so ------------------------------------------------------------------------


@pytest.mark.seconds
def test_one_command_trains_with_parts_from_outside_the_project(mine: Path) -> None:
    place = mine.parent.parent
    words = [f"run.dir={place / 'runs'}", "run.name=a", *SMALL]
    lumos("train", str(mine), *words)
    run = place / "runs" / "mine" / "a"
    assert (place / "note.txt").read_text() == "done after 6"
    assert result(run)["steps"] == 6 and len(metrics(run)) > 6
    (logged,) = run.glob("csv/*/metrics.csv")
    assert "loss/train" in logged.read_text() and not list(run.glob("events.out.*"))
    assert set(NAMES) <= set((run / "config.yaml").read_text().replace(":", " ").split())


def test_a_word_of_the_command_line_is_the_users_too(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    config = load_experiment("debug", [f"mask.kind={MODULE}.halves"])
    assert isinstance(config, ExperimentConfig) and config.mask.kind in MASK_KINDS


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("mask.kind=absent_module.halves", ["absent_module"]),
        (f"mask.kind={MODULE}.halfs", ["halfs", "halves"]),
        ("mask.kind=broken_parts.halves", ["broken_parts.py", "ZeroDivisionError"]),
        (f"callbacks.extra=[{{class_path: {MODULE}.halves}}]", ["callbacks.extra[0]", "Callback"]),
        (f"callbacks.extra=[{{class_path: {MODULE}.Note, init_args: {{colour: red}}}}]", ["colour"]),
        ("callbacks.extra=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint}]", ["checkpoint"]),
        (f"loggers=[{{class_path: {MODULE}.Note}}]", ["loggers[0]", "Logger"]),
        ("loggers=[tensorbord]", ["loggers[0]", "did you mean tensorboard?"]),
        ("loggers=[3]", ["loggers[0]"]),
        (f"trainer.profiler={{class_path: {MODULE}.Note}}", ["trainer.profiler", "Profiler"]),
    ],
)
def test_what_cannot_be_imported_is_one_line(
    mine: Path, change: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (mine.parent / "broken_parts.py").write_text("1 / 0")
    run = train(mine, change, status=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(name in error for name in names)
    assert not (run / "checkpoints").exists() or not list((run / "checkpoints").iterdir())


def test_what_a_part_of_ones_own_raises_names_its_line(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine.parent / "careless.py").write_text("def kind(ratio, *shape, generator):\n    return 1 / 0\n")
    train(mine, "mask.kind=careless.kind", status=1)
    what, place, *_ = capsys.readouterr().err.strip().splitlines()[-1].split(" | ")
    assert place == "project/careless.py:2" and what != "lumos: an unforeseen failure"


def test_a_file_does_not_take_the_place_of_another_module(mine: Path) -> None:
    (mine.parent / "json.py").write_text("def kind(): ...")
    with refused(ConfigError, file="json.py", where="mask.kind"):
        load_experiment(str(mine), ["mask.kind=json.kind"])


def test_no_file_takes_the_place_of_a_package(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    stand_in = mine.parent / "lightning" / "pytorch" / "loggers.py"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text(PARTS)
    assert load_experiment("debug", ["loggers=[csv]"]).loggers == ["csv"]
    assert train(mine, "loggers=[csv]").is_dir() and not executed(stand_in.parent)


# -- where only a run's file says so ---------------------------------------------------------------


@pytest.fixture
def stopped(mine: Path) -> Path:
    """A run of the user's own parts, half done, met by a new process in a folder where its file lies."""
    run = train(mine, "trainer.max_steps=2")
    mine.with_name(f"{MODULE}.executed").unlink()
    shutil.copy(mine.with_name(f"{MODULE}.py"), mine.parent.parent)
    forget()
    return run


@pytest.mark.seconds
def test_a_run_with_parts_of_its_own_is_resumed_where_it_is_allowed(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = stopped.parents[2]
    assert main(["resume", str(stopped), "trainer.max_steps=4"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in NAMES) and "--allow-imports" in error and not executed(place)
    assert main(["resume", str(stopped), "trainer.max_steps=4", "--allow-imports"]) == 0
    assert executed(place) and result(stopped)["steps"] == 4


@pytest.mark.seconds
def test_the_files_may_lie_elsewhere(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    resume = ["resume", str(stopped), "trainer.max_steps=4"]
    assert main([*resume, "--allow-imports"]) == 2
    assert main([*resume, "--imports-from", str(stopped.parents[2])]) == 0
    assert executed(stopped.parents[2])


@pytest.mark.seconds
def test_what_the_user_says_on_the_command_line_is_allowed(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [f"mask.kind={MODULE}.halves", f"mask.schedule={MODULE}.steady", f"model.rope={MODULE}.backwards"]
    others = [f"optimizer.kind={MODULE}.sgd", f"data.reader={MODULE}.blobs", "callbacks.extra=[]"]
    assert main(["resume", str(stopped), "trainer.max_steps=4", *kinds]) == 2
    assert f"got {MODULE}.Note, {MODULE}.blobs, {MODULE}.sgd |" in capsys.readouterr().err
    assert main(["resume", str(stopped), "trainer.max_steps=4", *kinds, *others]) == 0


def test_a_requeued_job_needs_no_permission(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # else Lightning takes the processes to be started by srun
    run = train(mine, "trainer.max_steps=2")
    (run / "result.json").unlink()
    forget()
    assert train(mine, "trainer.max_steps=2") == run and result(run)["steps"] == 2


@pytest.mark.parametrize("place", ["mask", "sampling", "model", "optimizer", "data", "loggers", "callbacks", "trainer"])
def test_nothing_that_a_stranger_names_is_imported(mine: Path, place: str) -> None:
    part = {"class_path": f"{MODULE}.Note", "init_args": {"path": "x"}}
    named = {
        "mask": {"kind": f"{MODULE}.halves", "schedule": f"{MODULE}.steady"},
        "sampling": {"schedule": f"{MODULE}.steady"},
        "model": {"rope": f"{MODULE}.backwards"},
        "optimizer": {"kind": f"{MODULE}.sgd"},
        "data": {"reader": f"{MODULE}.blobs"},
        "loggers": [part],
        "callbacks": {"extra": [part]},
        "trainer": {"lightning": {"profiler": part}},
    }
    folder = mine.parent
    os.chdir(folder)  # where an import would find the file
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({place: named[place]}))
    for read in (
        lambda: read_config(folder / "run" / "config.yaml"),
        lambda: saved_config({place: named[place]}, folder / "x.ckpt"),
        lambda: main(["resume", str(folder / "run")]),
        lambda: LumosPipeline.load(write_checkpoint(folder / "x.ckpt", **{place: named[place]})),
        lambda: main(["eval", str(folder / "x.ckpt"), "--only", "loss", "--out", str(folder / "out")]),
        lambda: main(["sample", "--ckpt", str(folder / "x.ckpt"), "--prompt", "x", "--out", str(folder / "out")]),
    ):
        try:
            read()
        except (ConfigError, CheckpointError) as error:
            assert MODULE in str(error)
        assert not executed(folder) and MODULE not in sys.modules
    assert main(["resume", str(folder / "run")]) == 2


def test_a_model_is_sampled_without_the_parts_that_only_training_needs(mine: Path) -> None:
    named = {"mask": {"kind": f"{MODULE}.halves"}, "optimizer": {"kind": f"{MODULE}.sgd"}}
    checkpoint = write_checkpoint(mine.parent / "x.ckpt", **named)
    assert LumosPipeline.load(checkpoint).sampling.steps == 2
    config = saved_config(named, checkpoint, without=("mask", "optimizer"))
    assert isinstance(config, ExperimentConfig) and config.mask.kind == "tube"


def test_positions_of_ones_own_are_needed_to_sample(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(mine, "trainer.max_steps=2")
    forget()
    with refused(CheckpointError, where="model.rope", got=f"{MODULE}.backwards"):
        load_decoder(run)
    monkeypatch.chdir(mine.parent)
    asked = ["sample", "--run", str(run), "--prompt", "x", "--import"]
    assert main([*asked, f"{MODULE}.Path"]) == 4  # no RoPE kind: what the model needs is still missing
    assert main([*asked, f"{MODULE}.absent"]) == 2
    assert main([*asked, f"{MODULE}.backwards"]) == 2  # the model is there, a visual tokenizer is not
    assert load_decoder(run).net.config.rope == f"{MODULE}.backwards"


@pytest.mark.parametrize("returned", ["None", "[1, 2]", "config"])
def test_a_reader_that_gives_no_shards_is_one_line(
    mine: Path, returned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine.parent / "bad_reader.py").write_text(f"def read(root, kind, config, layout):\n    return {returned}\n")
    train(mine, "data.reader=bad_reader.read", status=2)
    error = capsys.readouterr().err
    assert "bad_reader.read" in error and error.count("\n") == 1
