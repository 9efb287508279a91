"""`python -m bench --quick`: every benchmark runs, with the same result as its baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.growth import fit_power
from bench.measure import run_case
from bench.sharded_saving import main as save_sharded
from bench.suite import BENCHMARKS, GROWTHS


def test_a_power_law_is_found() -> None:
    scale, exponent = fit_power({x: 3 * x**1.5 for x in (1.0, 2.0, 8.0)})
    assert (scale, exponent) == pytest.approx((3, 1.5))


@pytest.mark.seconds
@pytest.mark.parametrize(
    "names",
    [
        ["training step, 4 frames of 32x32, fp32", "generation", "growth", "packing"],
        ["data", "checkpoint"],
        # The release computes the whole vocabulary at every place, half a minute of a CPU in bf16.
        pytest.param(["training step, 4 frames of 32x32, bf16"], marks=pytest.mark.slow),
        pytest.param(["tokenizing", "start"], marks=pytest.mark.slow),  # they start processes
    ],
    ids=" ".join,
)
def test_everything_runs_at_toy_size(
    names: list[str], in_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    main(["--quick", "--rounds", "1", "--out", str(out), *names])
    assert "DIFFER" not in capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    chosen = [name for name in [*BENCHMARKS, *GROWTHS] if any(name.startswith(part) for part in names)]
    assert list(results) == chosen
    for name in chosen:
        if name in BENCHMARKS:
            assert list(results[name]) == list(BENCHMARKS[name].ways)
            assert all(way["seconds"] > 0 for way in results[name].values())
        else:
            assert all(len(way["points"]) == 2 for way in results[name].values())


@pytest.mark.slow
def test_a_case_runs_in_a_process_of_its_own() -> None:
    assert run_case("bench.startup", ["python"])["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["background", "waiting"])
def test_sharded_saving_is_measured(way: str, capfd: pytest.CaptureFixture[str]) -> None:
    save_sharded([way, "--size", "debug", "--rounds", "2"])
    rounds = json.loads(capfd.readouterr().out)["rounds"]
    assert len(rounds) == 2 and all(0 < each["waiting"] <= each["complete"] for each in rounds)
