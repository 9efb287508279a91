"""The demo from the command line, made small: clips, shards, training, pictures, fidelity."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from experiments.cli import main
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.experiments.conftest import SMALL_DEMO, demo, result
from tests.processes import lumos
from tests.refusals import told


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A run from nothing, and what was printed meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run = demo(tmp_path_factory.mktemp("demo"), "first")
    yield run, printed.getvalue()


def test_from_nothing_to_judged_clips(first: tuple[Path, str]) -> None:
    run, out = first
    fidelity = result(run)["caption_fidelity"]
    assert set(fidelity) == {"seen", "heldout", "round_trip"}
    assert set(fidelity["seen"]) == {"color", "shape", "motion", "joint"}
    with Image.open(run / "samples.gif") as animation:
        assert animation.n_frames > 1
    assert f"{run}/samples.png" in out and "tensorboard --logdir" in out and "heldout" in out

    folder = run.parents[2]
    clips = sorted((folder / "clips").rglob("*"))
    before = {path: path.stat().st_mtime_ns for path in clips if path.is_file() and path.suffix in (".mp4", ".tar")}
    assert len(before) == 8 + 2 + 2
    again = demo(folder, "second")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is made twice
    assert result(again)["weights_sha256"] == result(run)["weights_sha256"]
    assert result(again)["caption_fidelity"] == fidelity


@pytest.mark.seconds
def test_a_run_stopped_while_it_is_judged_is_judged_without_training(
    first: tuple[Path, str], handlers: object, monkeypatch: pytest.MonkeyPatch, no_training: Callable[[], None]
) -> None:
    whole, _ = first
    judged = []

    def judge(*_: object) -> dict[str, bool]:
        judged.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr("lumos_pl.shape_world.world.judge", judge)
        with pytest.raises(SystemExit) as left:
            demo(whole.parents[2], "stopped", "checkpoint.every_n_steps=0")
    run = whole.parent / "stopped"
    assert left.value.code == 143 and len(judged) == 1 and not (run / "result.json").exists()
    no_training()
    assert main(["resume", str(run)]) == 0
    for key in "steps", "loss", "caption_fidelity", "weights_sha256":
        assert result(run)[key] == result(whole)[key]
    assert (run / "samples.gif").is_file()


def test_shards_of_another_tokenizer_are_refused(
    first: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = first[0].parents[2]
    other = tmp_path / "other.safetensors"
    FsqTokenizer(TokenizerConfig(levels=[8, 5, 5, 5], width=8, patch_width=4)).save(other)
    demo(folder, "other_clips", f"visual_tokenizer={other}", "world.train=8", status=2)
    capsys.readouterr()
    demo(folder, "no_clips", f"visual_tokenizer={other}", "world.train=0", status=3)
    made, asked = (load_visual_tokenizer(source).fingerprint for source in ("embedded", str(other)))
    assert f"got {made}, expected {asked}" in told(capsys.readouterr().err)


def test_decoded_samples_need_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(
        tmp_path,
        "first",
        "visual_tokenizer=null",
        "world.train=0",
        "data.root=synthetic",
        "data.val_root=null",
        status=2,
    )
    assert "visual_tokenizer" in told(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_validate_show_and_judge_the_same_as_one(strategy: str, tmp_path: Path) -> None:
    """Of weights that stay as they were drawn; three batches of validation, and of the captions, which two share."""
    still = ["optimizer.lr=1e-30", "optimizer.muon_lr=1e-30", "trainer.precision=32-true", "data.val_batches=3"]
    still += ["trainer.max_steps=1", "trainer.val_every_n_steps=1", "world.val=6"]
    one = demo(tmp_path, "one", *still)
    places = [f"run.dir={tmp_path / 'runs'}", f"world.folder={tmp_path / 'clips'}", "run.name=two"]
    lumos("train", "demo", *places, *SMALL_DEMO, *still, f"trainer.strategy={strategy}", "trainer.devices=2", world=2)
    two = one.with_name("two")
    for name in "samples.png", "samples.gif":
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert result(two)["caption_fidelity"] == result(one)["caption_fidelity"]
    assert result(two)["loss"]["loss/val"] == pytest.approx(result(one)["loss"]["loss/val"], abs=1e-6)
