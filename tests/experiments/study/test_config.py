from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.study.cells import plan_cells
from experiments.study.config import STUDIES, load_study, study_names
from lumos_pl.errors import ConfigError
from tests.experiments.study.toy import plan_toy, write_toy

SHIPPED = {"mask_kind": 4, "rope": 5, "rho": 2, "guidance_steps": 1, "min_mask_ratio": 5}


@pytest.mark.parametrize("name", study_names())
def test_every_study_that_ships_can_be_planned(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    assert len((STUDIES / f"{name}.yaml").read_text().splitlines()) < 15
    assert study.about and len(study.seeds) == 3
    cells = plan_cells(study, [f"run.dir={tmp_path}"])
    assert len(cells) == 3 * SHIPPED[name]
    assert len({cell.config.clips.folder for cell in cells}) == 1


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


def test_sampling_is_asked_of_each_trained_model(tmp_path: Path) -> None:
    changes = {"base": "demo", "overrides": [], "captions": 4, "sampling": {"partial_context": [0, 0.9]}}
    _, cells = plan_toy(tmp_path, **changes)
    assert [evaluation.file.name for evaluation in cells[0].evaluations] == ["0.json", "0.9.json"]
    assert [e.asked["sampling"]["partial_context"] for e in cells[0].evaluations] == [0.0, 0.9]
    assert len(cells) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grids": {}}, "unknown key | {file} | got grids | did you mean grid?"),
        ({"seeds": ["one"]}, "value does not fit | {file} | seeds"),
        ({"seeds": [1, 1]}, "toy: seeds | got [1, 1]"),
        ({"grid": {"mask.kind": "tube"}}, "not an axis | mask.kind | got 'tube'"),
        ({"grid": {"mask.kind": ["cube"]}}, "mask.kind"),
        ({"grid": {"mask.kinds": ["tube"]}}, "did you mean mask.kind?"),
        ({"grid": {"a": {"x y": [], "x!y": []}}}, "labels give the same file names"),
        ({"measures": {}}, "toy: measures"),
        ({"measures": {"a": "results.loss"}}, "toy: measures | got ['results.loss']"),
        ({"measures": {"a": "eval.loss"}}, "toy: captions"),
        ({"against": "time"}, "toy: against | got time"),
        ({"captions": 3}, "clips cannot be judged without a visual tokenizer"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_toy(tmp_path, **changes)
    assert message.format(file=tmp_path / "toy.yaml") in str(refused.value)


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean mask_kind"):
        load_study("mask_kinds")


def test_a_cell_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    _, cells = plan_toy(tmp_path)
    cells[0].begin()
    plan_toy(tmp_path)
    with pytest.raises(ConfigError, match=r"begun with other settings .* optimizer.lr | got 0.5"):
        plan_cells(load_study(write_toy(tmp_path)), [f"run.dir={tmp_path / 'runs'}", "optimizer.lr=0.5"])
