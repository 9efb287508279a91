"""What a study asks: experiments/studies/NAME.yaml, over an experiment's own settings.

about: does the mask matter?
base: demo                                 the experiment that every cell is a run of
overrides: [trainer.max_steps=700]         of every cell
grid:                                      cells: each combination of one value an axis, with each seed
  mask.kind: [tube, random]                  an axis named by its key: values, which are the labels too
  model: {plain: [], deep: [model.n_layers=8]}   or by any name: labels, and the overrides of each
sampling:                                  settings of `sampling`: all of them on each cell's model
  partial_context: [0, 0.7]
at: [500, 1500, 4000]                      steps of each training at which its model is judged; without: at the end
seeds: [0, 1, 2]
evals:                                     what `lumos eval` measures of each cell, under any names: its settings
  eval: {only: [loss, fidelity], captions: 64, mask_ratios: [0.3, 0.7]}
  long: {only: [loss], overrides: [world.folder=data/demo_long, world.frames=33]}
reuse: [mask_kind]                         studies whose finished trainings stand for equal ones of this study
measures:                                  a column, and where its figures stand, see collect.py
  joint: eval.fidelity/heldout/joint         a measure of an evaluation
  loss of long clips: long.loss/tube_0.7/loss
decides: [joint]                           measures whose differences decide, corrected for how many there are
contrasts:                                 other comparisons that were named beforehand, corrected with them
  rho of 0.7 after tubes: {row: [tube, "0.7"], plus: [joint], less: [tube, "0"]}
fits:                                      power laws over the rows of these axes, one for each combination of others
  by size: {y: loss, x: parameters, over: [size], only: ["500"], reach: 1e9}
claim: The tube balances the loss.         of the paper, and whether it holds: yes, no, in part; empty while not known
holds: in part
answer: The tube pays from ... on.         once it is known: in one sentence, the measure whose figure shows it,
shown_by: joint                            and what would overturn it
overturned_by: a model of 1 B where ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from experiments.evaluation.settings import EvalSettings
from experiments.merging import build, check_interpolations, merge, resolved
from experiments.read_config import FOLDER
from experiments.study.cost import COSTS
from experiments.user_files import search_beside
from experiments.yaml_text import read_yaml_file
from lumos_pl.errors import ConfigError, did_you_mean

STUDIES = FOLDER / "studies"
COMPARED = ("grid", "sampling")
STEP = "step"  # the axis of `at`
SOURCES = ("result", "metrics", "cost")  # of a run; the others are its evaluations
VERDICTS = ("", "yes", "no", "in part")


@dataclass(frozen=True)
class Variant:
    """One combination: a label of each axis, and what they override.

    Args:
        step: of the training, at which the model is judged; None: at its end.
    """

    labels: tuple[str, ...]
    overrides: tuple[str, ...]
    step: int | None = None

    @property
    def words(self) -> str:
        return ", ".join(self.labels)

    @property
    def file_name(self) -> str:
        return "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", label) for label in self.labels)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A comparison that was named before the runs: a sum of measures in one row, less the same sum in another.

    Args:
        row, less: labels of all axes; without `less` the sum is compared to 0.
        plus, minus: measures.
    """

    row: list[str]
    plus: list[str]
    minus: list[str] = field(default_factory=list)
    less: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A power law, y = a * x^b, for each combination of the axes that it is not over.

    Args:
        y, x: measures.
        over: axes whose rows are points of one line.
        only: labels, one of which each row has to have; none: every row counts.
        without: labels of rows that do not count.
        frontier: through the lowest y that any row reaches by then, where those of one training are joined by
            straight lines in the logarithms; else through all points.
        reach: an x at which the line is read off, too.
    """

    y: str
    x: str
    over: list[str]
    only: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    frontier: bool = False
    reach: float | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """
    Args:
        name: of the file, and of the folder of results.
        about: the question.
        base: the experiment that every cell is a run of.
        overrides: of every cell.
        grid: axes of what is trained; the first label of each belongs to the cell that others are compared to.
        sampling: axes of how clips are drawn from each trained model.
        at: steps of each training at which its evaluations are made, as far as it goes: one run shows a course.
        seeds: of each combination of the grid.
        reuse: names of studies; a training with the same settings that one of them has finished is not done again.
        evals: evaluations of each trained model, by name; each is made for every combination of `sampling`.
        measures: column: SOURCE.KEY with SOURCE one of `SOURCES` or an evaluation, see collect.py.
        against: a measure that the others are plotted against.
        compare: what rows are compared to: `grid`: the first training, judged the same way; `sampling`: the first way
            to sample from the same training. By default the latter, where there are several and `at` is not given.
        decides: measures by whose differences the question is decided: the report corrects these together.
        contrasts: comparisons by which it is decided too.
        fits: power laws, with the intervals of their exponents and of the exponents' differences to the first.
        claim, holds: what the paper says, and one of `VERDICTS`.
        answer, shown_by, overturned_by: the answer in a sentence, the measure that shows it, what would overturn it.
    """

    name: str
    about: str = ""
    base: str = "debug"
    overrides: list[str] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    at: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    reuse: list[str] = field(default_factory=list)
    evals: dict[str, EvalSettings] = field(default_factory=dict)
    measures: dict[str, str] = field(default_factory=dict)
    against: str | None = None
    compare: str | None = None
    decides: list[str] = field(default_factory=list)
    contrasts: dict[str, Contrast] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    claim: str = ""
    holds: str = ""
    answer: str = ""
    shown_by: str | None = None
    overturned_by: str = ""

    def __post_init__(self) -> None:
        not_names = [name for name in self.evals if name in SOURCES or not re.fullmatch(r"\w+", name)]
        placed = [name for name, settings in self.evals.items() if settings.out is not None]
        unknown = [key for key in self.measures.values() if not self._has_source(key)]
        sources = ", ".join((*SOURCES, *self.evals))
        checks = [
            (not not_names, "evals", not_names, f"names of letters, digits and _, other than {', '.join(SOURCES)}"),
            (not placed, "evals", f"out of {', '.join(placed)}", "none: results lie in the cells' folders"),
            (self.evals or not self.sampling, "sampling", "no evaluation", "evals, that are made with it"),
            (not unknown, "measures", unknown, f"keys of {sources}"),
            (self.measures, "measures", "none", "one or more"),
            (self.seeds and len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "one or more, all different"),
            (self.against in (None, *self.measures), "against", self.against, "one of the measures"),
            (self.shown_by in (None, *self.measures), "shown_by", self.shown_by, "one of the measures"),
            (set(self.decides) <= self.measures.keys(), "decides", self.decides, "some of the measures"),
            (len(set(self.decides)) == len(self.decides), "decides", self.decides, "each measure once"),
            (not (lost := self._unknown_in_contrasts()), "contrasts", lost, "labels of one row, and measures"),
            (
                not (lost := self._unknown_in_fits()),
                "fits",
                lost,
                "measures, axes with several labels, and a reach above 0",
            ),
            (self.holds in VERDICTS, "holds", self.holds, f"one of {', '.join(VERDICTS[1:])}, or nothing"),
            (self.compare in (None, *COMPARED), "compare", self.compare, f"one of {', '.join(COMPARED)}"),
            (self.at == sorted(set(self.at)) and min(self.at, default=1) > 0, "at", self.at, "steps, rising"),
            (self.evals or not self.at, "at", "no evaluation", "evals, that are made there"),
        ]
        for good, where, got, expected in checks:
            if not good:
                raise ConfigError("a study cannot be run so", where=f"{self.name}: {where}", got=got, expected=expected)
        for variants in self.trained, self.sampled:
            if len({variant.file_name for variant in variants}) < len(variants):
                raise ConfigError("labels give the same file names", where=self.name, fix="name them differently")

    def _unknown_in_contrasts(self) -> list[str]:
        """Words of the contrasts that name no row or measure."""
        rows = {(*trained.labels, *sampled.labels) for trained in self.trained for sampled in self.sampled}
        named = [
            (", ".join(row), tuple(row) in rows) for c in self.contrasts.values() for row in (c.row, c.less) if row
        ]
        named += [(name, name in self.measures) for c in self.contrasts.values() for name in (*c.plus, *c.minus)]
        named += [(f"{name}: no row", bool(c.row) or not self.axes) for name, c in self.contrasts.items()]
        named += [(f"{name}: no measure", bool(c.plus or c.minus)) for name, c in self.contrasts.items()]
        return [word for word, is_known in named if not is_known]

    def _unknown_in_fits(self) -> list[str]:
        n_labels = {name: len(axis) for name, axis in {**self.grid, **self.sampling, STEP: self.at}.items()}
        named = [(name, name in self.measures) for fit in self.fits.values() for name in (fit.y, fit.x)]
        named += [(axis, n_labels.get(axis, 0) > 1) for fit in self.fits.values() for axis in fit.over or [""]]
        named += [
            (f"{name}: reach {fit.reach:g}", fit.reach > 0) for name, fit in self.fits.items() if fit.reach is not None
        ]
        labels = {label for variant in (*self.trained, *self.sampled) for label in variant.labels}
        named += [(label, label in labels) for fit in self.fits.values() for label in (*fit.only, *fit.without)]
        return [word for word, is_known in named if not is_known]

    def _has_source(self, key: str) -> bool:
        """Whether a measure's source is there; what evaluations measure is looked at with the cells' settings."""
        source, _, rest = key.partition(".")
        return rest in COSTS if source == "cost" else source in (*SOURCES, *self.evals) and bool(rest)

    @property
    def trained(self) -> list[Variant]:
        """What is trained, once per seed."""
        return _combinations(self.grid)

    @property
    def grid_words(self) -> list[str]:
        """The overrides of all of the grid."""
        return [word for variant in self.trained for word in variant.overrides]

    @property
    def sampled(self) -> list[Variant]:
        """How each trained model is sampled from, and at which step; a single one where nothing is asked for."""
        ways = _combinations(self.sampling)
        return [Variant((*w.labels, str(step)), w.overrides, step) for w in ways for step in self.at] or ways

    @property
    def axes(self) -> list[str]:
        return [*self.grid, *self.sampling, *([STEP] if self.at else [])]

    @property
    def compares(self) -> str:
        """One of `COMPARED`."""
        return self.compare or ("sampling" if self.sampling and not self.at else "grid")

    def compared_to(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels of the row that another is compared to."""
        n_trained, n_sampled = len(self.grid), len(self.sampling)
        if self.compares == "sampling":
            return (*labels[:n_trained], *self.sampled[0].labels[:n_sampled], *labels[n_trained + n_sampled :])
        return (*self.trained[0].labels, *labels[n_trained:])


def study_names() -> list[str]:
    return sorted(file.stem for file in STUDIES.glob("*.yaml"))


def study_file(name: str) -> Path:
    """Where a study of this name, or of this path, is written down."""
    return Path(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"


def load_study(name: str) -> Study:
    """A study by its name, or by the path of its file where that ends in .yaml.

    Raises:
        ConfigError: there is none, an unknown key (the nearest is named), or a value that does not fit.
    """
    file = study_file(name)
    if not name.endswith(".yaml") and name not in study_names():
        raise ConfigError(
            "unknown study",
            got=repr(name),
            expected=f"one of {', '.join(study_names())}, or a .yaml file",
            fix=did_you_mean(name, study_names()),
        )
    content = read_yaml_file(file)
    check_interpolations(content, file)
    search_beside([file])
    if isinstance(content.get("holds"), bool):  # YAML takes yes and no for true and false
        content["holds"] = "yes" if content["holds"] else "no"
    if "name" in content:
        raise ConfigError("unknown key", file=file, got="name", fix="its name is the file's")
    settings = merge(Study, {"name": file.stem}, content, source=file)
    return build(Study, resolved(Study, settings))


def _combinations(axes: Mapping[str, Any]) -> list[Variant]:
    """Every combination of a label of each axis; the last axis changes fastest."""
    choices = [_choices(name, values) for name, values in axes.items()]
    return [
        Variant(tuple(label for label, _ in picked), tuple(word for _, words in picked for word in words))
        for picked in product(*choices)
    ]


def _choices(name: str, values: Any) -> list[tuple[str, list[str]]]:
    """The labels of an axis, each with its overrides."""
    if isinstance(values, list) and values:
        words = ["null" if value is None else str(value) for value in values]
        return [(word, [f"{name}={word}"]) for word in words]
    if isinstance(values, dict) and values and all(isinstance(words, list) for words in values.values()):
        return [(str(label), [str(word) for word in words]) for label, words in values.items()]
    raise ConfigError(
        "not an axis",
        where=name,
        got=repr(values),
        expected="a list of values, or labels with a list of overrides each",
    )
