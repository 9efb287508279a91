from __future__ import annotations

import csv
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from data_modules.shards import sheet as shard_sheet
from experiments.cli import main
from experiments.config import ExperimentConfig
from experiments.evaluation.evaluate import TIMES_FILE
from experiments.read_config import load_experiment
from experiments.study.collect import (
    Condition,
    look_up,
    read_conditions,
    read_runs,
    results_csv,
    tail_means,
    unit_of,
    unmeasured,
)
from experiments.study.contrasts import contrast_values, lines_of
from experiments.study.cost import cost_of
from experiments.study.figures import INK, legible, look_of, paint_all, paint_fits, shift, thin
from experiments.study.kept import read_kept
from experiments.study.report import compared, corrected, write_report
from experiments.study.statistics import estimate, p_value, paired
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.own_files import RECORD
from tests.experiments.study.toy import LOGS_MORE, TOY, plan_toy, pretend, pretend_evaluated, write_toy
from tests.processes import ROOT
from tests.refusals import refused

JUDGED = {
    "base": "demo",
    "overrides": ["trainer.max_steps=3"],
    "evals": {"eval": {"only": ["loss", "fidelity"], "captions": 4}},
    "sampling": {"partial_context": [0, 0.5, 0.9]},
    "measures": {
        "joint": "eval.fidelity/heldout/joint",
        "loss": "result.loss.loss/train",
        "perplexity": "eval.loss/tube_0.7/perplexity",
        "seconds": "eval.fidelity/clip/seconds",
    },
}
ROWS = [("long", 1), ("long", 2), ("other", 1), ("other", 2), ("short", 1)]
HOSTILE = '<script>alert("1")</script>'


def test_the_end_of_a_run_is_its_last_tenth() -> None:
    curves = {"loss/train": [(step, float(step)) for step in range(1, 21)], "loss/val": [(10, 7.0), (20, 5.0)]}
    curves |= {"loss_frame/val/00": [(20, 3.0)], "loss_frame/val/01": [(20, 1.0)], "early": [(3, 1.0)]}
    means = tail_means(curves)
    assert (means["loss/train"], means["loss/val"], means["loss_frame/val/spread"]) == (19.5, 5.0, 1.0)
    assert means["loss_frame/val/fall"] == pytest.approx(2 / 3)
    assert "early" not in means


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("result.loss.loss/val", [2.0]),
        ("result.frames.1", [0.5]),
        ("metrics.a.b", [3.0]),
        ("eval.loss/tube_0.7/loss", [0.0, 1.0]),
        ("eval.none", None),
        ("eval.words", None),
        ("result.loss", None),
        ("result.frames.7", None),
        ("eval.loss/tube_0.7/loss.0", None),
    ],
)
def test_a_measure_is_where_its_key_says(key: str, expected: list[float] | None) -> None:
    sources: dict[str, Any] = {
        "result": {"loss": {"loss/val": 2}, "frames": [1, 0.5]},
        "metrics": {"a.b": 3},
        "eval": {"loss/tube_0.7/loss": [0, 1], "none": None, "words": "many"},
    }
    found = look_up(sources, key)
    assert (None if found is None else found.tolist()) == expected


def test_thinning_keeps_the_mean() -> None:
    curve = [(step, float(step % 7)) for step in range(1, 401)]
    thinned = thin(curve)
    assert len(thinned) == 40 and thinned[-1][0] == 400
    assert sum(v for _, v in thinned) / 40 == pytest.approx(sum(v for _, v in curve) / 400)
    assert thin(curve[:5]) == curve[:5]


def test_the_table_has_a_line_for_every_cell_done_or_not(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path, grid={"mask, kind": {'a "b", c': [], "d": ["mask.kind=random"]}})
    pretend(cells[0], [3.0, 2.0])
    cells[1].note_failure(5, "loss is nan")
    rows = list(csv.DictReader(results_csv(study, cells).splitlines()))
    assert [row["state"] for row in rows] == ["done", "failed", "missing", "missing"]
    assert (rows[0]["mask, kind"], rows[0]["seed"], rows[0]["loss"], rows[0]["spread"]) == ('a "b", c', "0", "2.0", "")


def test_conditions_hold_every_clip_of_every_seed(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path, **JUDGED)
    for cell in cells:
        pretend(cell, [1.0])
        judged = {"fidelity/heldout/joint": [0, 1, None, 1, cell.seed], "loss/tube_0.7/perplexity": None}
        pretend_evaluated(cell, judged)
    conditions = read_conditions(study, cells)
    assert [condition.words for condition in conditions[:4]] == ["tube, 0", "tube, 0.5", "tube, 0.9", "random, 0"]
    found = {name: values[1].tolist() for name, values in conditions[0].values.items()}
    assert found == {"joint": [0, 1, 1, 1], "loss": [1], "perplexity": [0.5], "seconds": [0.25]}


class Page(HTMLParser):
    """What a page refers to, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.referred: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.referred += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.mark.seconds
def test_the_page_stands_alone_and_escapes_what_others_wrote(tmp_path: Path) -> None:
    grid = {HOSTILE: {"tube": [], HOSTILE: ["mask.kind=random"]}}
    measures = {HOSTILE: "eval.fidelity/heldout/joint", "$x_$": "metrics.loss/train"}
    study, cells = plan_toy(tmp_path, **JUDGED | {"about": HOSTILE, "grid": grid, "measures": measures})
    for cell in cells[:-1]:
        pretend(cell, [3.0, 2.0, 1.0])
        frames = {f"loss/tube_0.7/frame_{k}": [2.0, 1.0 + k] for k in range(3)}
        pretend_evaluated(cell, {"fidelity/heldout/joint": [0, 1, 1, 0], **frames})
        for evaluation in cell.evaluations:
            pictures = np.zeros((1, 2, 8, 8, 3), np.uint8)
            np.savez(evaluation.clips_file, prompts=np.array([HOSTILE]), frames=pictures)
    cells[-1].note_failure(1, HOSTILE)
    folder = tmp_path / "out"
    text = write_report(study, cells, folder, f"lumos study {HOSTILE}").read_text()
    page = Page(text)
    assert "script" not in page.tags and "&lt;script&gt;" in text
    assert page.referred and all(re.match(r"data:image/(png|svg\+xml);base64,", where) for where in page.referred)
    assert "3 of 4 cells done here" in page.words and "1 failed" in page.words and 'name="viewport"' in text
    figures = {file.name for file in (folder / "figures").iterdir()}
    assert {
        "measure_00.png",
        "measure_00.svg",
        "curve_train.png",
        "frames_eval_tube_0.7.png",
        "clips_00.png",
    } <= figures
    (folder / "figures" / "measure_98.png").write_bytes(b"a user's own")
    before = {file: file.read_bytes() for file in (folder / "figures").iterdir() if file.name != RECORD}
    write_atomically(folder / "figures" / "measure_99.png", b"of a measure that is no more")
    write_report(study, cells, folder, "")
    assert {*before, folder / "figures" / RECORD} == {*(folder / "figures").iterdir()}
    assert all(file.read_bytes() == content for file, content in before.items())


@pytest.mark.seconds
def test_ways_to_sample_are_compared_within_a_training(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path, **JUDGED | {"grid": {"mask.kind": ["tube", "random"]}, "seeds": [0]})
    for cell, base in zip(cells, (0.0, 10.0), strict=True):
        pretend(cell, [1.0, 1.0, 1.0])
        for i, evaluation in enumerate(cell.evaluations):
            pretend_evaluated(replace(cell, evaluations=(evaluation,)), {"fidelity/heldout/joint": [base + i] * 4})
    text = write_report(study, cells, tmp_path / "out", "").read_text()
    rows = re.findall(r"<tr[^>]*><td>(\w+, [\d.]+)</td><td>1</td><td>([\d.]+)</td>.*?\n<td.*?>(.*?)</td>", text)
    assert [difference for _, _, difference in rows[:6]] == ["–", "+1.000", "+2.000"] * 2


def test_a_point_without_a_place_takes_no_other_with_it(tmp_path: Path) -> None:
    """The first way to sample was not timed."""
    study, cells = plan_toy(tmp_path, **JUDGED | {"against": "seconds", "grid": {}, "seeds": [0]})
    pretend(cells[0], [1.0, 1.0, 1.0])
    pretend_evaluated(cells[0], {"fidelity/heldout/joint": [1, 0]})
    conditions = read_conditions(study, cells)
    whole = list(paint_all(study, [], conditions[1:]))
    conditions[0] = replace(conditions[0], values={**conditions[0].values, "seconds": {}})
    assert [one.png for one in paint_all(study, [], conditions)] == [one.png for one in whole]


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    _, cells = plan_toy(tmp_path, **JUDGED)
    pretend(cells[0], [1.0, 1.0, 1.0])
    pretend_evaluated(cells[0], {})
    cells[0].evaluations[0].file.write_bytes(b'{"sett\xff')
    (cells[0].evaluations[1].folder / TIMES_FILE).unlink()
    assert [evaluation.is_done() for evaluation in cells[0].evaluations] == [False, False, True]
    cells[0].evaluations[2].file.write_text("[]")
    assert not cells[0].evaluations[2].is_done()


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path)
    page = Page(write_report(study, cells, tmp_path / "out", "").read_text())
    assert "0 of 4 cells done here" in page.words and "4 not run here" in page.words


def test_lines_are_told_apart_without_their_colours(tmp_path: Path) -> None:
    """Each has a dash of its own, and its name at its end: there is no legend to compare with."""
    kinds = ["tube", "random", "diffusion_forcing", "tube_decay"]
    study, cells = plan_toy(tmp_path, grid={"mask.kind": kinds}, seeds=[0])
    for number, cell in enumerate(cells):
        pretend(cell, [3.0 + number, 2.0 + number, 1.0 + number])
    (curve,) = [picture for picture in paint_all(study, read_runs(cells), []) if picture.name == "curve_train"]
    drawn = r'<path d="[^"]*" clip-path="[^"]*" style="(fill: none; [^"]*stroke-width: 1.6[^"]*)"'
    lines = re.findall(drawn, curve.svg.decode())
    dashes = {re.sub(r"stroke: #\w+", "", style) for style in lines}
    assert len(lines) == len(kinds) == len(dashes)
    assert "legend" not in curve.svg.decode()
    words = re.findall(r"<!-- (.*?) -->", curve.svg.decode())
    assert set(kinds) <= set(words)


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("eval.fidelity/heldout/joint", 0.0, 1.0),
        ("eval.horizon/all/mean", 0.0, 1.0),  # of several windows: neither yes nor no
        ("eval.horizon/fall/joint", -3.0, 4.0),  # the difference of two shares
        ("eval.loss/tube_0.7/loss", -3.0, 4.0),
    ],
)
def test_the_interval_of_a_share_keeps_to_shares(tmp_path: Path, key: str, low: float, high: float) -> None:
    evals = {"eval": {"only": [key.removeprefix("eval.").split("/")[0]], "clips": 4}}
    study, _ = plan_toy(tmp_path, **JUDGED | {"measures": {"one": key}, "evals": evals, "grid": {}, "seeds": [0, 1]})
    row = Condition(labels=(), values={"one": {0: np.full(4, 0.25), 1: np.full(4, 0.75)}})
    found = row.estimate(study, "one")
    assert (max(found.low, low), min(found.high, high)) == (found.low, found.high)
    assert (found.low < 0) == (low < 0) and (found.high > 1) == (high > 1)


def test_what_is_counted_has_no_interval_and_no_figure(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path, measures={"parameters": "cost.parameters"}, seeds=[0])
    rows = [Condition(labels=(kind,), values={"parameters": {0: np.array([5.0])}}) for kind in ("tube", "random")]
    page = write_report(study, cells, tmp_path / "out", "", rows).read_text()
    assert ">5.000</td>" in page and "95%</th>" not in page and not list(paint_all(study, [], rows))


@pytest.mark.parametrize(("at", "rows", "colors"), [([1, 2], 4, 2), ([], 2, 1)])
def test_rows_of_dots_have_the_colour_of_what_they_are_of(
    tmp_path: Path, at: list[int], rows: int, colors: int
) -> None:
    """Of two trainings judged twice: a colour a training; where trainings alone are compared, all rows are alike."""
    changes: dict[str, Any] = {"grid": {"mask.kind": ["tube", "random"]}, "at": at, "seeds": [0]}
    evals = {"eval": {"only": ["loss"], "clips": 4}}
    study, cells = plan_toy(tmp_path, **changes, evals=evals, measures={"loss": "eval.loss/tube_0.7/loss"})
    for cell in cells:
        pretend(cell, [9.0, 8.0])
        pretend_evaluated(cell, {"loss/tube_0.7/loss": [1.0] * 4})
    (picture, *_) = paint_all(study, [], read_conditions(study, cells))
    dots = re.findall(r'<use [^>]*style="(fill: #\w+; stroke: #\w+)"', picture.svg.decode())
    of_rows = [style for style in dots if INK not in style]
    assert len(of_rows) == rows and len(set(of_rows)) == colors


def test_more_lines_than_there_are_colours_are_told_apart_too() -> None:
    """Before, the ninth line had the first one's colour and marker."""
    looks = {(look["color"], look["marker"]) for look in map(look_of, range(24))}
    assert len(looks) == 24


def test_points_and_numbers_of_near_steps_do_not_run_into_each_other() -> None:
    steps = [500.0, 1000.0, 2000.0, 4000.0, 8000.0]
    ends = [shift(steps, number, 10) for number in (0, 9)]
    assert ends[0] == -ends[1] and 0 < ends[1] < 250  # of ten lines at 500 the last is before the first at 1000
    assert legible(steps) == [1000.0, 2000.0, 4000.0, 8000.0] and legible([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert shift([500.0], 1, 3) == 0 and legible([500.0]) == [500.0]


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("eval.loss/tube_0.7/loss", "nats"),
        ("f65.loss/tube_0.7/frame_16", "nats"),
        ("eval.context/own_rho_0.4/over_tube", "nats"),
        ("eval.fidelity/heldout/joint", "share"),
        ("eval.horizon/fall/loss", "nats"),
        ("eval.horizon/all/mean", "share"),
        ("eval.continuation/psnr_gain/all", "dB"),
        ("eval.fidelity/clip/seconds", "s"),
        ("eval.loss/tube_0.7/perplexity", None),
        ("metrics.loss_frame/train/spread", None),
        ("cost.teraflops", None),
        ("result.psnr", None),
    ],
)
def test_a_measure_of_an_evaluation_has_a_unit(key: str, unit: str | None) -> None:
    assert unit_of(key) == unit


def test_a_figure_says_what_its_measure_is_counted_in(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path, **JUDGED | {"grid": {}, "seeds": [0]})
    pretend(cells[0], [1.0, 1.0, 1.0])
    pretend_evaluated(cells[0], {"fidelity/heldout/joint": [1, 0]})
    (picture, *_) = paint_all(study, [], read_conditions(study, cells))
    assert "joint (share): " in picture.about and "<!-- joint (share) -->" in picture.svg.decode()


def test_the_report_the_window_and_the_sheet_have_one_look(tmp_path: Path) -> None:
    look = (ROOT / "experiments" / "play" / "page" / "look.css").read_text()
    study, cells = plan_toy(tmp_path)
    assert look.strip() in write_report(study, cells, tmp_path / "out", "").read_text()
    assert all(color in look for color in (shard_sheet.PAPER, shard_sheet.INK, shard_sheet.SOFT))


def test_an_evaluation_with_other_settings_is_made_again(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path, **JUDGED)
    pretend(cells[0], [1.0, 1.0, 1.0])
    pretend_evaluated(cells[0], {"fidelity/heldout/joint": [1, 1, 1, 1]})
    assert cells[0].is_done()
    _, again = plan_toy(tmp_path, **JUDGED | {"evals": {"eval": {"only": ["loss", "fidelity"], "captions": 5}}})
    assert again[0].is_trained() and not again[0].is_done()
    assert read_conditions(study, again)[0].values["joint"] == {}


@pytest.mark.seconds
def test_models_are_judged_on_the_way_and_compared_at_the_same_step(tmp_path: Path) -> None:
    """A training that ends before has no row of a later step; what decides is corrected for how much is asked."""
    grid = {"length": {"long": [], "other": [], "short": ["trainer.max_steps=1"]}}
    changes: dict[str, Any] = {"grid": grid, "at": [1, 2], "evals": {"eval": {"only": ["loss"], "clips": 4}}}
    measures = {"loss": "eval.loss/tube_0.7/loss", "training": "metrics.loss/train"}
    told = {"answer": "It is <so>.", "shown_by": "loss", "overturned_by": "a counterexample", "decides": ["loss"]}
    study, cells = plan_toy(tmp_path, **changes, **told, measures=measures)
    assert study.axes == ["length", "step"]
    for number, cell in enumerate(cells):
        pretend(cell, [9.0, 8.0][: cell.config.trainer.max_steps])
        pretend_evaluated(cell, {"loss/tube_0.7/loss": [number + 0.1 * cell.seed] * 4})
    conditions = read_conditions(study, cells)
    assert [one.labels for one in conditions] == [(name, str(at)) for name, at in ROWS]
    assert {name: row.values["training"][0].item() for row, name in zip(conditions, ROWS, strict=True)} == {
        (name, at): {1: 9.0, 2: 8.0}[at] for name, at in ROWS
    }
    firsts = [None if other is None else other.labels for _, other in compared(study, conditions)]
    assert firsts == [None, None, ("long", "1"), ("long", "2"), ("long", "1")]
    alone = p_value(paired(conditions[4].values["loss"], conditions[0].values["loss"]))
    found = corrected(study, conditions)
    assert len(found) == 3 and found["loss", ("short", "1")] >= alone
    page = write_report(study, cells, tmp_path / "report", "lumos study toy").read_text()
    assert "It is &lt;so&gt;." in page and "a counterexample" in page and "p, Holm" in page


def kept_values(file: Path) -> dict[tuple[str, ...], str]:
    return {tuple(line[:3]): line[3] for line in csv.reader(file.open())}


@pytest.mark.seconds
def test_a_report_is_made_of_what_was_kept_where_the_runs_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, cells = plan_toy(tmp_path)
    for number, cell in enumerate(cells):
        pretend(cell, [2.0 - 0.1 * number + cell.seed])
    command = ["study", str(tmp_path / "toy.yaml"), "--report", f"run.dir={tmp_path / 'runs'}"]
    assert main([*command, "--keep"]) == 0
    measured = (cells[0].folder.path.parent / "report.html").read_text()
    assert main([*command[:-1], f"run.dir={tmp_path / 'elsewhere'}"]) == 0
    again = (tmp_path / "elsewhere" / "studies" / "toy" / "report.html").read_text()
    tables = [re.findall('<table class="figures-of">.*?</table>', page, re.S) for page in (measured, again)]
    assert tables[0] == tables[1] and "figures kept in toy.csv" in again

    for cell in cells[1:]:
        shutil.rmtree(cell.folder.path)
    pretend(cells[0], [7.0])
    before = kept_values(tmp_path / "toy.csv")
    assert main([*command, "--keep"]) == 0
    after = kept_values(tmp_path / "toy.csv")
    assert before.keys() == after.keys()
    anew = {line for line in before if before[line] != after[line]}
    assert anew and {line[: len(cells[0].variant.labels) + 1] for line in anew} == {
        (*cells[0].variant.labels, str(cells[0].seed))
    }

    (tmp_path / "toy.csv").write_text("mask.kind,seed,measure,values\ntube,0,loss,much\n")
    assert main([*command[:-1], f"run.dir={tmp_path / 'elsewhere'}"]) == 3
    assert "line 2" in capsys.readouterr().err


def kept_study(folder: Path, *lines: str, **changes: Any) -> list[str]:
    """A toy study of losses by clip with these lines kept, and the command that reports it."""
    evals = {"e": {"only": ["loss"], "clips": 4}}
    plan_toy(folder, evals=evals, measures={"loss": "e.loss/tube_0.7/loss"}, **changes)
    (folder / "toy.csv").write_text("\n".join(["mask.kind,seed,measure,values", *lines, ""]))
    return ["study", str(folder / "toy.yaml"), "--report", f"run.dir={folder / 'runs'}"]


def test_keeping_loses_no_line_that_the_cells_here_did_not_measure(tmp_path: Path) -> None:
    """Of a row, a seed or a measure that the study has no more: taken out for a while, it is not lost."""
    gone = ["square,0,loss,1 2 3 4", "tube,7,loss,1 2 3 4", "tube,0,joint,1 0 1 1"]
    command = kept_study(tmp_path, *gone, "random,0,loss,5 6 7 8")
    _, cells = plan_toy(
        tmp_path, evals={"e": {"only": ["loss"], "clips": 4}}, measures={"loss": "e.loss/tube_0.7/loss"}
    )
    pretend(cells[0], [1.0] * 6)
    pretend_evaluated(cells[0], {"loss/tube_0.7/loss": [2.0, 3.0, 4.0, 3782592.0]})
    assert main([*command, "--keep"]) == 0
    kept = (tmp_path / "toy.csv").read_text().splitlines()
    assert {*gone, "random,0,loss,5 6 7 8", "tube,0,loss,2 3 4 3782592"} <= {
        re.sub(",[0-9a-f]{12}$", "", line) for line in kept
    }
    page = (tmp_path / "runs" / "studies" / "toy" / "report.html").read_text()
    assert "square" not in page and "random" in page and "figures kept in toy.csv" in page and "1 of 4 cells" in page


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"measures": {"loss": "e.loss/tube_0.7/loss", "more": "metrics.loss/train"}}, []),
        ({"overrides": ["trainer.max_steps=6", "world.folder=elsewhere", "callbacks.progress_bar=false"]}, []),
        ({"overrides": ["trainer.max_steps=7"]}, ["tube (seed 0)"]),
        ({"evals": {"e": {"only": ["loss"], "clips": 5}}}, ["tube (seed 0)"]),
    ],
    ids=["none", "another measure", "not of figures", "steps", "evaluation"],
)
def test_kept_figures_of_other_settings_are_named(
    changes: dict[str, Any], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of before there were digests, of random, are taken as they are."""
    as_it_was = {"overrides": ["trainer.max_steps=6"]}
    command = kept_study(tmp_path, "random,0,loss,5 6 7 8", **as_it_was)
    asked = {"evals": {"e": {"only": ["loss"], "clips": 4}}, "measures": {"loss": "e.loss/tube_0.7/loss"}, **as_it_was}
    _, cells = plan_toy(tmp_path, **asked)
    pretend(cells[0], [1.0] * 6)
    pretend_evaluated(cells[0], {"loss/tube_0.7/loss": [2.0, 3.0, 4.0, 5.0]})
    assert main([*command, "--keep"]) == 0
    assert "other settings" not in capsys.readouterr().out

    write_toy(tmp_path, **{**asked, **changes})
    assert main([*command[:-1], f"run.dir={tmp_path / 'elsewhere'}"]) == 0
    line = next((one for one in capsys.readouterr().out.splitlines() if "other settings" in one), "")
    assert line.partition("now: ")[2] == ", ".join(named)
    page = (tmp_path / "elsewhere" / "studies" / "toy" / "report.html").read_text()
    assert ("other settings" in page) == bool(named)


@pytest.mark.parametrize(
    "line",
    ["tube,loss,1 2", "tube,0,loss,1,2", "tube,0,loss,nan", "tube,0,loss,inf 1", "tube,0,loss,", "tube,0,loss,2 1"],
)
def test_a_kept_line_that_is_none_is_named_before_anything_runs(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = kept_study(tmp_path, "tube,0,loss,1 2", line)
    assert main([word for word in command if word != "--report"] + ["--keep"]) == 3
    assert "line 3" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_what_a_table_calculation_saved_is_read(tmp_path: Path) -> None:
    study, _ = plan_toy(tmp_path)
    many = " ".join(["0.123456"] * 20_000)  # samples; a longer field than the csv module takes by itself
    lines = ["mask.kind,seed,measure,values", f"tube,0,loss,{many}", ""]
    (tmp_path / "kept.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    (row,), _ = read_kept(study, tmp_path / "kept.csv")
    assert row.values["loss"][0].shape == (20_000,)


def test_a_study_that_is_half_run_is_corrected_for_all_that_it_asks(tmp_path: Path) -> None:
    """Of three differences one is there: its p is multiplied by three, from the runs and from what was kept."""
    lines = [f"{kind},{seed},loss,{value} {value}" for kind, value in (("tube", 1), ("random", 2)) for seed in (0, 1)]
    lines[-1] = "random,1,loss,2.1 2.1"
    grid = {"mask.kind": ["tube", "random", "diffusion_forcing", "tube_decay"]}
    assert main(kept_study(tmp_path, *lines, grid=grid, decides=["loss"])) == 0
    p = p_value([np.array([1.0]), np.array([1.1])])
    page = (tmp_path / "runs" / "studies" / "toy" / "report.html").read_text()
    assert (
        f'<td class="range">{3 * p:.3f}</td>' in page and "all 3 of these" in page and "2 that cannot be told" in page
    )


def test_seeds_that_a_difference_has_not_are_told(tmp_path: Path) -> None:
    lines = ["tube,0,loss,1 2", "random,0,loss,2 4", "random,1,loss,2 3"]
    assert main(kept_study(tmp_path, *lines)) == 0
    page = (tmp_path / "runs" / "studies" / "toy" / "report.html").read_text()
    assert "<td>random</td><td>2</td>" in page and "(1 seeds)" in page


def test_small_figures_are_not_rounded_away(tmp_path: Path) -> None:
    lines = ["tube,0,loss,0.00012 0.00018", "random,0,loss,0.0003 0.0003"]
    assert main(kept_study(tmp_path, *lines)) == 0
    page = (tmp_path / "runs" / "studies" / "toy" / "report.html").read_text()
    assert "<td>0.000150</td>" in page and "+0.000150" in page


def test_a_measure_of_no_such_name_is_told_with_the_nearest(tmp_path: Path) -> None:
    measures = {"loss": "metrics.loss/train", "other": "metrics.loss/trian"}
    study, cells = plan_toy(tmp_path, measures=measures, overrides=[*TOY["overrides"], LOGS_MORE])
    assert not list(unmeasured(study, cells, read_conditions(study, cells)))  # nothing has run
    pretend(cells[0], [1.0] * 6)
    (line,) = unmeasured(study, cells, read_conditions(study, cells))
    assert "other" in line and "metrics.loss/train" in line


@pytest.mark.seconds
def test_damaged_clips_are_named(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path, **JUDGED)
    pretend(cells[0], [1.0] * 3)
    pretend_evaluated(cells[0], {})
    clips = cells[0].evaluations[0].clips_file
    wrong = io.BytesIO()
    np.savez(wrong, prompts=np.array(["a"]), frames=np.zeros(3))
    for content in b"PK\3\4 torn", wrong.getvalue():
        clips.write_bytes(content)
        with refused(DataError, file=clips):
            write_report(study, cells, tmp_path / "out", "")


@pytest.mark.seconds
def test_contrasts_are_sums_of_measures_paired_by_seed_and_sample(tmp_path: Path) -> None:
    contrast = {"row": ["long", "0.5"], "plus": ["joint", "seconds"], "minus": ["loss"], "less": ["short", "0.5"]}
    grid = {"len": {"short": [], "long": ["trainer.max_steps=4"]}}
    study, cells = plan_toy(tmp_path, **JUDGED | {"grid": grid, "seeds": [0, 1], "contrasts": {"asked": contrast}})
    draws = np.random.default_rng(1)

    def row(labels: tuple[str, ...], seeds: list[int]) -> Condition:
        return Condition(labels=labels, values={name: {s: draws.random(4) for s in seeds} for name in study.measures})

    rows = [row(("short", "0.5"), [0, 1, 2]), row(("long", "0.5"), [0, 2])]
    found = contrast_values(study.contrasts["asked"], rows)
    for place, seed in enumerate([0, 2]):
        short, long = ({name: values[seed] for name, values in one.values.items()} for one in rows)
        expected = [
            long["joint"][i]
            + long["seconds"][i]
            - long["loss"][i]
            - short["joint"][i]
            - short["seconds"][i]
            + short["loss"][i]
            for i in range(4)
        ]
        assert found[place].tolist() == pytest.approx(expected)
    assert ("", ("asked",)) in corrected(study, rows)
    page = write_report(study, cells, tmp_path, "lumos study toy", rows).read_text()
    assert "Asked beforehand" in page


@pytest.mark.seconds
@pytest.mark.parametrize("frontier", [False, True])
def test_a_power_law_is_found_again_with_its_exponent(frontier: bool, tmp_path: Path) -> None:
    fit = {"y": "loss", "x": "seconds", "over": ["size", "partial_context"], "reach": 1000, "frontier": frontier}
    sizes = {name: [f"trainer.max_steps={number}"] for number, name in enumerate("abcd", start=3)}
    grid = {"mask.kind": ["tube", "random"], "size": sizes}
    study, _ = plan_toy(tmp_path, **JUDGED | {"grid": grid, "fits": {"law": fit}})
    draws, rows = np.random.default_rng(0), []
    for kind, exponent in ("tube", -0.1), ("random", -0.3):
        noise = draws.normal(0, 0.01, 16)  # of the samples, which all rows have
        for x, size in enumerate("abcd", start=1):
            for rho in "0", "0.9":
                at = 10.0**x * (1 if rho == "0" else 2)
                values = {"loss": {s: 2 * at**exponent * np.exp(noise) for s in (0, 1)}, "seconds": {0: np.array([at])}}
                rows.append(Condition(labels=(kind, size, rho), values={"joint": {}, "perplexity": {}} | values))
    tube, random = lines_of(study, study.fits["law"], rows)
    assert (tube.words, random.words) == ("tube", "random")
    assert tube.exponent.mean == pytest.approx(-0.1, abs=1e-3) and random.exponent.mean == pytest.approx(-0.3, abs=1e-3)
    assert random.difference.low <= -0.2 + 1e-3 and random.difference.high >= -0.2 - 1e-3
    assert tube.at_reach.mean == pytest.approx(2 * 1000**-0.1, rel=0.02)
    assert tube.at_reach.low < tube.at_reach.mean < tube.at_reach.high
    assert [picture.name for picture in paint_fits(study, {"law": [tube, random]})] == ["fit_00"]


@pytest.mark.parametrize(("end", "seeds"), [((0.0, 0.0), [0, 0]), ((2.0, 0.5), [0, 1])])
def test_no_power_law_of_what_has_no_logarithm_or_no_seed_in_common(
    end: tuple[float, float], seeds: list[int], tmp_path: Path
) -> None:
    fit = {"y": "joint", "x": "seconds", "over": ["partial_context"]}
    study, cells = plan_toy(tmp_path, **JUDGED | {"grid": {}, "fits": {"law": fit}})
    rows = [
        Condition(
            labels=(rho,),
            values={name: {} for name in study.measures}
            | {"joint": {seed: np.array([at])}, "seconds": {0: np.array([x])}},
        )
        for rho, (x, at), seed in zip(("0", "0.5"), ((1.0, 1.0), end), seeds, strict=True)
    ]
    lines = lines_of(study, study.fits["law"], rows)
    assert all(np.isnan([line.exponent.mean, line.exponent.low, line.at_reach.mean]).all() for line in lines)
    assert "law" in write_report(study, cells, tmp_path / "out", "", rows).read_text() or not lines


def test_a_study_without_axes_has_a_contrast_too(tmp_path: Path) -> None:
    asked = {"asked": {"row": [], "plus": ["loss"], "minus": ["spread"]}}
    study, _ = plan_toy(tmp_path, grid={}, contrasts=asked)
    row = Condition(labels=(), values={"loss": {0: np.array([3.0])}, "spread": {0: np.array([1.0])}})
    assert estimate(contrast_values(study.contrasts["asked"], [row])).mean == 2


def test_a_training_costs_what_its_steps_compute(tmp_path: Path) -> None:
    _, cells = plan_toy(tmp_path, **JUDGED)
    one, ten = (cost_of(cells[0].config, step) for step in (1, 10))
    assert ten["teraflops"] == pytest.approx(10 * one["teraflops"]) and ten["steps"] == 10
    assert one["parameters"] == 1_341_568  # the demo's
    assert one["teraflops"] == pytest.approx(0.0258, rel=0.1)  # 25.8e9, counted by `step_flops` of a batch of 8
    mixed = cast(ExperimentConfig, load_experiment("finetune_demo"))  # of two sources in turn, whose batches are alike
    alone = replace(mixed, data=replace(mixed.data, sources={}, root="x"))
    assert cost_of(mixed, 10) == pytest.approx(cost_of(alone, 10))
