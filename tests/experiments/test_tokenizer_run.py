"""Training a tokenizer from the command line: what is left behind, and that it goes on as if never stopped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.assemble import assemble
from experiments.cli import main
from experiments.config import ExperimentConfig
from experiments.read_config import load_experiment, read_config
from lumos_pl.checkpoints.complete import complete
from lumos_pl.errors import ConfigError
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.experiments.conftest import SMALL_TOKENIZER, demo, metrics, result, train_in
from tests.processes import lumos
from tests.refusals import told


def tokenizer_run(folder: Path, name: str, *overrides: str, status: int = 0) -> Path:
    return train_in(folder, "tokenizer_fsq", name, *SMALL_TOKENIZER, *overrides, status=status)


DRAWN = ["world.train=0", "data.root=moving_pictures", "data.val_root=moving_pictures", "data.val_batches=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; not to be changed."""
    return tokenizer_run(tmp_path_factory.mktemp("finished"), "whole")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, over clips that are drawn as they are asked for."""
    return tokenizer_run(tmp_path_factory.mktemp("drawn"), "whole", *DRAWN)


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, of a dictionary, whose entries come from the clips."""
    return tokenizer_run(
        tmp_path_factory.mktemp("dictionary"), "whole", "tokenizer.kind=dictionary", "tokenizer.entries=40"
    )


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tokenizer_fsq" / "copy", symlinks=True))


@pytest.mark.seconds
def test_a_run_leaves_a_tokenizer_that_loads(finished: Path) -> None:
    end = result(finished)
    assert end["steps"] == 4 and set(end["loss"]) == {"loss/train", "loss/val"}
    path = finished / "tokenizer.safetensors"
    assert end["tokenizer"] == str(path) and 0 < end["psnr"] < 60
    tokenizer = load_visual_tokenizer(str(path))
    assert (tokenizer.fingerprint, tokenizer.codebook_size) == (end["fingerprint"], 1000)
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert isinstance(tokenizer, FsqTokenizer)
    for name, weight in tokenizer.state_dict().items():
        assert torch.equal(weight, saved[f"net.{name}"].half().float()), name
    with Image.open(finished / "reconstructions.png") as picture:
        assert picture.height > 2 * 2 * 128  # the two clips of a batch, truth and reconstruction
    logged = {key for record in metrics(finished) for key in record}
    assert logged >= {"loss/train", "grad_norm", "loss/val", "psnr/val", "codebook/used", "codebook/perplexity"}
    assert end["psnr"] == pytest.approx([r["psnr/val"] for r in metrics(finished) if "psnr/val" in r][-1], abs=0.1)


@pytest.mark.seconds
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("clips", ["finished", "drawn", "dictionary"])
def test_resumed_equals_never_stopped(clips: str, workers: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The steps that are left, and the second validation, of listed clips and of drawn ones."""
    whole: Path = request.getfixturevalue(clips)
    run = Path(shutil.copytree(whole, tmp_path / "runs" / "tokenizer_fsq" / "copy", symlinks=True))
    (run / "checkpoints" / "step-00000004.ckpt").unlink()
    for file in "result.json", "tokenizer.safetensors":
        (run / file).unlink()
    assert main(["resume", str(run), f"data.num_workers={workers}"]) == 0
    for figure in "weights_sha256", "fingerprint", "psnr", "loss":
        assert result(run)[figure] == result(whole)[figure]
    names = "loss/train", "loss/val", "psnr/val", "motion/val", "codebook/perplexity"
    figures = [
        [(r["step"], name, r[name]) for r in metrics(folder) for name in names if name in r] for folder in (whole, run)
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 4 + 2 * 4


@pytest.mark.seconds
def test_a_run_killed_after_its_last_step_still_writes_the_tokenizer(run: Path, finished: Path) -> None:
    for file in "result.json", "tokenizer.safetensors":
        (run / file).unlink()
    assert main(["resume", str(run)]) == 0
    assert result(run)["fingerprint"] == result(finished)["fingerprint"] and (run / "tokenizer.safetensors").is_file()


def test_a_tokenizers_run_stands_for_its_file(run: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "tokenizer.safetensors"
    fingerprint = result(finished)["fingerprint"]
    for name in run, run.with_name("latest"), run.with_name("latest") / file.name:
        assert load_visual_tokenizer(str(name)).fingerprint == fingerprint
    unfinished = Path(shutil.copytree(run, run.with_name("unfinished"), symlinks=True))
    (unfinished / file.name).unlink()
    os.utime(unfinished / "config.yaml")  # the newest
    assert load_visual_tokenizer(str(run.with_name("latest"))).fingerprint == fingerprint
    with pytest.raises(ConfigError):
        load_visual_tokenizer(str(unfinished))
    file.unlink()
    with pytest.raises(ConfigError):
        load_visual_tokenizer(str(run.with_name("latest")))


FEW = ["checkpoint.every_n_steps=1", "callbacks.fidelity_captions=0", "callbacks.prompts=[]", "trainer.max_steps=1"]


def recorded(run: Path) -> str | None:
    config = read_config(run / "config.yaml")
    assert isinstance(config, ExperimentConfig)
    return config.visual_tokenizer


@pytest.mark.seconds
def test_a_run_keeps_to_the_tokenizer_that_latest_stood_for(run: Path, tmp_path: Path) -> None:
    """And so does a resume that is told to take it, once and for all."""
    trained = demo(tmp_path, "one", f"visual_tokenizer={run.with_name('latest')}", *FEW)
    assert recorded(trained) == str(run)
    newer = run.with_name("newer")
    newer.mkdir()
    (newer / "config.yaml").touch()
    FsqTokenizer(TokenizerConfig(levels=[8, 5, 5, 5], width=8, patch_width=4)).save(newer / "tokenizer.safetensors")
    assert load_visual_tokenizer(str(run.with_name("latest"))).fingerprint != result(run)["fingerprint"]
    assert main(["resume", str(trained), "trainer.max_steps=2"]) == 0
    (newer / "tokenizer.safetensors").unlink()
    assert main(["resume", str(trained), "trainer.max_steps=3", f"visual_tokenizer={run.with_name('latest')}"]) == 0
    assert recorded(trained) == str(run)
    sampled = ["--run", str(trained), "--tokenizer", str(run.with_name("latest")), "--prompt", "x", "--frames", "1"]
    assert main(["sample", *sampled, "--out", str(tmp_path / "out")]) == 0
    shards = sorted((tmp_path / "clips").rglob("manifest.json"))
    picture = ["--tokenizer", str(run.with_name("latest")), "--out", str(tmp_path / "sheet.png")]
    assert main(["shards", "show", str(shards[0].parent), *picture]) == 0
    words = ["--only", "i2v", "--generated", "2", f"visual_tokenizer={run.with_name('latest')}"]
    assert main(["eval", str(trained), *words]) == 0


@pytest.mark.slow
def test_two_processes_train_and_judge_like_one(tmp_path: Path) -> None:
    settings = ["trainer.precision=32-true", "trainer.max_steps=2", "data.batch_size=1"]
    one = tokenizer_run(tmp_path, "one", *settings, "trainer.accumulate=2")
    places = [f"run.dir={tmp_path / 'runs'}", f"world.folder={tmp_path / 'clips'}", "run.name=two"]
    lumos(
        "train",
        "tokenizer_fsq",
        *places,
        *SMALL_TOKENIZER,
        *settings,
        "trainer.devices=2",
        "trainer.strategy=ddp",
        world=2,
    )
    two = one.with_name("two")
    assert result(two)["loss"] == pytest.approx(result(one)["loss"], abs=1e-5)
    assert result(two)["psnr"] == pytest.approx(result(one)["psnr"], abs=0.01)


@pytest.mark.seconds
def test_without_validation_clips_there_is_no_figure(tmp_path: Path) -> None:
    run = tokenizer_run(tmp_path, "one", "data.val_root=null", "trainer.max_steps=1")
    assert result(run)["psnr"] is None and not (run / "reconstructions.png").exists()
    assert (run / "tokenizer.safetensors").is_file()


def test_a_run_goes_on_with_its_own_clips_and_shape_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change, where in ("data.batch_size=3", "data.batch_size"), ("tokenizer.width=4", "tokenizer.width"):
        assert main(["resume", str(run), "trainer.max_steps=6", change]) == 4
        assert told(capsys.readouterr().err)[2] == where
    settings = (run / "config.yaml").read_text()  # which no change to what the weights cannot be becomes part of
    assert main(["resume", str(run), "trainer.max_steps=6", "tokenizer.width=4", "--allow-changes"]) == 4
    assert told(capsys.readouterr().err)[2] == "tokenizer.width" and (run / "config.yaml").read_text() == settings


@pytest.mark.parametrize(
    ("override", "status", "part"),
    [
        ("trainer.strategy=fsdp2", 2, "trainer.strategy"),
        ("optimizer.kind=muon", 2, "optimizer.kind"),
        ("data.root=nowhere.csv", 3, "nowhere.csv"),
        ("data.size=20x32", 2, "data.size"),
    ],
)
def test_what_does_not_fit_is_one_line(
    override: str, status: int, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not tokenizer_run(tmp_path, "one", override, status=status).exists()
    *others, line = capsys.readouterr().err.strip().splitlines()
    assert part in told(line) and not any("Traceback" in other for other in others)


@pytest.mark.parametrize("strides", [[1024, 1024, 1024], [10**6, 10**6, 10**6]])
def test_a_dictionary_that_no_memory_holds_is_refused_before_it_takes_any(strides: list[int]) -> None:
    words = [f"tokenizer.strides={strides}", "data.root=moving_pictures", "data.val_root=moving_pictures"]
    with pytest.raises(ConfigError) as caught:
        assemble(load_experiment("own_dictionary", words))
    assert str(caught.value.where).startswith("tokenizer")


def test_a_changed_checkpoint_of_a_tokenizer_is_refused_with_its_field(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "step-00000004.ckpt"
    content = torch.load(file, weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = content["state_dict"][name].long()
    torch.save(content, file.with_name("written"))
    complete(file.with_name("written"), file)
    (run / "result.json").unlink()
    capsys.readouterr()
    assert main(["resume", str(run)]) == 4
    assert told(capsys.readouterr().err)[2] == name
