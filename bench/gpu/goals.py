"""What the figures should be, and whether they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Mapping[str, Any]]
Verdict = tuple[str, bool | None]  # what was measured, and whether that is the goal; None: not known

ONE_STEP = ("attention", "compiled", "chunk", "recompute")  # how the names begin of steps of 1B at 256p
UNKNOWN: Verdict = ("", None)


@dataclass(frozen=True)
class Goal:
    """
    Args:
        words: the goal.
        judge: what the results say of it.
    """

    words: str
    judge: Callable[[Results], Verdict]

    def row(self, results: Results) -> list[str]:
        measured, reached = self.judge(results)
        return [self.words, measured, "not measured" if reached is None else "reached" if reached else "missed"]


def figures(results: Results, *beginnings: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Names and figures of the measured cases whose names begin so."""
    for name, result in results.items():
        if name.startswith(beginnings) and "figures" in result:
            yield name, result["figures"]


def _utilisation(results: Results) -> Verdict:
    measured = {name: each["mfu"] for name, each in figures(results, *ONE_STEP) if each["mfu"] is not None}
    if not measured:
        return UNKNOWN
    best = max(measured, key=lambda name: measured[name])
    return f"{measured[best]:.1%} ({best})", measured[best] >= 0.5


def _ragged(results: Results) -> Verdict:
    for _, each in figures(results, "lengths auto"):
        return f"{each['spread']:.2f} times the median", each["spread"] <= 1.3
    return UNKNOWN


def _clip(results: Results) -> Verdict:
    measured = {name: each["seconds"] for name, each in figures(results, "clip")}
    if not measured:
        return UNKNOWN
    best = min(measured, key=lambda name: measured[name])
    return f"{measured[best]:.1f} s ({best})", measured[best] <= 6


def _memory(results: Results) -> Verdict:
    off = {
        name: each["peak_bytes"] / each["plan_bytes"] - 1
        for name, each in figures(results, *ONE_STEP, "1b", "3b")
        if each.get("plan_bytes")
    }
    if not off:
        return UNKNOWN
    worst = max(off, key=lambda name: abs(off[name]))
    return f"{off[worst]:+.1%} at most ({worst})", abs(off[worst]) <= 0.1


def _against_the_release(case: str, beginnings: tuple[str, ...], wanted: float) -> Callable[[Results], Verdict]:
    def judge(results: Results) -> Verdict:
        ours = [each["seconds"] for _, each in figures(results, *beginnings)]
        release = results.get(case)
        if not ours or release is None:
            return UNKNOWN
        if "figures" in release:
            ratio = release["figures"]["seconds"] / min(ours)
            return f"{ratio:.1f} times", ratio >= wanted
        if "OutOfMemory" in release["failed"]:
            return "the release runs out of memory", True
        if release["state"] == "exceeded" and (least := release["limit_s"] / min(ours)) >= wanted:
            return f"more than {least:.1f} times", True
        return release["failed"], None

    return judge


def _tests(results: Results) -> Verdict:
    for _, each in figures(results, "tests"):
        wrong = each["failed"] + each["error"]
        return f"{each['passed']} passed, {wrong} failed", wrong == 0 and each["passed"] > 0
    return UNKNOWN


def _saves(results: Results) -> Verdict:
    for _, each in figures(results, "saves"):
        same = "equal" if each["equal_weights"] else "other"
        return f"{each['sharded_checkpoints']} saved, {same} weights", bool(
            each["sharded_checkpoints"] >= 2 and each["equal_weights"]
        )
    return ("failed", False) if results.get("saves", {}).get("state") == "failed" else UNKNOWN


GOALS = (
    Goal("1B, bf16, 13,001 tokens: MFU of at least 50%", _utilisation),
    Goal("no step above 1.3 times the median over ragged lengths", _ragged),
    Goal("2 s clip at 256p by 1B, 50 steps: at most 6 s", _clip),
    Goal("peak memory within 10% of the plan", _memory),
    Goal(
        "a step at least 4 times as fast as the release's, or that out of memory",
        _against_the_release("release step", ONE_STEP, 4),
    ),
    Goal("a clip at least 8 times as fast as the release's", _against_the_release("release clip", ("clip",), 8)),
    Goal("no failure in the gpu tests", _tests),
    Goal("two sharded saves and a resume with equal weights", _saves),
)
