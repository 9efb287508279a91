"""`make bench`: every benchmark against its baseline, as one table and a JSON file.

python -m bench [--rounds N] [--out FILE] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.measure import Measured, alternate


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A module that measures one alternative, see `alternate`.

    Args:
        arguments: the same for both.
        ways: what is compared, as the module's first argument: ours, and the baseline.
    """

    module: str
    arguments: list[str] = field(default_factory=list)
    ways: tuple[str, str] = ("ours", "release")


BENCHMARKS = {
    "training step, 4 frames of 32x32, fp32": Benchmark(module="bench.training_step"),
    "training step, 4 frames of 32x32, bf16": Benchmark(
        module="bench.training_step", arguments=["--precision", "bf16-mixed"]
    ),
    "generation, 2 frames of 32x32, 10 steps": Benchmark(module="bench.generation"),
    "generation, 4 frames of 32x32, 50 steps": Benchmark(
        module="bench.generation", arguments=["--frames", "4", "--steps", "50"]
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help="those that begin so; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    options = parser.parse_args()
    chosen = {
        name: benchmark
        for name, benchmark in BENCHMARKS.items()
        if not options.names or any(name.startswith(wanted) for wanted in options.names)
    }
    table = Table(
        "", "ours", "baseline", "times as fast", "memory", "same result", title=f"medians of {options.rounds}"
    )
    results = {}
    for name, benchmark in chosen.items():
        cases = {way: [way, *benchmark.arguments] for way in benchmark.ways}
        ours, baseline = alternate(benchmark.module, cases, rounds=options.rounds).values()
        results[name] = {"ours": asdict(ours), "baseline": asdict(baseline)}
        table.add_row(name, *_cells(ours, baseline))
    Console().print(table)
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    content = {"date": date.today().isoformat(), "torch": torch.__version__, **machine, "results": results}
    options.out.write_text(json.dumps(content, indent=1) + "\n")


def _cells(ours: Measured, baseline: Measured) -> list[str]:
    return [
        *(f"{each.seconds:.2f} s, {each.peak_mib:.0f} MiB" for each in (ours, baseline)),
        f"{baseline.seconds / ours.seconds:.1f}",
        f"1/{baseline.peak_mib / ours.peak_mib:.1f}",
        "yes" if _is_same(ours.result, baseline.result) else "no",
    ]


def _is_same(one: str | float, other: str | float) -> bool:
    """Codes to the bit; a loss to the rounding of bf16."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3)
    return one == other


if __name__ == "__main__":
    main()
