"""`python -m bench.gpu` on a CPU at toy size: all that it does on a GPU, but for CUDA's kernels and compiled ones."""

from __future__ import annotations

import json
import time
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from bench.gpu.__main__ import main
from bench.gpu.card import card
from bench.gpu.case import GIB
from bench.gpu.cases import ATTENTION, cases, shape
from bench.gpu.clips import clip
from bench.gpu.steps import StepSetting, least_recomputed, ragged_steps, training_step
from bench.gpu.trace import Kernel, find_gaps, summarize, traced_step
from bench.training_step import hidden_as_in_training
from lumos_pl.models.config import AttentionBackend, ModelConfig
from lumos_pl.models.flops import forward_flops

TOY = shape("1b", "256p", toy=True) | {"n_text": 20}
NAMES = [
    "card",
    *(f"attention {name}" for name in ATTENTION),
    *("lengths auto", "lengths sdpa", "lengths cudnn", "compiled"),
    *("chunk 256", "chunk 1024", "chunk 2048", "chunk 4096"),
    *("recompute none", "recompute selective", "recompute full"),
    *("clip", "clip compiled", "saves", "tests", "1b 384p", "3b 256p", "3b 384p"),
    *("release step", "release clip", "trace"),
]


def test_the_cases_in_the_order_of_value() -> None:
    real, toy = cases(toy=False), cases(toy=True)
    assert [case.name for case in real] == [case.name for case in toy] == NAMES
    assert {*ATTENTION} == {*get_args(AttentionBackend)} - {"auto", "padded"}
    assert all(callable(resolve_name(case.measure)) and 0 < case.limit_s <= 120 for case in real)
    (step,) = (case for case in real if case.name == "attention sdpa")
    setting = StepSetting(**step.settings)
    assert len(setting.clip().tokens) == 13_001 and setting.recompute == "none"


@pytest.mark.seconds
def test_all_steps_have_the_same_loss_and_the_figures_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.steps.peak_flops", lambda device: 1e12)
    ours = training_step(**TOY, steps=2)
    setting = StepSetting(**TOY)
    batch = hidden_as_in_training(setting.clip(), setting.layout_config.build())
    model = ModelConfig(size="debug").build(setting.layout_config.build())
    flops = 3 * forward_flops(model, batch.spans, len(batch.target_index)).total
    assert len(ours["times"]) == 2 and min(ours["times"]) <= ours["seconds"] <= max(ours["times"])
    assert ours["mfu"] == pytest.approx(flops / ours["seconds"] / 1e12)
    assert ours["tokens_per_s"] == pytest.approx(len(batch.tokens) / ours["seconds"])
    assert 0 < ours["plan_bytes"] < ours["peak_bytes"]  # of the whole process here
    assert training_step(**TOY, steps=1)["loss"] == ours["loss"]  # of the first step
    for changes in {"chunk_size": 8}, {"recompute": "full"}, {"recompute": None}, {"way": "release"}:
        other = training_step(**TOY, **changes, steps=1)
        assert other["loss"] == pytest.approx(ours["loss"], rel=1e-3)
        assert (other["plan_bytes"] is None) == (changes == {"way": "release"})


def test_every_length_is_timed_by_itself() -> None:
    figures = ragged_steps(**TOY, n_texts=[3, 5, 8])
    assert len(figures["times"]) == len(figures["times_again"]) == 3
    assert figures["spread"] == figures["most_seconds"] / figures["seconds"] >= 1


def test_clips_and_the_card_are_timed() -> None:
    made = clip(**shape("1b", "256p", toy=True), steps=2)
    assert made["seconds"] == pytest.approx(made["step_seconds"] * 2 * 2)
    assert clip(**shape("1b", "256p", toy=True), steps=2, way="release")["seconds"] > 0
    figures = card(n=64, copied_bytes=2**16)
    assert figures["product_flops"] > 0 and figures["copy_bytes"] > 0


def test_the_least_recomputation_that_fits_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_card_of(gibibytes: int, size: str, pixels: str) -> str:
        properties = SimpleNamespace(total_memory=gibibytes * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        setting = StepSetting(**shape(size, pixels, toy=False), n_text=200)  # type: ignore[arg-type]
        return least_recomputed(setting, "cuda")

    assert on_a_card_of(80, "1b", "256p") == "none"
    assert on_a_card_of(80, "3b", "384p") == "full"
    assert on_a_card_of(60, "1b", "384p") == "full"
    assert on_a_card_of(70, "1b", "384p") == "selective"


def test_gaps_are_where_nothing_runs() -> None:
    ran = [Kernel("a", 0, 10), Kernel("b", 2, 4), Kernel("a", 13, 20), Kernel("c", 25, 30)]
    assert [(gap.length, gap.after, gap.before) for gap in find_gaps(ran)] == [(5, "a", "c"), (3, "a", "a")]
    figures = summarize(ran, n_steps=2)
    assert figures["seconds"] == 15e-6 and figures["kernels"] == 2
    assert figures["idle"] == pytest.approx(8 / 30) and figures["longest_gap_seconds"] == 5e-6
    assert [top[0] for top in figures["top"]] == ["a", "c", "b"]
    assert "8.500" not in figures["text"] and "0.009   70.8%           1.0   a" in figures["text"]


def test_a_step_is_traced() -> None:
    figures = traced_step(**TOY, steps=1)
    assert any("linear" in name or "mm" in name for name, *_ in figures["top"])
    assert figures["text"].startswith("1 steps, ")


@pytest.mark.slow
def test_all_of_it_runs_in_a_minute_and_not_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    begun = time.monotonic()
    assert main(["--toy", "--out", str(out)]) == 0
    print(f"whole at toy size: {time.monotonic() - begun:.0f} s")
    results: dict[str, Any] = json.loads(out.read_text())["results"]
    assert list(results) == NAMES
    failed = {name for name, result in results.items() if result["state"] != "measured"}
    assert failed == {"attention varlen", "attention flex", "attention flash"}
    figures = {name: result.get("figures", {}) for name, result in results.items()}
    losses = {name: each["loss"] for name, each in figures.items() if "loss" in each}
    assert len(losses) == 13 and min(losses.values()) == pytest.approx(max(losses.values()), rel=1e-3)
    assert figures["saves"] == {"sharded_checkpoints": 2, "equal_weights": True}
    assert figures["tests"]["skipped"] > 0
    assert "share" in (tmp_path / "gpu.trace.txt").read_text()
    lines = capfd.readouterr().out.splitlines()
    assert [line.partition(" | ")[0] for line in lines[: len(NAMES)]] == NAMES
    assert main(["--toy", "--out", str(out)]) == 0
    assert capfd.readouterr().out == f"{len(NAMES)} cases were there already (--again measures them once more)\n"
    assert json.loads(out.read_text())["results"] == results
    assert main(["--table", str(out)]) == 0
    assert "| two sharded saves and a resume with equal weights | 2 saved, equal weights | reached |" in (
        capfd.readouterr().out
    )
