"""`lumos eval` on tiny models: what it measures, on what, and that it does so again."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules.config import SyntheticConfig
from data_modules.shards.writer import write_by_kind
from data_modules.synthetic import synthetic_shards
from experiments.cli import main
from experiments.evaluation.beforehand import is_measured, measured_names
from experiments.evaluation.evaluate import evaluate
from experiments.evaluation.horizon import horizon_rows
from experiments.evaluation.loss import hide_clip
from experiments.evaluation.pictures import PSNR_CEILING, drift_length, frame_quality, run_length
from experiments.evaluation.report import print_result, write_tensorboard
from experiments.evaluation.settings import EvalSettings
from experiments.evaluation.subject import Subject
from lumos_pl.errors import CheckpointError, ConfigError, DataError
from lumos_pl.layout import LayoutConfig, compact_layout
from lumos_pl.tokenizers.load import load_visual_tokenizer
from tests.callbacks.tiny_run import events
from tests.experiments.evaluated_run import DATA, SYNTHETIC, WORLD, as_a_run, make_run
from tests.refusals import refused, told

FEW = EvalSettings(clips=3, captions=2, generated=2, mask_ratios=(0.5,), device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


def test_another_visual_tokenizer_than_that_of_the_training_data(tmp_path: Path) -> None:
    with refused(ConfigError, where="visual_tokenizer", expected="fsq-0123456789ab"):
        evaluate(make_run(tmp_path / "run", codes_of="fsq-0123456789ab"), FEW)


def changed(run: Path, name: str, change: Any) -> Path:
    """A copy of the run whose output matrix, [V, D], was changed in place."""
    file = run / "checkpoints" / "step-00000007.ckpt"
    content = torch.load(file, weights_only=True)
    change(content["state_dict"]["net.lm_head.weight"])
    other = run.parent / name
    (other / "checkpoints").mkdir(parents=True)
    torch.save(content, other / "checkpoints" / file.name)
    return as_a_run(other)


def assert_known(names: list[str], run: Path, settings: EvalSettings) -> None:
    subject = Subject.open(run, settings)
    known = measured_names(settings, replace(subject.config, layout=LayoutConfig(preset="compact")))
    assert [name for name in names if not is_measured(name, known)] == []


@pytest.mark.seconds
def test_all_parts_of_a_run(run: Path) -> None:
    steps: dict[str, tuple[int, int]] = {}
    result = evaluate(run, FEW, on_progress=lambda part, done, total: steps.update({part: (done, total)}))
    assert json.loads((run / "eval.json").read_text()) == result
    assert result["skipped"] == {"frechet": "no feature extractor: --fvd, --fid"}
    assert set(steps) == {"loss", "fidelity", "i2v", "continuation", "drift"}
    assert all(done == total for done, total in steps.values())
    measures = result["measures"]
    rows: dict[str, set[str]] = {}
    for name in measures:
        rows.setdefault(name.rpartition("/")[0], set()).add(name.rpartition("/")[2])
    frames = {f"frame_{k}" for k in range(3)}
    assert rows["loss/tube_0.5"] == rows["loss/random_0.5"] == {"loss", "accuracy", "perplexity"} | frames
    assert rows["fidelity/heldout"] == {"color", "shape", "motion", "joint"}
    assert rows["i2v/psnr"] == rows["i2v/ssim"] == {"all", "frame_1", "frame_2"}
    assert rows["continuation/psnr"] == {"all", "frame_1", "frame_2"}
    assert rows["drift/code_agreement"] == {f"frame_{k}" for k in range(1, 6)}
    assert rows["drift/psnr"] == rows["drift/code_agreement_truth"] == {"frame_1", "frame_2"}
    assert_known([*measures, *json.loads((run / "times.json").read_text())], run, FEW)
    for name, measure in measures.items():
        assert measure["low"] <= measure["mean"] <= measure["high"], name
        group = next(group for group in result["samples"] if name.startswith(group))
        assert measure["values"] is None or len(measure["values"]) == len(result["samples"][group]) >= measure["n"]
    logged = events(run / "eval")
    assert logged.Scalars("eval_loss/tube_0.5/loss")[0].value == pytest.approx(measures["loss/tube_0.5/loss"]["mean"])
    assert "[" in str(logged.Tensors("eval/loss/text_summary")[0].tensor_proto)


@pytest.mark.seconds
def test_the_same_bytes_again_and_the_same_numbers_for_any_batch(run: Path, tmp_path: Path) -> None:
    settings = replace(FEW, only=("loss", "i2v"))
    first = evaluate(run, replace(settings, out=tmp_path / "first"))
    evaluate(run, replace(settings, out=tmp_path / "second"))
    files = [tmp_path / name / "eval.json" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    evaluate(run, replace(settings, out=tmp_path / "first"))
    assert len(list((tmp_path / "first" / "eval").glob("events.*"))) == 1  # one set of events of one step

    batched = replace(settings, overrides=("data.video.batch_size=5", "data.num_workers=2"), out=tmp_path / "batched")
    assert evaluate(run, batched)["measures"] == first["measures"]
    other = evaluate(run, replace(settings, seed=1, out=tmp_path / "other"))
    assert other["measures"] != first["measures"]


def test_events_of_the_users_beside_an_evaluations_are_kept(tmp_path: Path) -> None:
    measure = {"mean": 1.0, "low": None, "high": None, "n": 1, "values": None}
    result = {"step": 1, "measures": {"loss/tube_0.5/loss": measure}}
    theirs = tmp_path / "events.out.tfevents.1.mine.2.3.step-00000001"
    theirs.write_text("mine")
    for _ in range(2):
        write_tensorboard(tmp_path, result)
    (made,) = {*tmp_path.glob("events.*")} - {theirs}
    assert theirs.read_text() == "mine"
    assert events(made).Scalars("eval_loss/tube_0.5/loss")[0].value == 1


@pytest.mark.seconds
def test_more_samples_go_on_from_fewer(run: Path, tmp_path: Path) -> None:
    """The first samples have the values they had."""
    few, more = (
        evaluate(run, replace(FEW, only=("loss", "continuation"), clips=n, generated=n, out=tmp_path / str(n)))
        for n in (2, 4)
    )
    values = {name: measure["values"] for name, measure in few["measures"].items() if measure["values"] is not None}
    assert values
    for name, first in values.items():
        assert more["measures"][name]["values"][:2] == first, name


def test_a_model_that_knows_nothing(run: Path, tmp_path: Path) -> None:
    """Equal logits: a loss of log K everywhere, and a perplexity of K."""
    result = evaluate(changed(run, "blank", lambda head: head.zero_()), replace(FEW, only=("loss",)))
    for row in "tube_0.5", "random_0.5":
        for column in "loss", "frame_0", "frame_2":
            assert result["measures"][f"loss/{row}/{column}"]["mean"] == pytest.approx(math.log(1000), rel=1e-5)
        assert result["measures"][f"loss/{row}/perplexity"]["mean"] == pytest.approx(1000, rel=1e-4)
        # the first code is guessed, which is the background's
        assert 0.2 < result["measures"][f"loss/{row}/accuracy"]["mean"] < 1


def test_common_ground(run: Path) -> None:
    """Masks depend on the clip and the kind, not on how a model was trained; a higher ratio hides more of the same."""
    subject = Subject.open(run, FEW)
    clip = subject.training_sequence(subject.samples(1)[0])

    def hidden(kind: str, ratio: float) -> Tensor:
        batch = hide_clip(clip, kind, ratio, subject)
        return (batch.inputs != batch.tokens)[batch.spans[0].content_index]

    assert torch.equal(hidden("tube", 0.3), hidden("tube", 0.3)[:1].expand(3, -1))
    assert not torch.equal(hidden("random", 0.3), hidden("random", 0.3)[:1].expand(3, -1))
    for kind in "tube", "random":
        few, many = hidden(kind, 0.3), hidden(kind, 0.7)
        assert (few <= many).all()
        assert many.double().mean().item() == pytest.approx(0.7, abs=0.03)


def test_of_a_small_clip_a_code_is_hidden_whatever_the_share(run: Path) -> None:
    """A small share of a small frame may be the ends of its rows alone, which have no loss."""
    subject = Subject.open(run, FEW)
    sample = subject.samples(1)[0]
    for seed in range(20):
        clip = subject.training_sequence(replace(sample, key=str(seed), codes=sample.codes[:, :2, :1]))
        assert len(hide_clip(clip, "tube", 0.1, subject).target_index)


@pytest.mark.parametrize("part", ["i2v", "continuation"])
def test_a_perfect_model_reaches_the_ceiling(run: Path, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was given does not count."""

    def truth(subject: Subject, samples: Sequence[Any], n_given: Sequence[int], on_step: Any) -> list[Tensor]:
        return [subject.truth(sample) for sample in samples]

    monkeypatch.setattr(Subject, "generate", truth)
    measures = evaluate(run, replace(FEW, only=(part,)))["measures"]
    assert {name.rpartition("/")[2] for name in measures} == {"all", "frame_1", "frame_2"}
    for column in ("all", "frame_1", "frame_2"):
        mean = {row: measures[f"{part}/{row}/{column}"]["mean"] for row in ("psnr", "ssim", "psnr_still", "psnr_gain")}
        assert (mean["psnr"], mean["ssim"]) == (pytest.approx(PSNR_CEILING), pytest.approx(1))
        assert mean["psnr_still"] < PSNR_CEILING
        assert mean["psnr_gain"] == pytest.approx(PSNR_CEILING - mean["psnr_still"])


def test_frame_quality_against_its_definition() -> None:
    black = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    made = black.clone()
    made[1] = 51
    quality = frame_quality(made, black)
    assert quality["psnr"].tolist() == pytest.approx([PSNR_CEILING, 20 * math.log10(255 / 51)])
    c1 = 0.01**2  # of constant pictures: (2 m m' + c1) / (m^2 + m'^2 + c1)
    assert quality["ssim"].tolist() == pytest.approx([1, c1 / (0.2**2 + c1)], rel=1e-4)


def test_context_differs_by_what_stands_before_a_frame(run: Path, tmp_path: Path) -> None:
    """Where all of it is hidden, own frames are as good as true ones; where none is, they are others."""
    settings = replace(FEW, only=("context",), contexts=(0.0, 1.0), out=tmp_path)
    measures = evaluate(run, settings)["measures"]
    assert_known(list(measures), run, settings)
    values = {name.removeprefix("context/"): measure["values"] for name, measure in measures.items()}
    assert values["own_rho_1/loss"] == values["rho_1/loss"] != values["rho_0/loss"]
    assert values["own_rho_0/loss"] != values["rho_0/loss"]
    for row in "tube", "independent", "rho_0", "own_rho_1":
        assert {name.rpartition("/")[2] for name in values if name.startswith(f"{row}/")} == {
            *("loss", "accuracy", "over_tube", "over_independent", "frame_1", "frame_2")
        }
        over = [one - tube for one, tube in zip(values[f"{row}/loss"], values["tube/loss"], strict=True)]
        assert values[f"{row}/over_tube"] == pytest.approx(over)


def test_a_horizon_is_windows_there_and_back(run: Path, tmp_path: Path) -> None:
    settings = replace(FEW, only=("horizon",), windows=3, out=tmp_path)
    measures = evaluate(run, settings)["measures"]
    assert_known(list(measures), run, settings)
    rows = {
        row: {name.split("/")[2]: found["values"] for name, found in measures.items() if f"/{row}/" in name}
        for row in horizon_rows(settings)
    }
    assert [len(values) for values in rows["window_1"].values()] == [2] * 6  # captions
    joints = zip(*(rows[f"window_{number}"]["joint"] for number in (1, 2, 3)), strict=True)
    assert rows["all"]["joint"] == list(map(min, joints)) and len(rows["truth"]["joint"]) == 2
    first, last = rows["window_1"], rows["window_3"]
    assert rows["fall"]["codes"] == pytest.approx([a - b for a, b in zip(first["codes"], last["codes"], strict=True)])
    assert rows["fall"]["loss"] == pytest.approx([b - a for a, b in zip(first["loss"], last["loss"], strict=True)])


def test_the_weights_may_be_asked_at_other_positions(run: Path) -> None:
    def loss(*words: str) -> float:
        found = evaluate(run, replace(FEW, only=("loss",), overrides=words))["measures"]["loss/tube_0.5/loss"]["mean"]
        return float(found)

    others = loss("model.rope=3d_distributed"), loss("model.rope_theta=500"), loss("model.rope=1d")
    assert len({loss(), *others}) == 4
    assert loss("model.rope=mm", "model.rope_theta=10000") == loss()


@pytest.mark.seconds
def test_drift_has_the_truth_where_validation_clips_are_longer(tmp_path: Path) -> None:
    layout, tokenizer = compact_layout(codebook_size=1000), load_visual_tokenizer("embedded")
    shards = synthetic_shards(SyntheticConfig(**SYNTHETIC), layout, kind="video", split="val", frames=17)
    write_by_kind(
        tmp_path / "val",
        shards.read(0),
        tokenizer=tokenizer.fingerprint,
        codebook_size=1000,
        strides=tokenizer.strides,
    )
    run = make_run(tmp_path / "run", data={**DATA, "val_root": str(tmp_path / "val")})
    measures = evaluate(run, replace(FEW, only=("drift", "continuation")))["measures"]
    columns = [name.rpartition("_")[2] for name in measures if name.startswith("drift/psnr/")]
    assert columns == ["1", "2", "3", "4"]  # of 5 latent frames, the first given; 9 frames are 3
    assert "drift/code_agreement/frame_5" in measures
    assert "continuation/psnr/frame_3" not in measures


def test_drift_begins_where_training_ended_on_longer_clips_too(run: Path) -> None:
    subject = Subject.open(run, replace(FEW, overrides=("data.video.frames=17",)))
    assert (run_length(subject), drift_length(subject)) == (3, 6)
    assert {len(sample.codes) for sample in subject.samples(2)} == {5}


@pytest.mark.seconds
def test_clips_of_another_world(tmp_path: Path) -> None:
    """Only what is measured is made, once; they are the validation data, at their length."""
    run = make_run(tmp_path / "run", world={"train": 0, **WORLD})
    folder = tmp_path / "long"
    world = (f"world.folder={folder}", "world.val=3", "world.frames=13")
    settings = replace(FEW, only=("loss",), overrides=world)
    result = evaluate(run, settings)
    assert {f"loss/tube_0.5/frame_{k}" for k in range(4)} <= set(result["measures"])
    assert result["data"] != evaluate(run, replace(FEW, only=("loss",)))["data"]
    made = {file: file.stat().st_mtime_ns for file in folder.rglob("*.mp4")}
    assert len(made) == 3 and not (folder / "train").exists()

    cut = evaluate(run, replace(settings, overrides=(*world, "data.video.frames=9")))
    assert "loss/tube_0.5/frame_2" in cut["measures"] and "loss/tube_0.5/frame_3" not in cut["measures"]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.mp4")} == made
    with refused(DataError, file=folder / "val"):
        evaluate(run, replace(settings, overrides=(*world[:2], "world.side=48")))
    with refused(ConfigError, where="visual_tokenizer", got="none"):
        evaluate(run, replace(settings, overrides=(*world, "visual_tokenizer=null")))


def test_wall_times_stand_apart(run: Path, tmp_path: Path) -> None:
    settings = replace(FEW, only=("fidelity",), out=tmp_path)
    first = evaluate(run, settings)
    times = json.loads((tmp_path / "times.json").read_text())
    assert list(times) == ["fidelity/clip/seconds"] and times["fidelity/clip/seconds"] > 0
    assert evaluate(run, settings) == first and "seconds" not in json.dumps(first)


@pytest.mark.seconds
def test_what_cannot_be_measured_is_left_out_or_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", visual_tokenizer=None, world={"train": 0})
    result = evaluate(run, FEW)
    assert {name.partition("/")[0] for name in result["measures"]} == {"loss"}
    assert result["skipped"]["i2v"] == "no visual tokenizer: visual_tokenizer"
    assert result["skipped"]["fidelity"] == "not trained in the world of shapes: world.train is 0"
    with refused(ConfigError, file=run, where="no visual tokenizer: visual_tokenizer"):
        evaluate(run, replace(FEW, only=("loss", "i2v")))
    with refused(ConfigError, where="validation clips of too few latent frames: data.video.frames"):
        evaluate(run, replace(FEW, only=("drift",), overrides=("visual_tokenizer=embedded", "data.kind=image")))

    bare = make_run(tmp_path / "bare", data={"val_root": None, "prompt": "{caption}"}, world={"train": 0})
    with refused(ConfigError, where="no validation data: data.val_root"):
        evaluate(bare, FEW)
    short = make_run(tmp_path / "short", data={**DATA, "video": {"frames": 5}})
    assert "continuation" in evaluate(short, replace(FEW, captions=2))["samples"]


def test_a_checkpoint_outside_of_a_run_needs_a_place_for_the_results(run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "step-00000007.ckpt"
    lonely = tmp_path / "lonely.ckpt"
    lonely.write_bytes(file.read_bytes())
    only = replace(FEW, only=("loss",))
    with refused(ConfigError, file=lonely):
        evaluate(lonely, only)
    there = evaluate(lonely, replace(only, out=tmp_path / "there"))
    assert there["measures"] == evaluate(file, only)["measures"]
    assert (tmp_path / "there" / "eval.json").is_file()
    with refused(ConfigError, file=lonely / "out", where="--out", got="Not a directory"):
        evaluate(lonely, replace(only, out=lonely / "out"))


def test_numbers_that_are_none(run: Path) -> None:
    broken = changed(run, "broken", lambda head: head.fill_(math.nan))
    with refused(CheckpointError, file="step-00000007.ckpt", where="lm_head.weight", got="NaN or infinity"):
        evaluate(broken, replace(FEW, only=("loss",)))
    assert not (broken / "eval.json").exists()


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"only": ("loss", "speed")}, {"where": "only", "got": "'speed'"}),
        ({"clips": 1}, {"where": "clips", "got": 1, "expected": "2 to 1000000"}),
        ({"mask_ratios": (0.0,)}, {"where": "mask_ratios", "got": 0.0}),
        ({"overrides": ("model.dim=4",)}, {"got": "model.dim=4"}),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], fields: dict[str, Any]) -> None:
    with refused(ConfigError, **fields):
        EvalSettings(**settings)


def test_a_configuration_of_another_version(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", wings=2)
    with refused(ConfigError, file="step-00000007.ckpt", got="wings"):
        evaluate(run, FEW)
    with refused(CheckpointError, file="step-00000007.ckpt", where="lumos.config"):
        evaluate(make_run(tmp_path / "odd", about=torch.zeros(1)), FEW)


@pytest.mark.parametrize("width", [48, 80, 400])
def test_no_name_and_no_number_is_cut_short(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ["loss", "accuracy", *(f"frame_{number}" for number in range(9))]
    measures = {
        f"loss/{row}/{column}": {"mean": at + 0.1234, "low": at, "high": at + 0.25, "n": number}
        for row in ("random_0.7", "tube_0.7")
        for number, column in enumerate(columns, start=1)
        for at in [10 * number]
    }
    del measures["loss/random_0.7/frame_8"]
    print_result({"measures": measures, "skipped": {}})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    cells = [line.replace("┃", "│").strip("│").split("│") for line in lines if "│" in line or "┃" in line]
    words = [word.strip() for row in cells for word in row]
    assert sorted(word for word in words if "±" in word) == sorted(
        f"{measure['mean']:.2f} ±{0.125:.2f}" for measure in measures.values()
    )
    assert {*columns, "tube_0.7", "random_0.7", "n", f"{len(columns)}"} <= {*words}  # n: of how many samples


def test_a_stop_says_so(
    run: Path, handlers: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # where nothing notes it, it is not this process's end
    monkeypatch.setattr(Subject, "open", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["eval", str(run), "--only", "loss", "--device", "cpu"]) == 143
    assert told(capsys.readouterr().err)[1] == str(run)


def test_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(run), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*command, "--only", "loss", "--clips", "2", "data.video.frames=5"]) == 0
    printed = capsys.readouterr().out
    assert "tube_0.9" in printed and "±" in printed and "frame_1" in printed and "frame_2" not in printed
    assert printed.splitlines()[-1].endswith(str(tmp_path / "out" / "eval.json"))
    assert (tmp_path / "out" / "eval.json").is_file()
    for wrong in (["--only", "all"], ["--clips", "x"], ["trainer.max_steps=3"], ["data.colour=red"]):
        assert main([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["eval", str(tmp_path / "nothing")]) == 4
