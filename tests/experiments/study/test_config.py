from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from callbacks.jsonl_logger import read_records
from experiments.config import Config, ExperimentConfig, TokenizerExperimentConfig
from experiments.evaluation.beforehand import is_measured
from experiments.evaluation.evaluate import TIMES_FILE
from experiments.evaluation.settings import EvalSettings
from experiments.read_config import read_config, with_overrides
from experiments.study.cells import plan_cells
from experiments.study.config import STUDIES, load_study, study_names
from experiments.study.logged import logged_names
from lumos_pl.errors import ConfigError
from lumos_pl.module import LumosModule
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from tests.experiments.conftest import Train, result
from tests.experiments.study.toy import LOGS_MORE, TOY, plan_toy, write_toy
from tests.refusals import refused

LOSS = {"eval": {"only": ["loss"]}}
DEMO = {"base": "demo", "overrides": []}
FIT = {"y": "loss", "x": "spread", "over": ["mask.kind"]}
SHIPPED = {  # their cells
    **{"mask_kind": 12, "rope": 15, "rho": 6, "guidance_steps": 3, "min_mask_ratio": 15},
    **{"tokenizer_losses": 30, "mask_lr": 12, "mask_length": 20, "mask_length_large": 12},
    **{"moving_tube": 9, "horizon": 10, "rope_range": 18, "scale": 20, "another_world": 6},
    **{"mismatch": 20, "better_than_both": 40, "finetune_rank": 27, "finetune_full": 9},
}


@pytest.mark.parametrize("name", study_names())
def test_every_study_that_ships_can_be_planned(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    assert len((STUDIES / f"{name}.yaml").read_text().splitlines()) <= 25
    assert study.about
    cells = plan_cells(study, [f"run.dir={tmp_path}"])
    assert len(cells) == SHIPPED[name]
    assert len({cell.config.world.folder for cell in cells}) == 1
    for evaluation in cells[0].evaluations:
        check_context(cells[0].config, evaluation.settings)


def check_context(config: Config, settings: EvalSettings) -> None:
    """The clips of an evaluation fit the model's context, with a caption of as many tokens as they ever have."""
    assert isinstance(config, ExperimentConfig)
    layout, world = config.layout.build(), with_overrides(config, settings.overrides).world
    shape = layout.latent_frames(world.frames), *layout.latent_size(world.side, world.side)
    assert SequenceSpans(layout.prefix_length(200), *shape).length <= config.model.max_length


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("metrics.loss/trian", "metrics.loss/train"),
        ("metrics.loss_frame/train/spred", "metrics.loss_frame/train/spread"),
        ("metrics.throughput/host_gb", "metrics.throughput/host_gib"),
        ("result.trained_parameter", "result.trained_parameters"),
    ],
)
def test_a_name_that_no_run_logs_is_told_before_the_first_one(key: str, meant: str, tmp_path: Path) -> None:
    with refused(ConfigError, where="toy: measures.x", got=key, fix=f"did you mean {meant}?"):
        plan_toy(tmp_path, measures={"x": key})
    assert plan_toy(tmp_path, measures={"x": meant})
    assert plan_toy(tmp_path, measures={"x": key}, overrides=[*TOY["overrides"], LOGS_MORE])  # which may log it


def test_what_runs_log_and_say_is_known_before_them(originals: Train) -> None:
    run = originals()
    names = logged_names(read_config(run / "config.yaml"))
    logged = [tag for record in read_records(run / "metrics.jsonl") for tag in record if tag != "step"]
    assert names is not None and {"loss/train/image", "loss_frame/val/spread"} <= set(logged)
    said = [*(f"metrics.{tag}" for tag in logged), *(f"result.{name}" for name in result(run))]
    assert [name for name in said if not is_measured(name, names)] == []
    of_tokenizers = logged_names(TokenizerExperimentConfig())
    for module, known in (LumosModule, names), (TokenizerModule, of_tokenizers):
        assert known is not None and {f"metrics.{tag}" for tag in module.LOGS} <= set(known)


def test_cells_are_the_grid_times_the_seeds(tmp_path: Path) -> None:
    grid = {"mask.kind": ["tube", "random"], "size": {"plain": [], "two wide!": ["model.dim=96", "model.n_heads=3"]}}
    _, cells = plan_toy(tmp_path, grid=grid)
    assert [cell.name for cell in cells[:4]] == [
        "tube-plain-seed0",
        "tube-plain-seed1",
        "tube-two_wide_-seed0",
        "tube-two_wide_-seed1",
    ]
    assert len(cells) == 8 and cells[-1].folder.path == tmp_path / "runs" / "studies" / "toy" / cells[-1].name
    config = cells[-1].config
    assert (config.mask.kind, config.model.dim, config.seed) == ("random", 96, 1)  # type: ignore[union-attr]


def test_each_trained_model_is_evaluated_with_each_way_to_sample(tmp_path: Path) -> None:
    evals = {"eval": {"captions": 4}, "long": {"only": ["loss"], "overrides": ["world.frames=33"]}}
    changes = {"base": "demo", "overrides": [], "evals": evals, "sampling": {"partial_context": [0, 0.9]}}
    _, cells = plan_toy(tmp_path, **changes)
    assert len(cells) == 4
    folders = [evaluation.folder.relative_to(cells[0].folder.path) for evaluation in cells[0].evaluations]
    assert list(map(str, folders)) == ["evals/eval/0", "evals/eval/0.9", "evals/long/0", "evals/long/0.9"]
    assert cells[0].evaluations[1].settings.captions == 4
    assert cells[0].evaluations[3].settings.overrides == (
        "world.frames=33",
        "sampling.partial_context=0.9",
    )


@pytest.mark.parametrize("earlier", ["sampling.given_frames=partial", "callbacks.sampling.given_frames=partial"])
def test_what_was_evaluated_in_earlier_keys_is_done(earlier: str, tmp_path: Path) -> None:
    evals = {"eval": {"overrides": ["sampling.given_context=partial"]}}
    _, cells = plan_toy(tmp_path, base="demo", overrides=[], evals=evals)
    (evaluation,) = cells[0].evaluations
    evaluation.folder.mkdir(parents=True)
    settings = evaluation.settings.recorded() | {"overrides": [earlier]}
    evaluation.file.write_text(json.dumps({"settings": settings, "measures": {}}))
    (evaluation.folder / TIMES_FILE).write_text("{}")
    assert evaluation.is_done()


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"grids": {}}, {"got": "grids"}),
        ({"seeds": ["one"]}, {"where": "seeds[0]"}),
        ({"seeds": [1, 1]}, {"where": "toy: seeds", "got": "[1, 1]"}),
        ({"grid": {"mask.kind": "tube"}}, {"where": "mask.kind", "got": "'tube'"}),
        ({"grid": {"mask.kind": ["cube"]}}, {"where": "mask.kind"}),
        ({"grid": {"mask.kinds": ["tube"]}}, {"file": "command line", "got": "mask.kinds"}),
        ({"grid": {"a": {"x y": [], "x!y": []}}}, {"where": "toy"}),
        ({"measures": {}}, {"where": "toy: measures"}),
        ({"measures": {"a": "results.loss"}}, {"where": "toy: measures", "got": "['results.loss']"}),
        ({"measures": {"a": "evals.loss/tube_0.7/loss"}}, {"got": "['evals.loss/tube_0.7/loss']"}),
        ({"evals": LOSS, "measures": {"a": "eval.drift/psnr/all"}}, {"where": "toy: measures.a"}),
        (
            {**DEMO, "evals": {"eval": {}}, "measures": {"a": "eval.fidelity/held_out/joint"}},
            {"fix": "did you mean eval.fidelity/heldout/joint?"},
        ),
        (
            {**DEMO, "evals": {"eval": {}}, "measures": {"a": "eval.fidelity/heldout/join"}},
            {"where": "toy: measures.a", "fix": "did you mean eval.fidelity/heldout/joint?"},
        ),
        (
            {"evals": {"eval": {"mask_ratios": [0.5]}}, "measures": {"a": "eval.loss/tube_0.7/loss"}},
            {"where": "toy: measures.a", "fix": "did you mean eval.loss/tube_0.5/loss?"},
        ),
        (
            {"evals": LOSS, "measures": {"a": "eval.loss/tube_0.7/frames_0"}},
            {"fix": "did you mean eval.loss/tube_0.7/frame_*?"},
        ),
        ({"measures": {"a": "cost.flops"}}, {"where": "toy: measures", "got": "['cost.flops']"}),
        ({"decides": ["loss", "loss"]}, {"where": "toy: decides"}),
        ({"contrasts": {"c": {"row": ["tube"], "plus": []}}}, {"where": "toy: contrasts", "got": "['c: no measure']"}),
        ({"contrasts": {"c": {"row": [], "plus": ["loss"]}}}, {"where": "toy: contrasts", "got": "['c: no row']"}),
        (
            {"fits": {"f": {"y": "loss", "x": "spread", "over": ["mask.kind"], "only": ["tubes"]}}},
            {"where": "toy: fits", "got": "['tubes']"},
        ),
        ({"fits": {"f": {**FIT, "reach": -1}}}, {"where": "toy: fits", "got": "['f: reach -1']"}),
        ({"fits": {"f": FIT}, "grid": {"mask.kind": ["tube"]}}, {"where": "toy: fits", "got": "['mask.kind']"}),
        ({"evals": {"e": {"only": ["loss"]}}, "at": [7]}, {"where": "toy: at", "got": "[7]", "expected": "1 to 6"}),
        ({"grid": {"seed": [3, 4]}}, {"where": "toy", "got": "seed"}),
        ({"overrides": ["run.name=x"]}, {"where": "toy", "got": "run.name"}),
        (
            {"evals": {"eval": {"caption": 3}}},
            {"got": "evals.eval.caption", "fix": "did you mean evals.eval.captions?"},
        ),
        ({"evals": {"eval": {"captions": 1}}}, {"where": "captions", "got": "1"}),
        ({"evals": {"eval": {"overrides": ["data.valroot=x"]}}}, {"file": "command line", "got": "data.valroot"}),
        ({"evals": {"eval": {"out": "x"}}}, {"where": "toy: evals", "got": "out of eval"}),
        ({"evals": {"metrics": {}}}, {"where": "toy: evals", "got": "['metrics']"}),
        ({"sampling": {"steps": [2]}}, {"where": "toy: sampling", "got": "no evaluation"}),
        (
            {"evals": {"eval": {"only": ["loss"]}}, "sampling": {"stepz": [2]}},
            {"file": "command line", "got": "sampling.stepz"},
        ),
        ({"against": "time"}, {"where": "toy: against", "got": "time"}),
        ({"evals": {"eval": {"only": ["fidelity"]}}}, {"where": "toy: evals.eval"}),
        ({"evals": {"eval": {"overrides": ["smapling.steps=2"]}}}, {"fix": "did you mean sampling.?"}),
        ({"evals": {"eval": {"device": "gpu"}}}, {"where": "device", "got": "gpu"}),
        ({"evals": {"eval": {"weights": "ema"}}}, {"where": "toy: evals.eval.weights"}),
        ({"evals": {"eval": {"adapters": [["absent", 1]]}}}, {"file": "absent"}),
        (
            {**DEMO, "evals": {"eval": {"only": ["frechet"]}}},
            {"where": "toy: evals.eval", "got": "no feature extractor: --fvd, --fid"},
        ),
        ({**DEMO, "evals": {"eval": {"only": ["frechet"], "fvd": "absent.pt"}}}, {"where": "toy: evals.eval.fvd"}),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], fields: dict[str, str], tmp_path: Path) -> None:
    with refused(ConfigError, **fields):
        plan_toy(tmp_path, **changes)


def test_an_axis_may_have_no_value(tmp_path: Path) -> None:
    _, cells = plan_toy(tmp_path, grid={"visual_tokenizer": [None, "embedded"]}, seeds=[0])
    assert [cell.name for cell in cells] == ["null-seed0", "embedded-seed0"]
    assert cells[0].config.visual_tokenizer is None  # type: ignore[union-attr]


@pytest.mark.parametrize(("said", "holds"), [(True, "yes"), (False, "no"), ("in part", "in part")])
def test_a_verdict_needs_no_quotes(said: Any, holds: str, tmp_path: Path) -> None:
    """YAML takes yes and no for true and false."""
    assert load_study(write_toy(tmp_path, holds=said)).holds == holds


def test_a_study_that_ships_may_be_named_by_its_path() -> None:
    assert load_study(str((STUDIES / "rope.yaml").resolve())) == load_study("rope")


def test_an_unknown_study_names_the_nearest() -> None:
    with refused(ConfigError, got="'mask_kinds'"):
        load_study("mask_kinds")


def test_a_cell_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    _, cells = plan_toy(tmp_path)
    cells[0].begin()
    plan_toy(tmp_path)
    with refused(ConfigError, where="optimizer.lr", got=0.5):
        plan_cells(load_study(write_toy(tmp_path)), [f"run.dir={tmp_path / 'runs'}", "optimizer.lr=0.5"])


@pytest.mark.parametrize("word", ["mask.kind=tube", "mask={kind: tube}"])
def test_what_the_grid_sets_cannot_be_set_for_all_cells(word: str, tmp_path: Path) -> None:
    study = load_study(write_toy(tmp_path))
    with refused(ConfigError, where=word.partition("=")[0], got="mask.kind"):
        plan_cells(study, [f"run.dir={tmp_path / 'runs'}", word])
