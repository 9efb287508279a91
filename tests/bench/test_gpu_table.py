"""The Markdown of the kit, from figures that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.__main__ import main
from bench.gpu.case import GIB
from bench.gpu.goals import GOALS

BY = {"code": "abc", "device": "a card", "torch": "2.11.0", "toy": False}


def measured(**figures: Any) -> dict[str, Any]:
    return {"state": "measured", "figures": figures, "by": BY, "limit_s": 90, "took_s": 1}


def failed(reason: str, state: str = "failed") -> dict[str, Any]:
    return {"state": state, "failed": reason, "by": BY, "limit_s": 90, "took_s": 1}


STEP = {"tokens_per_s": 26_002.0, "plan_bytes": 48 * GIB, "recompute": "none"}
RESULTS = {
    "card": measured(product_flops=650e12, copy_bytes=2.9e12, peak_flops=989e12),
    "attention sdpa": measured(seconds=0.5, mfu=0.25, peak_bytes=50 * GIB, step_bytes=30 * GIB, loss=11.25, **STEP),
    "attention flash": failed("ConfigError: no flash-attn | model.attention"),
    "compiled": measured(seconds=0.2, mfu=0.625, peak_bytes=50 * GIB, step_bytes=30 * GIB, loss=11.25, **STEP),
    "clip": measured(seconds=7.0, step_seconds=0.02, peak_bytes=8 * GIB),
    "tests": measured(passed=60, failed=1, error=0, skipped=0, told=[]),
    "release step": failed("OutOfMemoryError: CUDA out of memory"),
    "release clip": failed("exceeded its 90 s", "exceeded"),
}
MACHINE = {"name": "a card", "driver": "580", "torch": "2.11.0", "triton": "3.6", "python": "3.12.1"}
CONTENT = {
    "machine": MACHINE,
    "toy": False,
    "by": BY,
    "call": {"date": "2026-11-27", "command": "python -m bench.gpu"},
    "not_begun": ["trace"],
    "results": RESULTS,
}


def verdicts(results: dict[str, Any]) -> dict[str, list[str]]:
    return {goal.words: goal.row(results)[1:] for goal in GOALS}


def test_tables_beside_what_was_estimated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    older = RESULTS["clip"] | {"by": BY | {"code": "old"}}
    file.write_text(json.dumps(CONTENT | {"results": RESULTS | {"clip": older}}))
    assert main(["--table", str(file)]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith("a card, driver 580, torch 2.11.0, triton 3.6, Python 3.12.1, 2026-11-27, `python -m")
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    assert rows["attention sdpa"] == (
        "| attention sdpa | step of 1B at 256p, attention=sdpa | 500.0 ms, 26,002 tokens/s | 25.0% MFU |"
        " 50.0 GiB, 48.0 GiB planned, 30.0 GiB above what is held between steps | loss 11.2500 |"
        " 430.0 ms, 28.0% MFU, 29.5 GiB above what is held between steps | 1.16 |"
    )
    assert "| 650 TFLOP/s, 989 TFLOP/s by the data sheet, 2,900 GB/s copied | 620 TFLOP/s | 1.05 |" in rows["card"]
    assert "failed: ConfigError: no flash-attn / model.attention |" in rows["attention flash"]
    assert "Not begun for lack of time: trace." in printed
    assert "By another version of the code, or on another device: clip." in printed


def test_goals_reached_and_missed() -> None:
    assert verdicts(RESULTS) == {
        "1B, bf16, 13,001 tokens: MFU of at least 50%": ["62.5% (compiled)", "reached"],
        "no step above 1.3 times the median over ragged lengths": ["", "not measured"],
        "2 s clip at 256p by 1B, 50 steps: at most 6 s": ["7.0 s (clip)", "missed"],
        "peak memory within 10% of the plan": ["+4.2% at most (attention sdpa)", "reached"],
        "a step at least 4 times as fast as the release's, or that out of memory": [
            "the release runs out of memory",
            "reached",
        ],
        "a clip at least 8 times as fast as the release's": ["more than 12.9 times", "reached"],
        "no failure in the gpu tests": ["60 passed, 1 failed", "missed"],
        "two sharded saves and a resume with equal weights": ["", "not measured"],
    }


@pytest.mark.parametrize(
    ("goal", "changes", "verdict"),
    [
        (1, {"lengths auto": measured(spread=1.31)}, ["1.31 times the median", "missed"]),
        (3, {"3b 256p": measured(peak_bytes=50 * GIB, plan_bytes=60 * GIB)}, ["-16.7% at most (3b 256p)", "missed"]),
        (4, {"release step": measured(seconds=0.7)}, ["3.5 times", "missed"]),
        (5, {"clip": measured(seconds=20.0)}, ["exceeded its 90 s", "not measured"]),
        (6, {"tests": measured(passed=0, failed=0, error=0, skipped=60)}, ["0 passed, 0 failed", "missed"]),
        (7, {"saves": measured(sharded_checkpoints=2, equal_weights=True)}, ["2 saved, equal weights", "reached"]),
        (7, {"saves": failed("KeyError: type")}, ["failed", "missed"]),
    ],
)
def test_each_goal(goal: int, changes: dict[str, Any], verdict: list[str]) -> None:
    assert GOALS[goal].row(RESULTS | changes)[1:] == verdict
