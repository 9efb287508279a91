"""A run goes on as if it had never stopped, or says what is not as it was."""

from __future__ import annotations

import pickle
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from traceback import StackSummary

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint.api import CheckpointException

from experiments.cli import main
from experiments.own_checkpoint import misfit, read_own
from lumos_pl.checkpoints.contents import Lumos, check_fields
from lumos_pl.checkpoints.description import made_with, refuse_changes
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.own_files import partial_of
from tests.callbacks.tiny_run import age_events
from tests.experiments.conftest import Train, metrics, result, train_small
from tests.hostile import Evil
from tests.refusals import refused, told


def forget(run: Path, *steps: int) -> None:
    """Delete checkpoints, as if the run had been killed before them."""
    for step in steps:
        (run / "checkpoints" / f"step-{step:08d}.ckpt").unlink()


@pytest.mark.parametrize("kind", ["image", "video", "joint"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_equals_never_stopped(kind: str, workers: int, trained: Train) -> None:
    settings = [f"data.kind={kind}", "optimizer.ema_decay=0.9"]
    whole = trained("whole", *settings)
    killed = trained("killed", *settings)
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


def test_resume_passes_over_a_damaged_checkpoint_and_says_so(
    trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("one")
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


def test_a_longer_run_goes_on_and_settings_may_change(trained: Train) -> None:
    run = trained("one")
    assert main(["resume", str(run), "trainer.max_steps=8", "optimizer.lr=1e-9", "optimizer.warmup_steps=0"]) == 0
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-9


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("data.synthetic.n_samples=12", "data.image.manifest"),
        ("data.video.batch_size=2", "data.video.batch_size"),
        ("data.caption_dropout=0.2", "data.caption_dropout"),
        ("layout.codebook_size=99", "data.image.manifest"),
        ("model.rope=1d", "model.rope"),
        ("seed=3", "seed"),
        ("trainer.accumulate=3", "batches_per_step"),
        ("optimizer.ema_decay=0.999", "optimizer.ema"),
        ("optimizer.kind=muon", "optimizer.kind"),
    ],
)
def test_resume_with_something_else_is_refused(
    override: str, where: str, trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("one", "trainer.max_steps=2")
    assert main(["resume", str(run), override]) == 4
    _, _, found, _, fix = told(capsys.readouterr().err)
    assert found == where and "--allow-changes" in fix


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, "b"),
        ({"a": 1, "b": 2}, {"a": 1}, "b"),
        ({"a": {"x": 1}}, {"a": None}, "a"),
        ({"a": {"x": 1}}, {"a": {"x": 1, "y": 2}}, "a.y"),
    ],
)
def test_a_setting_that_came_or_went_is_a_change(
    old: dict[str, object], new: dict[str, object], where: str, tmp_path: Path
) -> None:
    with refused(CheckpointError, where=where):
        refuse_changes(old, new, tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"global_step": 1, "lumos": {"format": 2, "identity": {}}}, tmp_path / "x.ckpt")
    with refused(CheckpointError, where="lumos.format", got=2, expected=1):
        read_own(tmp_path / "x.ckpt")


def test_a_hostile_sharded_checkpoint_is_refused_unexecuted(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    torch.save({"global_step": 1, "lumos": {"format": 1, "identity": {}}}, tmp_path / "meta.pt")
    with refused(CheckpointError, file=".metadata"):
        read_own(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_leftovers_go_when_a_run_goes_on(trained: Train) -> None:
    run = trained("one", "trainer.max_steps=1")
    left = partial_of(run / "checkpoints" / "step-00000002.ckpt")
    users = run / "checkpoints" / "step-00000002.ckpt.partial"
    for file in left, users:
        file.write_bytes(b"half")
    assert main(["resume", str(run), "trainer.max_steps=3"]) == 0
    assert not left.exists() and users.read_bytes() == b"half"


SHOWN = [
    "callbacks.sample_grid_every_n_steps=3",
    "callbacks.heatmap_every_n_steps=2",
    "trainer.val_every_n_steps=2",
    "sampling.steps=1",
]


def shown(run: Path) -> dict[str, list[int]]:
    """The steps at which TensorBoard shows each number and picture."""
    events = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0}).Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag != "epoch"}  # which is with each
    found |= {tag: events.Images(tag) for tag in events.Tags()["images"]}
    return {tag: sorted(event.step for event in of_tag) for tag, of_tag in found.items()}


def resume_later(run: Path, *overrides: str) -> None:
    age_events(run)
    assert main(["resume", str(run), *overrides]) == 0


@pytest.mark.seconds
def test_tensorboard_shows_every_step_once_after_a_resume(train: Train) -> None:
    """Stopped before and after a validation, after steps that are done again, and after the last step."""
    expected = shown(train("whole", *SHOWN))
    assert expected["loss/train"] == list(range(6)) and expected["loss/val"] == [1, 3, 5]
    assert expected["loss_frame/heatmap"] == [3, 5]
    assert expected["samples/val"] == [1, 1, 3, 3, 5, 5]  # of images and of videos
    run = train("one", *SHOWN, "trainer.max_steps=2")
    resume_later(run, "trainer.max_steps=4")
    forget(run, 4)
    resume_later(run, "trainer.max_steps=6")
    (run / "result.json").unlink()
    resume_later(run)
    assert shown(run) == expected
    forget(run, 2, 4, 6)
    resume_later(run)  # from the start
    assert shown(run) == expected


@pytest.mark.seconds
def test_a_run_that_is_made_longer_is_as_if_it_had_been_so_from_the_start(train: Train) -> None:
    whole, longer = train("whole"), train("longer", "trainer.max_steps=4")
    assert main(["resume", str(longer), "trainer.max_steps=6"]) == 0

    def logged(run: Path, name: str) -> dict[int, float]:
        return {line["step"]: line[name] for line in metrics(run) if name in line}

    for name in "loss/train", "loss/val":
        assert logged(longer, name) == logged(whole, name) != {}


def test_changes_can_be_allowed(trained: Train) -> None:
    run = trained("one", "trainer.max_steps=2")
    assert main(["resume", str(run), "--allow-changes", "data.caption_dropout=0.2", "trainer.max_steps=3"]) == 0
    assert result(run)["steps"] == 3


@pytest.mark.parametrize(
    "override", ["optimizer.ema_decay=0.999", "optimizer.kind=muon", "model.n_layers=1", "model.size=tiny"]
)
def test_state_that_does_not_fit_is_refused_even_if_changes_are_allowed(
    override: str, trained: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("one", "trainer.max_steps=2")
    settings = (run / "config.yaml").read_bytes()
    capsys.readouterr()
    assert main(["resume", str(run), "--allow-changes", "trainer.max_steps=3", override]) == 4
    assert str(run / "checkpoints" / "step-00000002.ckpt") in told(capsys.readouterr().err)
    assert (run / "config.yaml").read_bytes() == settings and not (run / "changes.jsonl").exists()


def test_what_a_run_names_by_a_relative_path_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where the folder that it was trained in has been moved; a resume from either place changes nothing."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "eyes").mkdir(parents=True)
    elsewhere.mkdir()
    with as_file(files("lumos_pl.tokenizers") / "embedded.safetensors") as tokenizer:
        shutil.copy(tokenizer, here / "eyes" / "tokenizer.safetensors")
    monkeypatch.chdir(here)
    visual = ["layout.codebook_size=1000", "visual_tokenizer=eyes/tokenizer.safetensors", "sampling.steps=1"]
    run = train_small(Path(), "one", *visual, "data.kind=video", "trainer.max_steps=2", "trainer.val_every_n_steps=0")
    for place, folder, steps in (elsewhere, here / run, 4), (here, run, 6):
        monkeypatch.chdir(place)
        assert main(["resume", str(folder), f"trainer.max_steps={steps}"]) == 0
    assert "visual_tokenizer" not in capsys.readouterr().out

    moved = here.rename(tmp_path / "moved") / run
    monkeypatch.chdir(elsewhere)
    size = ["--size", "32x32", "--frames", "5", "--out", "clips"]
    old = str(moved / "checkpoints" / "step-00000002.ckpt")
    assert main(["sample", "--ckpt", old, "--prompt", "a cat", *size]) == 0
    assert main(["eval", old, "--only", "loss", "--clips", "2", "--out", "measured"]) == 0


def test_of_a_sharded_checkpoint_it_is_said_what_does_not_fit(tmp_path: Path) -> None:
    failures = {0: (ValueError("Size mismatch between [2] and [3] for weight"), StackSummary())}
    failure = misfit(CheckpointException("load", failures), tmp_path)
    assert failure is not None and failure.got == "Size mismatch between [2] and [3] for weight"
    assert misfit(torch.OutOfMemoryError("CUDA out of memory"), tmp_path) is None


@pytest.mark.parametrize(
    "own", [None, [], {}, {"format": 1, "identity": {}}, {"format": 2, "identity": {}, "config": {}}]
)
def test_a_strange_part_of_a_checkpoint_is_refused(own: object) -> None:
    with refused(CheckpointError, file="x.ckpt"):
        check_fields({"state_dict": {}, "lumos": own}, Path("x.ckpt"))


def test_of_an_older_checkpoint_the_optimizer_is_known_too() -> None:
    config = {"optimizer": {"kind": "muon", "ema_decay": 0.9}}
    lumos = Lumos.model_validate({"format": 1, "config": config, "identity": {"seed": 0}})
    assert made_with(lumos) == {
        "seed": 0,
        "optimizer": {"kind": "muon", "ema": True},
    }
