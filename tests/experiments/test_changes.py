"""A resumed run says each setting that its checkpoint was made without and that its weights depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.changes import note_changes
from experiments.cli import main
from lumos_pl.settings.differences import Difference
from tests.experiments.conftest import Train
from tests.refusals import told

CHECKPOINT = "step-00000004.ckpt"


def interrupted(run: Path) -> None:
    """As if the run had been killed after step 4."""
    (run / "checkpoints" / "step-00000006.ckpt").unlink()
    (run / "result.json").unlink()


def said(run: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the terminal shows of changes, which the run's folder and TensorBoard have too."""
    lines = [
        line.removeprefix("changed: ") for line in capsys.readouterr().out.splitlines() if line.startswith("changed: ")
    ]
    file = run / "changes.jsonl"
    written: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()] if lines else []
    assert [entry["setting"] for entry in written] == [line.split(" | ")[0] for line in lines]
    assert {entry["step"] for entry in written} <= {4}
    if not lines:
        assert not file.exists()
        return []
    events = EventAccumulator(str(run)).Reload()
    (tag,) = [tag for tag in events.Tags()["tensors"] if "changed" in tag]
    shown = events.Tensors(tag)[-1]
    assert shown.step == 4 and all(line in shown.tensor_proto.string_val[0].decode() for line in lines)
    return lines


@pytest.mark.parametrize(
    ("override", "line", "edited"),
    [
        ("optimizer.lr=0.5", "optimizer.lr | 0.003 -> 0.5", False),
        ("mask.min_ratio=0.5", "mask.min_ratio | 0.7 -> 0.5", True),
        ("trainer.precision=bf16-mixed", 'trainer.precision | "32-true" -> "bf16-mixed"', True),
        ("loss.z_loss=0.1", "loss.z_loss | 0.0 -> 0.1", False),
    ],
)
def test_a_change_of_what_the_weights_depend_on_is_said(
    override: str, line: str, edited: bool, trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("one", "optimizer.lr=0.003")
    interrupted(run)
    if edited:
        section, key, value = override.replace("=", ".", 1).split(".", 2)
        text = (run / "config.yaml").read_text()
        at = text.index(f"  {key}:", text.index(f"\n{section}:"))
        (run / "config.yaml").write_text(f"{text[:at]}  {key}: {value}{text[text.index(chr(10), at) :]}")
    assert main(["resume", str(run), *([] if edited else [override])]) == 0
    assert said(run, capsys) == [line]


def test_what_no_weight_depends_on_is_not_said(trained: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("one")
    interrupted(run)
    others = ["data.num_workers=1", "callbacks.log_every_n_steps=3", "about=x", "sampling.steps=3", "checkpoint.keep=5"]
    assert main(["resume", str(run), *others]) == 0
    assert said(run, capsys) == []


@pytest.mark.seconds
def test_a_change_is_said_until_a_checkpoint_was_made_with_it(
    trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("one", "optimizer.lr=0.003")
    interrupted(run)
    for _ in range(2):
        assert main(["resume", str(run), "optimizer.lr=0.5"]) == 0
        assert "changed: optimizer.lr" in capsys.readouterr().out
        assert len((run / "changes.jsonl").read_text().splitlines()) == 1
        interrupted(run)
    (run / "changes.jsonl").unlink()
    assert main(["resume", str(run)]) == 0  # from step 4 still, which the first settings made
    assert said(run, capsys) != []
    (run / "result.json").unlink()
    assert main(["resume", str(run)]) == 0
    assert "changed: " not in capsys.readouterr().out


@pytest.mark.seconds
def test_another_runs_checkpoint_with_other_settings_is_refused(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, alike = train("one"), train("two", "optimizer.lr=0.5"), train("three")
    for source, status in (other, 4), (alike, 0):
        interrupted(run)
        for file in (source / "checkpoints").glob(f"{CHECKPOINT}*"):
            shutil.copy(file, run / "checkpoints" / file.name)
        capsys.readouterr()
        assert main(["resume", str(run)]) == status
        if status:
            line = told(capsys.readouterr().err)
            assert line[1].endswith(CHECKPOINT) and line[2] == "optimizer.lr" and "0.5" in line[3]
            assert main(["resume", str(run), "--allow-changes"]) == 0
            assert "changed: optimizer.lr" in capsys.readouterr().out
            (run / "changes.jsonl").unlink()


@pytest.mark.parametrize("kind", ["text", "link", "folder"])
def test_what_a_user_has_in_its_place_is_kept_aside(kind: str, tmp_path: Path) -> None:
    file, target = tmp_path / "changes.jsonl", tmp_path / "target"
    target.write_text("theirs")
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        file.symlink_to(target)
    else:
        file.write_text("theirs")
    for step in 4, 6:
        note_changes(file, [Difference("seed", 1, step)], step)
    assert [json.loads(line)["now"] for line in file.read_text().splitlines()] == [4, 6]
    kept = tmp_path / "changes.kept-1.jsonl"
    assert kept.is_dir() if kind == "folder" else kept.read_text() == "theirs"
    assert target.read_text() == "theirs"
