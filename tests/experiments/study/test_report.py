from __future__ import annotations

import csv
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
from experiments.config import ExperimentConfig, load_experiment
from experiments.study.collect import Condition, look_up, read_conditions, read_runs, results_csv, tail_means
from experiments.study.contrasts import contrast_values, lines_of
from experiments.study.cost import cost_of
from experiments.study.figures import paint_all, paint_fits, thin
from experiments.study.report import compared, corrected, write_report
from experiments.study.statistics import p_value, paired
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.own_files import RECORD
from tests.experiments.study.toy import plan_toy, pretend, pretend_evaluated
from tests.processes import ROOT

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
    assert "3 of 4 cells done" in page.words and "1 failed" in page.words and 'name="viewport"' in text
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
    cells[0].evaluations[1].file.write_text("[]")
    assert [evaluation.is_done() for evaluation in cells[0].evaluations] == [False, False, True]


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    study, cells = plan_toy(tmp_path)
    page = Page(write_report(study, cells, tmp_path / "out", "").read_text())
    assert "0 of 4 cells done" in page.words and "4 not run yet" in page.words


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
    return {tuple(line[:-1]): line[-1] for line in csv.reader(file.open())}


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


def test_a_training_costs_what_its_steps_compute(tmp_path: Path) -> None:
    _, cells = plan_toy(tmp_path, **JUDGED)
    one, ten = (cost_of(cells[0].config, step) for step in (1, 10))
    assert ten["teraflops"] == pytest.approx(10 * one["teraflops"]) and ten["steps"] == 10
    assert one["parameters"] == 1_341_568  # the demo's
    assert one["teraflops"] == pytest.approx(0.0258, rel=0.1)  # 25.8e9, counted by `step_flops` of a batch of 8
    mixed = cast(ExperimentConfig, load_experiment("finetune_demo"))  # of two sources in turn, whose batches are alike
    alone = replace(mixed, data=replace(mixed.data, sources={}, root="x"))
    assert cost_of(mixed, 10) == pytest.approx(cost_of(alone, 10))
