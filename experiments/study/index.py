"""All studies on one page: which claim held, and every arm whose figures are kept, fidelity against compute.

python -m experiments.study.index      writes the table into docs/RESULTS.md, and docs/figures/studies.svg
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from experiments.read_config import load_experiment
from experiments.study.config import STUDIES, Study, load_study, study_names
from experiments.study.cost import cost_of
from experiments.study.figures import STYLE, Picture, look_of, panel, plain_numbers, saved
from experiments.study.kept import of_study, read_kept
from experiments.study.statistics import Estimate
from lumos_pl.machinery.counted import counted

FIDELITY = "fidelity/heldout/joint"  # of the first measure with such a key
BEGIN, END = "<!-- studies: python -m experiments.study.index -->", "<!-- end of the studies -->"
DOCS = Path(__file__).parents[2] / "docs"
PREREGISTERED = "preregistered"
BESIDE_EACH_OTHER = 1.04  # a study's operations are drawn by so much to the right of those of the one before


@dataclass(frozen=True)
class Arm:
    """A row of a study: what its training cost in 10^12 operations, and how many held-out captions its clips obey."""

    study: str
    labels: tuple[str, ...]
    teraflops: float
    joint: Estimate


def claims(names: Sequence[str], folder: Path = STUDIES) -> str:
    """A table in Markdown: each study that tests a claim of the paper, what was found, and at which scale.

    Args:
        folder: where NAME.csv lie.
    """
    rows = []
    for study in filter(lambda study: study.claim, map(load_study, names)):
        file = folder / f"{study.name}.csv"
        kept = of_study(study, read_kept(study, file)[0]) if file.is_file() else []
        seeds = max((len(of_seed) for row in kept for of_seed in row.values.values()), default=len(study.seeds))
        found = study.answer or ("measured, not yet answered" if kept else "not yet run")
        page = DOCS / PREREGISTERED / f"{study.name}.md"
        asked = f"[`{study.name}`]({PREREGISTERED}/{study.name}.md)" if page.is_file() else f"`{study.name}`"
        scale = f"{_scale(study)}, {counted(seeds, 'seed')}"
        rows.append(f"| {study.claim} | {found} | {study.holds or 'open'} | {scale} | {asked} |")
    head = "| the paper's claim | what we measured | holds | scale | study |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def _costs(study: Study, steps: Sequence[int | None]) -> dict[tuple[str, ...], dict[int | None, Mapping[str, float]]]:
    """By training and step (None: the last)."""
    read = {v.labels: load_experiment(study.base, [*study.overrides, *v.overrides]) for v in study.trained}
    return {labels: {step: cost_of(config, step) for step in steps} for labels, config in read.items()}


def _scale(study: Study) -> str:
    ends = [of_training[None] for of_training in _costs(study, [None]).values()]
    sizes, steps = ([cost[name] for cost in ends] for name in ("parameters", "steps"))
    size = _from_to([value / 1e6 for value in sizes])
    return f"{size} M parameters, {_from_to(steps)} steps"


def _from_to(values: Sequence[float]) -> str:
    low, high = (f"{value:,.2g}" if value < 100 else f"{value:,.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def arms(names: Sequence[str], folder: Path = STUDIES) -> Iterator[Arm]:
    """Those of the studies of training that were announced, or ask for a claim of the paper's, whose figures are kept.

    Args:
        folder: where NAME.csv lie.
    """
    for study in map(load_study, names):
        file = folder / f"{study.name}.csv"
        measure = next((name for name, key in study.measures.items() if key.endswith(FIDELITY)), None)
        is_asked = study.claim or (DOCS / PREREGISTERED / f"{study.name}.md").is_file()
        if not is_asked or measure is None or not file.is_file():
            continue
        costs = _costs(study, study.at or [None])
        for row in of_study(study, read_kept(study, file)[0]):
            cost = costs[row.labels[: len(study.grid)]][int(row.labels[-1]) if study.at else None]
            if cost and row.values[measure]:
                joint = row.estimate(study, measure)
                yield Arm(study.name, row.labels, cost["teraflops"], joint)


def paint_arms(shown: Sequence[Arm]) -> Picture:
    """Every arm, those of one study alike; the best of each by name."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(4.6)
        for number, name in enumerate(dict.fromkeys(arm.study for arm in shown)):
            look = look_of(number)
            own = [arm for arm in shown if arm.study == name]
            x = [arm.teraflops * BESIDE_EACH_OTHER**number for arm in own]
            y = [arm.joint.mean for arm in own]
            low = [0 if math.isnan(arm.joint.low) else arm.joint.mean - arm.joint.low for arm in own]
            high = [0 if math.isnan(arm.joint.high) else arm.joint.high - arm.joint.mean for arm in own]
            color, marker = look["color"], look["marker"]
            best = ", ".join(max(own, key=lambda arm: arm.joint.mean).labels)
            label = f"{name}, best: {best}"
            axes.errorbar(x, y, [low, high], fmt=marker, color=color, ms=4.5, elinewidth=0.8, label=label)
        axes.set(xscale="log", ylim=(-0.03, 1.08), xlabel="operations of the training, 10^12")
        plain_numbers(axes.xaxis)
        axes.set_ylabel("joint fidelity, held-out captions")
        figure.legend(loc="outside upper left", ncols=1, alignment="left")
        about = "every arm of the studies whose figures are kept, mean and 95% interval, studies side by side"
        return saved(figure, "studies", about)


def main(docs: Path = DOCS, folder: Path = STUDIES, names: Sequence[str] | None = None) -> int:
    """Write the table and the picture."""
    names = study_names() if names is None else names
    shown, block = list(arms(names, folder)), [claims(names, folder)]
    if shown:
        picture = paint_arms(shown)
        (docs / "figures" / "studies.svg").write_bytes(picture.svg)
        block += [f"![{picture.about}](figures/studies.svg)"]
    page = docs / "RESULTS.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    content = "\n\n".join([before + BEGIN, *block, END + after])
    page.write_text(content, encoding="utf-8")
    studies = counted(len({arm.study for arm in shown}), "study", "studies")
    print(f"{counted(len(shown), 'arm')} of {studies} whose figures are kept\n  look at {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
