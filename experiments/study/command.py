"""`lumos study`: its options, and what it prints. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands.options import Add
from lumos_pl.errors import ConfigError
from lumos_pl.settings.ranges import at_least

if TYPE_CHECKING:
    from experiments.study.cells import Cell
    from experiments.study.config import Study

ALL_SECONDS = 1e9


def add_commands(add: Add) -> None:
    parser = add("study", study, "run and compare many cells of one question, and write its report")
    parser.add_argument("study", metavar="NAME", help="of experiments/studies, or a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every cell; the same command goes on")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="add the figures to NAME.csv beside the study's file",
    )
    parser.add_argument("--jobs", type=int, metavar="N", default=1, help="cells side by side (default 1)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--report", action="store_true", help="run nothing: report what is there, or was kept")
    instead.add_argument("--slurm", action="store_true", help="run nothing: print a job array of what is left to do")
    instead.add_argument("--only", metavar="CELL", help="run this cell alone, without a report")


def study(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status: that of the first failed cell, if any."""
    from experiments.study.cells import plan_cells
    from experiments.study.config import load_study, study_file
    from experiments.study.kept import read_kept
    from experiments.study.run import slurm_script

    at_least(1).check("--jobs", options.jobs)
    asked = load_study(options.study)
    cells = plan_cells(asked, options.overrides)
    if options.slurm:
        print(slurm_script(options.study, cells, options.overrides))
        return 0
    chosen = cells if options.only is None else _only(cells, options.only)
    kept = study_file(options.study).with_suffix(".csv")
    if (options.report or options.keep) and kept.is_file():
        read_kept(asked, kept)  # what is wrong with it is said before the cells run, not after
    if not options.report and (status := _run(asked, chosen, options)):
        return status
    if options.only is None:
        _report(asked, cells, kept, options)
    return _failures(chosen)


def _run(asked: Study, chosen: Sequence[Cell], options: argparse.Namespace) -> int:
    """Do what is left of the cells; returns the exit status of a stop by a signal, 0 where all were tried."""
    from experiments.study.run import run_cells
    from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest

    words = [*options.overrides, *(["--debug"] if options.debug else [])]
    try:
        with StopRequest(), _bar(chosen) as show:
            run_cells(options.study, chosen, words, jobs=options.jobs, on_progress=show, on_end=_telling_once(asked))
    except StoppedBySignal as stop:
        done, folder = sum(cell.is_done() for cell in chosen), chosen[0].folder.path.parent
        message = f"lumos: stopped, {done} of {len(chosen)} cells done | {folder} | the same command goes on from there"
        print(message, file=sys.stderr)
        return int(str(stop.code))
    return 0


def _report(asked: Study, cells: Sequence[Cell], kept: Path, options: argparse.Namespace) -> None:
    """Write the report, and what is to be kept; print where it is and what is missing in it."""
    from experiments.study.collect import unmeasured
    from experiments.study.kept import Figures
    from experiments.study.report import write_report
    from lumos_pl.machinery.atomic_file import write_atomically

    n_done = sum(cell.is_done() for cell in cells)
    joins = (options.keep or (options.report and not n_done)) and kept.is_file()
    figures = Figures(asked, cells, kept if joins else None)
    if options.keep and figures.measured_here:
        write_atomically(kept, figures.csv())
    shown, others = figures.shown, figures.measured_otherwise()
    page = write_report(
        asked,
        cells,
        cells[0].folder.path.parent,
        shlex.join(["lumos", "study", options.study, *options.overrides]),
        shown,
        kept=kept if joins else None,
        measured_otherwise=others,
    )
    found = [f"the figures kept in {kept.name}"] if joins else []
    found += [f"{n_done} of {len(cells)} cells done"] if n_done or not found else []
    print(f"{', and '.join(found)}\n  look at {page}")
    for line in unmeasured(asked, cells, shown):
        print(f"  {line}")
    if others:
        print(f"  kept figures of other settings than the study has now: {', '.join(others)}")


def _only(cells: Sequence[Cell], name: str) -> list[Cell]:
    chosen = [cell for cell in cells if cell.name == name]
    if not chosen:
        names = ", ".join(cell.name for cell in cells)
        raise ConfigError("no such cell", where="--only", got=repr(name), expected=f"one of {names}")
    return chosen


def _telling_once(asked: Study) -> Callable[[Cell], None]:
    """Of the first cell that is done, what it has not measured: a wrong name is told before the others are trained."""
    from experiments.study.collect import read_conditions, unmeasured

    told: list[Cell] = []

    def tell(cell: Cell) -> None:
        if told or not cell.is_done():
            return
        told.append(cell)
        for line in unmeasured(asked, [cell], read_conditions(asked, [cell])):
            print(f"{cell.name} is done, the first: {line}", flush=True)

    return tell


def _failures(cells: Sequence[Cell]) -> int:
    failed = [cell for cell in cells if not cell.is_done() and cell.message is not None]
    for cell in failed:
        print(f"lumos: {cell.name} failed: {cell.message} | {cell.log}", file=sys.stderr)
    return failed[0].status if failed else 0


@contextmanager
def _bar(cells: Sequence[Cell]) -> Iterator[Callable[[Cell, int, int], None]]:
    """A bar over the steps of all cells; the time left follows from all that was done since it began."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from lumos_pl.machinery.progress_bar import ProgressBar

    columns = TextColumn("{task.fields[words]}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with ProgressBar(*columns, speed_estimate_period=ALL_SECONDS) as progress:
        task = progress.add_task("", total=None, words="starting")

        def show(cell: Cell, done: int, work: int) -> None:
            progress.update(
                task, completed=done, total=work, words=f"{cell.name} ({cells.index(cell) + 1} of {len(cells)})"
            )

        yield show
