"""A run's folder that a user has files in: none is lost, and nothing is written through a link."""

from __future__ import annotations

import math
import os
import shlex
import shutil
from pathlib import Path

import pytest

from data_modules.shards.manifest import damage_fix
from experiments.cli import main
from experiments.read_config import load_experiment
from experiments.roll_call import ANSWERS, forget_answers, silent_ranks
from experiments.run_folder import NAME_VARIABLE, RunFolder
from experiments.train import resume
from lumos_pl.checkpoints.complete import kept_checkpoints, newest_complete
from lumos_pl.checkpoints.rotation import Rotation
from lumos_pl.errors import CheckpointError, ConfigError
from tests.experiments.conftest import Train, metrics, result
from tests.refusals import refused, told

MADE_BEFORE = Path(__file__).parents[1] / "made_before" / "run"
FILES = ["config.yaml", "result.json", "metrics.jsonl", "slurm_job", "samples.png"]
ONE = ["trainer.max_steps=2", "trainer.val_every_n_steps=0", "data.kind=image"]


def test_files_of_a_users_in_the_folder_are_kept(train: Train, tmp_path: Path) -> None:
    run, outside = tmp_path / "runs" / "debug" / "one", tmp_path / "outside"
    run.mkdir(parents=True)
    outside.mkdir()
    for number, name in enumerate(FILES):
        if number % 2:
            (outside / name).write_text(f"theirs: {name}")
            (run / name).symlink_to(outside / name)
        else:
            (run / name).write_text(f"theirs: {name}")
    (run / ANSWERS).symlink_to(outside)
    (outside / "0").write_text("")
    train("one", *ONE)
    assert result(run)["steps"] == 2 and [record["step"] for record in metrics(run)][-1] == 1
    assert {path.read_text() for path in outside.iterdir()} == {"", *(f"theirs: {name}" for name in FILES[1::2])}
    found = {path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert {f"theirs: {name}".encode() for name in FILES} <= found
    assert (outside / "0").exists()


@pytest.mark.seconds
def test_a_users_copies_are_neither_rotated_away_nor_gone_on_from(train: Train) -> None:
    run = train("one", *ONE, "checkpoint.every_n_steps=1", "checkpoint.keep=1")
    folder = run / "checkpoints"
    (newest,) = kept_checkpoints(folder)
    digest = (folder / f"{newest.name}.sha256").read_text()
    copies = ["step-00000001-good.ckpt", "step-best.ckpt", "step-9.ckpt", "step-00000001.ckpt"]
    for name in copies:
        (folder / name).write_bytes(newest.read_bytes())
        (folder / f"{name}.sha256").write_text(digest.replace(newest.name, name))
    (folder / "x.partial").write_text("theirs")
    assert newest_complete(folder) == (newest, [])
    assert main(["resume", str(run), "trainer.max_steps=4"]) == 0
    left = {path.name for path in folder.glob("*.ckpt")} - {"last.ckpt"}
    assert left == {*copies, "step-00000004.ckpt"} and (folder / "x.partial").exists()


@pytest.mark.parametrize("command", ["train", "resume"])
def test_a_run_whose_checkpoints_are_links_is_not_begun_anew(command: str, train: Train, tmp_path: Path) -> None:
    run = train("one", *ONE)
    (checkpoint,) = kept_checkpoints(run / "checkpoints")
    checkpoint.symlink_to(checkpoint.rename(tmp_path / "moved to a larger disk"))
    before = metrics(run)
    if command == "train":
        train("one", *ONE, status=2)
    else:
        with refused(CheckpointError, file=run / "checkpoints"):
            resume(run, [])
    assert metrics(run) == before


@pytest.mark.seconds
def test_a_kill_before_the_rotation_is_made_up_for(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Rotation, "remove_old", lambda self, step: None)
        run = train("one", *ONE, "checkpoint.every_n_steps=1", "checkpoint.keep=1")
    assert len(kept_checkpoints(run / "checkpoints")) == 2
    (run / "result.json").unlink()
    assert main(["resume", str(run)]) == 0
    assert [path.name for path in kept_checkpoints(run / "checkpoints")] == ["step-00000002.ckpt"]


def test_a_steps_lines_are_on_the_disk_before_its_checkpoint_is_complete(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, seen = Rotation.complete, {}

    def completed(rotation: Rotation, partial: Path, final: Path, digests: str | None) -> None:
        seen[final.name] = [record["step"] for record in metrics(rotation.folder.parent) if "loss/train" in record]
        complete(rotation, partial, final, digests)

    monkeypatch.setattr(Rotation, "complete", completed)
    run = train("one", *ONE, "checkpoint.every_n_steps=1")
    assert seen == {"step-00000001.ckpt": [0], "step-00000002.ckpt": [0, 1]}
    assert [record["step"] for record in metrics(run) if "loss/train" in record] == [0, 1]
    assert len([record for record in metrics(run) if any(name.startswith("lr-") for name in record)]) == 2


@pytest.mark.parametrize(
    "name", ["../../escape", "/tmp/escape", "a/b", "..", ".hidden", "latest", "~", "a\nb", "\u202ea"]
)
def test_a_name_from_outside_keeps_the_rules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME_VARIABLE, name)
    with refused(ConfigError, where=NAME_VARIABLE):
        RunFolder.named("debug", load_experiment("debug"))


def test_a_command_that_is_advised_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "my films & more" / "it's one")
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "step-00000001.ckpt").touch()
    with refused(ConfigError, file=run.path) as found:
        run.check_unused()
    words = shlex.split(str(found.value.fix).split("`")[1])
    assert words == ["lumos", "resume", str(run.path)]
    assert shlex.split(damage_fix(run.path).split("`")[1])[-1] == str(run.path)


def test_a_tilde_that_no_shell_expanded_makes_no_folder(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("one", *ONE, "run.dir=~/runs", status=2)
    assert told(capsys.readouterr().err)[1] == "run.dir"


def test_a_path_with_nul_is_refused(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("one", *ONE, "run.dir='a\0b'", status=2)
    told(capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_answers_of_ranks_replace_nothing(kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1").write_text("theirs")
    match kind:
        case "link":
            (tmp_path / ANSWERS).symlink_to(outside)
        case "file":
            (tmp_path / ANSWERS).write_text("theirs")
    forget_answers(tmp_path)
    assert os.path.lexists(tmp_path / f"{ANSWERS}.kept-1") and (outside / "1").read_text() == "theirs"
    assert silent_ranks(tmp_path, 0, 2, patience_s=0) == [1]


def test_only_answers_are_forgotten(tmp_path: Path) -> None:
    silent_ranks(tmp_path, 0, 2, patience_s=0)
    (tmp_path / ANSWERS / "1").write_text("theirs")
    (tmp_path / ANSWERS / "notes").write_text("theirs")
    forget_answers(tmp_path)
    assert {path.name for path in (tmp_path / ANSWERS).iterdir()} == {"1.kept-1", "notes"}


@pytest.mark.seconds
@pytest.mark.parametrize(("name", "theirs"), [(None, ""), ("config.yaml", "# theirs\n"), ("metrics.jsonl", "theirs\n")])
def test_a_run_of_before_there_was_a_record_goes_on_in_its_own_files(
    name: str | None, theirs: str, tmp_path: Path
) -> None:
    run = shutil.copytree(MADE_BEFORE, tmp_path / "debug" / "before", symlinks=True)
    (run / ".written").unlink(missing_ok=True)
    if name is not None:
        (run / name).write_text((run / name).read_text() + theirs)
    resume(run, ["trainer.max_steps=5", "callbacks.progress_bar=false"])
    kept = [path.read_text() for path in run.glob("*.kept-*")]
    assert len(kept) == (name is not None) and all(text.endswith(theirs) for text in kept)
    assert [record["step"] for record in metrics(run)][-1] == 4


def test_what_a_callback_measured_is_read_back_whatever_number_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_result({"steps": 2, "mine": {"best": math.inf, "all": [1.5, math.nan]}})
    assert folder.read_result() == {"steps": 2, "mine": {"best": "inf", "all": [1.5, "nan"]}}
