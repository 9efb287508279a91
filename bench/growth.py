"""How time and memory grow with the size of the work: a table of sizes, and a power law through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.table import Table

from bench.measure import Measured, alternate
from bench.suite import Growth

LIMIT_MIB = 20 * 1024
BEYOND_SENSE = 1e9  # tokens or frames: memory that hardly grows passes no limit


def fit_power(points: Mapping[float, float]) -> tuple[float, float]:
    """(a, b) of the line a * x**b that is nearest in logarithms."""
    exponent, offset = np.polyfit(np.log([*points]), np.log([*points.values()]), 1)
    return math.exp(offset), float(exponent)


def measure_growth(
    growth: Growth, *, rounds: int, quick: bool, on_run: Callable[[], None]
) -> dict[str, dict[float, Measured]]:
    """Per way, what was measured at each size."""
    sizes, baseline = (growth.quick_sizes, growth.quick_sizes) if quick else (growth.sizes, growth.baseline)
    arguments = [*growth.arguments, *(growth.quick if quick else [])]
    measured: dict[str, dict[float, Measured]] = {"ours": {}, "release": {}}
    for size in sorted({*sizes, *baseline}):
        ways = [way for way, those in (("ours", sizes), ("release", baseline)) if size in those]
        cases = {way: [way, *arguments, growth.option, str(size)] for way in ways}
        for way, each in alternate(growth.module, cases, rounds=rounds, on_run=on_run).items():
            measured[way][each.notes[growth.unit]] = each
    return measured


def describe(measured: Mapping[float, Measured]) -> dict[str, Any]:
    """The fitted exponents, and the size at which the fitted memory passes `LIMIT_MIB`."""
    scale, exponent = fit_power({size: max(each.peak_mib, 1.0) for size, each in measured.items()})
    _, time_exponent = fit_power({size: each.cpu_seconds for size, each in measured.items()})
    return {
        "memory_exponent": exponent,
        "cpu_time_exponent": time_exponent,
        "passes_20_gib_at": (LIMIT_MIB / scale) ** (1 / exponent) if exponent > 0 else None,
    }


def growth_table(title: str, unit: str, measured: Mapping[str, Mapping[float, Measured]]) -> Table:
    table = Table(unit, "ours", "release", "times as fast", "of CPU time", "memory", title=title)
    sizes = sorted({size for each in measured.values() for size in each})
    for size in sizes:
        ours, release = measured["ours"].get(size), measured["release"].get(size)
        cells = [f"{each.seconds:.2f} s, {each.peak_mib:.0f} MiB" if each else "" for each in (ours, release)]
        ratios = ["", "", ""]
        if ours and release:
            ratios = [
                f"{release.seconds / ours.seconds:.1f}",
                f"{release.cpu_seconds / ours.cpu_seconds:.1f}",
                f"1/{release.peak_mib / max(ours.peak_mib, 1.0):.1f}",
            ]
        table.add_row(f"{size:,.0f}", *cells, *ratios)
    table.add_section()
    words = [_words(describe(measured[way]), unit) for way in ("ours", "release")]
    table.add_row("fit", *words)
    return table


def _words(fit: Mapping[str, Any], unit: str) -> str:
    limit = fit["passes_20_gib_at"]
    passes = "" if limit is None or limit > BEYOND_SENSE else f"; 20 GiB at {limit:,.0f} {unit}"
    return f"memory ~ {unit}^{fit['memory_exponent']:.2f}{passes}, by the fit"
