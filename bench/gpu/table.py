"""What was measured, in words: a line for each case, and Markdown beside what was estimated and what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.gpu.case import GIB, Case
from bench.gpu.goals import GOALS

Results = Mapping[str, Mapping[str, Any]]


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s" if seconds >= 2 else f"{1000 * seconds:.1f} ms"


FORMATS: dict[str, Callable[[Any], str]] = {
    "seconds": duration,
    "tokens_per_s": lambda count: f"{count:,.0f} tokens/s",
    "mfu": lambda share: f"{share:.1%} MFU",
    "peak_bytes": lambda count: f"{count / GIB:.1f} GiB",
    "plan_bytes": lambda count: f"{count / GIB:.1f} GiB planned",
    "step_bytes": lambda count: f"{count / GIB:.1f} GiB above what is held between steps",
    "loss": lambda loss: f"loss {loss:.4f}",
    "recompute": lambda kind: f"recomputed {kind}",
    "picked": str,
    "product_flops": lambda count: f"{count / 1e12:.3g} TFLOP/s",
    "peak_flops": lambda count: f"{count / 1e12:.3g} TFLOP/s by the data sheet",
    "copy_bytes": lambda count: f"{count / 1e9:,.0f} GB/s copied",
    "most_seconds": lambda seconds: f"longest {duration(seconds)}",
    "spread": lambda ratio: f"{ratio:.2f} times the median",
    "spread_again": lambda ratio: f"{ratio:.2f} once more",
    "step_seconds": lambda seconds: f"{duration(seconds)} a refinement step",
    "sharded_checkpoints": lambda count: f"{count} sharded checkpoints",
    "equal_weights": lambda equal: "equal weights after the resume" if equal else "OTHER WEIGHTS after the resume",
    "passed": lambda count: f"{count} passed",
    "failed": lambda count: f"{count} failed",
    "error": lambda count: f"{count} errors",
    "skipped": lambda count: f"{count} skipped",
    "kernels": lambda count: f"{count:,.0f} kernels a step",
    "idle": lambda share: f"idle {share:.1%}",
    "longest_gap_seconds": lambda seconds: f"longest gap {1e6 * seconds:.0f} us",
}


def words(figures: Mapping[str, Any], names: Sequence[str] = tuple(FORMATS)) -> str:
    """The figures of these names that are there."""
    return ", ".join(FORMATS[name](figures[name]) for name in names if figures.get(name) is not None)


def line(result: Mapping[str, Any]) -> str:
    """What came of a case."""
    return words(result["figures"]) if "figures" in result else f"{result['state']}: {result['failed']}"


def markdown(content: Mapping[str, Any], listed: Sequence[Case]) -> str:
    """The file of an earlier call as tables, for docs/PERFORMANCE.md."""
    results: Results = content["results"]
    known = [case for case in listed if case.name in results]
    steps = [case for case in known if "mfu" in results[case.name].get("figures", {})]
    others = [case for case in known if case not in steps]
    headers = {
        "steps": ("case", "what", "time", "of the peak", "memory", "loss", "estimated before", "measured / estimated"),
        "others": ("case", "what", "measured", "estimated before", "measured / estimated"),
        "goals": ("goal", "measured", ""),
    }
    blocks = [
        _about(content),
        _table(headers["steps"], (_step_row(case, results) for case in steps)),
        _table(headers["others"], (_row(case, results) for case in others)),
        _table(headers["goals"], (goal.row(results) for goal in GOALS)),
        *_remarks(content),
    ]
    return "\n\n".join(block for block in blocks if block)


def _about(content: Mapping[str, Any]) -> str:
    machine, call = content["machine"], content["call"]
    parts = [
        machine["name"],
        machine["driver"] and f"driver {machine['driver']}",
        f"torch {machine['torch']}",
        machine["triton"] and f"triton {machine['triton']}",
        f"Python {machine['python']}",
        call["date"],
        f"`{call['command']}`",
    ]
    toy = "**Toy sizes: these figures say nothing.** " if content["toy"] else ""
    return toy + ", ".join(filter(None, parts)) + ". Estimates: by arithmetic, before any GPU was at hand."


def _remarks(content: Mapping[str, Any]) -> Iterator[str]:
    if content["not_begun"]:
        yield f"Not begun for lack of time: {', '.join(content['not_begun'])}."
    older = [name for name, result in content["results"].items() if result["by"] != content["by"]]
    if older:
        yield f"By another version of the code, or on another device: {', '.join(older)}."


def _table(header: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *lines])


def _row(case: Case, results: Results) -> list[str]:
    return [case.name, case.about, line(results[case.name]), *_beside(case, results)]


def _step_row(case: Case, results: Results) -> list[str]:
    figures = results[case.name]["figures"]
    columns = ("seconds", "tokens_per_s"), ("mfu",), ("peak_bytes", "plan_bytes", "step_bytes"), ("loss", "picked")
    return [case.name, case.about, *(words(figures, names) for names in columns), *_beside(case, results)]


def _beside(case: Case, results: Results) -> list[str]:
    """What was estimated, and the measured part of its first figure."""
    figures = results[case.name].get("figures", {})
    name = next(iter(case.estimated), None)
    ratio = "" if name is None or figures.get(name) is None else f"{figures[name] / case.estimated[name]:.2f}"
    return [words(case.estimated), ratio]
