"""What the profiler of a run leaves: a few batches of each rank, however long or short the run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from callbacks.profiling import WindowProfiler
from experiments.read_config import load_experiment
from experiments.run_folder import RunFolder
from experiments.trainer import build_trainer
from tests.callbacks.tiny_run import TinyModule, loader, make_batch, make_trainer
from tests.experiments.conftest import SMALL
from tests.processes import lumos

BATCHES = [make_batch(f"b{number}", [(1, 4, 4)]) for number in range(20)]


def traced_batches(trace: Path) -> list[int]:
    """The numbers of the batches in a trace, as Chrome, Perfetto and TensorBoard read it."""
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    return sorted({int(one["name"].partition("#")[2]) for one in events if one["name"].startswith("ProfilerStep#")})


@pytest.mark.seconds
def test_each_rank_leaves_a_trace_of_the_window_and_a_table(tmp_path: Path) -> None:
    settings = [*SMALL, "trainer.max_steps=8", "trainer.devices=2", "trainer.profiler=pytorch"]
    lumos("train", "debug", f"run.dir={tmp_path}", "run.name=x", *settings, world=2)
    for rank in range(2):
        (trace,) = (tmp_path / "debug" / "x").glob(f"fit-profile-{rank}.*.pt.trace.json")
        assert traced_batches(trace) == [10, 11, 12]  # of 16
        table = (tmp_path / "debug" / "x" / f"fit-profile-{rank}.txt").read_text().splitlines()
        assert any("Self CPU" in line for line in table) and len(table) > 10  # which rows lead is the machine's


@pytest.mark.parametrize(
    ("steps", "window", "expected"),
    [(3, {}, None), (10, {"first": 1, "batches": 2}, [1, 2]), (20, {"first": 4}, [4, 5, 6]), (4, {"first": 3}, [3, 4])],
)
def test_the_window_is_traced_once_as_far_as_the_run_comes_to_it(
    steps: int, window: dict[str, int], expected: list[int] | None, tmp_path: Path
) -> None:
    profiler = WindowProfiler(tmp_path, "profile", **window)
    make_trainer(tmp_path, [], steps=steps, profiler=profiler).fit(TinyModule(), loader(BATCHES))
    traces = list(tmp_path.glob("*.trace.json"))
    assert [traced_batches(trace) for trace in traces] == ([] if expected is None else [expected])


def test_nodes_that_share_a_folder_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for rank in 0, 1:
        monkeypatch.setattr("experiments.trainer.process_rank", lambda rank=rank: rank)
        config = load_experiment("debug", ["trainer.profiler=simple", "trainer.num_nodes=2"])
        trainer = build_trainer(config, RunFolder(tmp_path / "x"), [])
        names.add(trainer.profiler.filename)  # type: ignore[attr-defined]
    assert len(names) == 2
