"""`python -m bench.gpu` on a CPU at toy size: all that it does on a GPU but CUDA and compiling."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import gpu
from bench.gpu import cases, main
from lumos_pl.errors import ConfigError


def test_all_of_it_runs_and_failures_are_told(
    in_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import measure

    in_this_process = measure.run_case

    def run(module: str, arguments: Sequence[str], **_: Any) -> dict[str, Any]:
        try:
            return in_this_process(module, arguments)
        except ConfigError as error:
            raise subprocess.CalledProcessError(1, [], stderr=f"Traceback\n{error}") from error

    monkeypatch.setattr(gpu, "run_case", run)
    out = tmp_path / "gpu.json"
    main(["--quick", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert list(results) == [
        "debug 4x4 step sdpa",
        "debug 4x4 step flex",
        "debug 4x4 step flash",
        "debug 4x4 step as in the release",
        "debug 4x4 clip",
        "debug 4x4 clip as in the release",
    ]
    ours, flex, flash, release, clip, release_clip = results.values()
    assert "needs the device cuda" in flex["failed"] and "failed" in flash
    assert ours["result"] == pytest.approx(release["result"], rel=1e-3)
    assert ours["notes"]["flops"] == release["notes"]["flops"] > 0
    assert len(clip["result"]) == len(release_clip["result"]) == 64
    assert "debug 4x4 clip as in the release" in capsys.readouterr().out


def test_the_whole_list() -> None:
    """Both sizes and resolutions, by every attention, compiled and not, and the baseline; clips at 256p."""
    names = [case.name for case in cases(["1b", "3b"], quick=False)]
    assert len(names) == len(set(names)) == 2 * 2 * (3 * 2 + 1) + 2 * 2
    assert all("cuda" in case.arguments for case in cases(["1b"], quick=False))


@pytest.mark.slow
def test_a_process_that_fails_is_told_from_its_last_line(tmp_path: Path) -> None:
    case = gpu.Case(name="wrong", module="bench.training_step", arguments=["nonsense"])
    assert "invalid choice: 'nonsense'" in gpu.measure(case)["failed"]
