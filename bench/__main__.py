"""`make bench`: every benchmark against its baseline, as tables and a JSON file.

python -m bench [--rounds N] [--out FILE] [--quick] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.growth import describe, growth_table, measure_growth
from bench.measure import Measured, alternate
from bench.suite import BENCHMARKS, GROWTHS, Benchmark
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.progress_bar import ProgressBar

COLUMNS = ("", "ours", "baseline", "times as fast", "of CPU time", "memory", "result", "goal")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help="those that begin so; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="written after every benchmark")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that everything runs, and nothing else")
    options = parser.parse_args(arguments)
    chosen = [
        name
        for name in [*BENCHMARKS, *GROWTHS]
        if not options.names or any(name.startswith(wanted) for wanted in options.names)
    ]
    table = Table(*COLUMNS, title=f"medians of {options.rounds}")
    tables: list[Table] = []
    results: dict[str, Any] = {}
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {"date": date.today().isoformat(), "torch": version("torch"), **machine, "results": results}
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    with ProgressBar(*columns) as progress:
        task = progress.add_task("", total=None)
        settings: dict[str, Any] = {
            "rounds": options.rounds,
            "quick": options.quick,
            "on_run": lambda: progress.advance(task),
        }
        for name in chosen:
            progress.update(task, description=name, completed=0)
            if name in BENCHMARKS:
                results[name], cells = _compare(BENCHMARKS[name], **settings)
                table.add_row(name, *cells)
            else:
                growth = GROWTHS[name]
                grown = measure_growth(growth, **settings)
                tables.append(growth_table(name, growth.unit, grown))
                results[name] = {
                    way: {"fit": describe(points), "points": {size: asdict(each) for size, each in points.items()}}
                    for way, points in grown.items()
                }
            write_atomically(options.out, json.dumps(content, indent=1) + "\n")
    for each in [table, *tables]:
        if each.row_count:
            Console(width=None if sys.stdout.isatty() else 180).print(each)


def _compare(
    benchmark: Benchmark, *, rounds: int, quick: bool, on_run: Callable[[], None]
) -> tuple[dict[str, Any], list[str]]:
    """What was measured of each way, and its row of the table."""
    reason = _missing(benchmark, quick=quick)
    if reason is not None:
        return {"skipped": reason}, ["skipped", reason]
    common = [*benchmark.arguments, *(benchmark.quick if quick else [])]
    cases = {way: [*way.split(), *common] for way in benchmark.ways}
    measured = alternate(benchmark.module, cases, rounds=rounds, on_run=on_run)
    return {way: asdict(each) for way, each in measured.items()}, [*_cells(benchmark, measured), benchmark.goal]


def _missing(benchmark: Benchmark, *, quick: bool) -> str | None:
    """Why a benchmark cannot run here; its toy version needs nothing."""
    if quick or benchmark.needs is None or benchmark.needs[0].is_dir():
        return None
    folder, how = benchmark.needs
    return f"no {folder}: {how}"


def _cells(benchmark: Benchmark, measured: Mapping[str, Measured]) -> list[str]:
    ours, *others = measured.values()
    cells = [_figure(benchmark, ours), "", "", "", "", _notes(ours)]
    if others:
        (baseline,) = others
        verdict = "the same" if _is_same(ours.result, baseline.result) else "RESULTS DIFFER"
        cells[1:] = [
            _figure(benchmark, baseline),
            f"{baseline.seconds / ours.seconds:.2f}",
            f"{baseline.cpu_seconds / ours.cpu_seconds:.2f}",
            f"1/{baseline.peak_mib / ours.peak_mib:.1f}" if min(ours.peak_mib, baseline.peak_mib) >= 1 else "",
            "; ".join(filter(None, [verdict, _notes(ours)])),
        ]
    return cells


def _figure(benchmark: Benchmark, measured: Measured) -> str:
    if benchmark.unit is None:
        return f"{measured.seconds:.2f} s, {measured.peak_mib:.0f} MiB"
    return f"{measured.notes[benchmark.unit] / measured.seconds:,.0f} {benchmark.unit}/s"


def _notes(measured: Measured) -> str:
    """Shares among the notes, as percentages."""
    shares = {key: value for key, value in measured.notes.items() if isinstance(value, float) and value < 1}
    return ", ".join(f"{key} {value:.1%}" for key, value in shares.items())


def _is_same(one: Any, other: Any) -> bool:
    """Codes to the bit; a loss to the rounding of bf16."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3)
    return bool(one == other)


if __name__ == "__main__":
    main()
