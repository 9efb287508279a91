import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import throughput
from callbacks.throughput import WARMUP_STEPS, Throughput
from lumos_pl.batch import MaskedBatch
from tests.callbacks.tiny_run import TinyModule, events, loader, make_batch, make_trainer, scalars
from tests.models import counted_flops as flops
from tests.processes import ranks

BATCHES = [make_batch(f"t{i}", [(2, 4, 4)] * (1 + i * i % 7)) for i in range(24)]
TOKENS = [batch.tokens.numel() for batch in BATCHES]


class TimedModule(TinyModule):
    """Every training batch takes a second of the clock that it replaces, a validation batch a hundred."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seconds = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.seconds)

    def training_step(self, batch, batch_idx):
        self.seconds += 1
        return super().training_step(batch, batch_idx)

    def on_validation_batch_end(self, *args):
        self.seconds += 100


def run(folder, monkeypatch, *, steps, val=(), **kwargs):
    meter = Throughput(every_n_steps=4)
    trainer = make_trainer(folder, [meter], steps=steps, accumulate_grad_batches=2, **kwargs)
    trainer.fit(TimedModule(monkeypatch), loader(BATCHES), loader(val))
    return meter


def test_tokens_per_second_of_each_interval_and_of_the_run(tmp_path, monkeypatch):
    meter = run(tmp_path, monkeypatch, steps=11, val=BATCHES[:1], val_check_interval=6)
    rates = {3: sum(TOKENS[:8]) / 8, 7: sum(TOKENS[10:16]) / 6, 10: sum(TOKENS[16:22]) / 6}  # step 4 ends the warm-up
    assert scalars(tmp_path, "throughput/tokens_per_second") == pytest.approx(rates)
    assert meter.summary() == {"tokens_per_second": pytest.approx(sum(TOKENS[2 * WARMUP_STEPS : 22]) / 12)}


def test_utilisation_is_left_out_where_the_peak_is_unknown(tmp_path, monkeypatch):
    meter = run(tmp_path, monkeypatch, steps=4)
    assert "throughput/mfu" not in events(tmp_path).Tags()["scalars"]
    assert meter.summary() == {"tokens_per_second": None}


def test_utilisation_is_the_share_of_the_peak(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(throughput, "data_sheet_flops", lambda _, dtype: asked.append(dtype) or int(4e9))
    run(tmp_path, monkeypatch, steps=4, precision="bf16-mixed")
    assert asked == [torch.bfloat16]
    assert scalars(tmp_path, "throughput/mfu") == pytest.approx({3: 1e6 * sum(TOKENS[:8]) / 8 / 4e9})


@pytest.mark.parametrize("recomputed", ["none", "full"])
def test_utilisation_is_of_the_products_that_really_run_without_those_that_run_again(recomputed, tmp_path, monkeypatch):
    """A run of two steps of two batches, in four seconds of a clock that ticks with the batches."""
    module = flops.make_module(recomputed)
    batches = [flops.make_batch((latent_frames, 6, 6)) for latent_frames in (3, 1, 2, 3)]
    seconds = []
    monkeypatch.setattr("time.perf_counter", lambda: float(len(seconds)))
    monkeypatch.setattr(throughput, "data_sheet_flops", lambda *_: int(1e9))
    monkeypatch.setattr(module, "on_before_batch_transfer", lambda batch, _: seconds.append(batch) or batch)
    trainer = make_trainer(tmp_path, [Throughput(2)], steps=2, accumulate_grad_batches=2)
    total = flops.counted(lambda: trainer.fit(module, DataLoader(batches, batch_size=None)))
    useful = total - sum(flops.recomputed_flops(module, batch, recomputed) for batch in batches)
    assert scalars(tmp_path, "throughput/mfu") == pytest.approx({1: useful / 4 / 1e9}, rel=0.01)


class Clock:
    """What tells the time instead of the system; work is what moves it."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Working(TinyModule):
    """Takes as long as is planned, batch by batch; a validation a hundred seconds."""

    def __init__(self, clock: Clock, planned: list[float]) -> None:
        super().__init__()
        self.clock, self.planned = clock, iter(planned)

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Any:
        self.clock.seconds += next(self.planned)
        return super().training_step(batch, batch_idx)

    def on_validation_batch_end(self, *args: Any) -> None:
        self.clock.seconds += 100


class Slow(list[MaskedBatch]):
    """Batches that take their time to come."""

    def __init__(self, batches: list[MaskedBatch], clock: Clock, seconds: float) -> None:
        super().__init__(batches)
        self.clock, self.each = clock, seconds

    def __iter__(self):
        for batch in super().__iter__():
            self.clock.seconds += self.each
            yield batch


def fit_by(clock: Clock, folder: Path, planned: list[float], batches: list[MaskedBatch], **kwargs: Any) -> None:
    with patch("time.perf_counter", clock):
        val = kwargs.pop("val", ())
        trainer = make_trainer(folder, [Throughput(every_n_steps=5)], default_root_dir=folder, **kwargs)
        trainer.fit(Working(clock, planned), loader(batches), loader(val))


def test_the_median_and_the_95th_percentile_of_the_steps_of_an_interval(tmp_path: Path) -> None:
    """Of two batches each; a validation after the third is no part of any."""
    planned = [*[1, 1], *[1, 2], *[1, 1], *[20, 20], *[2, 2], *[1.0] * 10]
    val = {"val": BATCHES[:1], "val_check_interval": 6}
    fit_by(Clock(), tmp_path, planned, BATCHES, steps=10, accumulate_grad_batches=2, **val)
    assert scalars(tmp_path, "throughput/step_seconds_median") == {4: 3, 9: 2}
    assert scalars(tmp_path, "throughput/step_seconds_p95") == {4: 40, 9: 2}


@pytest.mark.parametrize("each", [0.0, 3.0])
def test_the_share_of_the_time_that_batches_were_waited_for(each: float, tmp_path: Path) -> None:
    clock = Clock()
    fit_by(clock, tmp_path, [1.0] * 10, Slow(BATCHES, clock, each), steps=10)
    assert scalars(tmp_path, "throughput/data_wait_share") == {4: each / (1 + each), 9: each / (1 + each)}


def test_a_trainer_that_fits_again_waits_once_for_a_batch(tmp_path: Path) -> None:
    clock = Clock()
    with patch("time.perf_counter", clock):
        trainer = make_trainer(tmp_path, [Throughput(every_n_steps=5)], steps=5)
        for _ in range(2):
            trainer.fit(Working(clock, [1.0] * 5), loader(Slow(BATCHES, clock, 3.0)))
            trainer.fit_loop.epoch_loop.max_steps = 10
    first, second = scalars(tmp_path, "throughput/data_wait_share").values()
    assert first == 0.75 and 0.6 < second <= 0.75  # its first batch may have come before the loop asks for batches


def test_memory_of_the_process(tmp_path: Path) -> None:
    held = torch.ones(2**27)  # half a GiB
    fit_by(Clock(), tmp_path, [1.0] * 5, BATCHES, steps=5)
    logged = {tag.removeprefix("throughput/") for tag in events(tmp_path).Tags()["scalars"]}
    assert scalars(tmp_path, "throughput/host_gib")[4] > len(held) * 4 / 2**30
    assert not {name for name in logged if name.startswith(("gpu", "slowest", "restarts"))}


def test_how_often_a_run_was_started_again(tmp_path: Path) -> None:
    start = {"event": "start", "time": 1.5, "step": 0, "ranks": 1, "host": "a", "pid": 7}
    end = {"event": "end", "time": 2.5, "step": 3, "status": 143, "line": ""}
    lines = [json.dumps(one) for one in (start, end, start, start)]
    (tmp_path / "attempts.jsonl").write_text("\n".join([*lines[:2], "torn", *lines[2:], '{"event": "sta']))
    fit_by(Clock(), tmp_path, [1.0] * 5, BATCHES, steps=5)
    assert scalars(tmp_path, "throughput/restarts") == {4: 2}


def train_beside_others(folder: Path, forward: list[float], awaited: list[float], strategy: str) -> None:
    """As one of the ranks, each of which has its own clock and its own times for a batch."""
    rank, clock = int(os.environ["LOCAL_RANK"]), Clock()
    batches = Slow(BATCHES, clock, awaited[rank])
    quiet = {"use_distributed_sampler": False}
    fit_by(clock, folder, [forward[rank]] * 10, batches, steps=10, devices=len(forward), strategy=strategy, **quiet)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("forward", "awaited", "slowest", "behind"),
    [([1, 3, 1], [0, 0, 0], 1, 2), ([1, 1, 1], [1, 1, 6], 2, 5), ([2, 1, 2], [1, 5, 1], 1, 3)],
)
def test_the_slowest_rank_is_named_whether_it_computes_or_waits(
    forward: list[float], awaited: list[float], slowest: int, behind: float, tmp_path: Path
) -> None:
    ranks(3, train_beside_others, tmp_path, forward, awaited, "ddp")
    seconds = forward[0] + awaited[0]  # of a step, by the clock of rank 0
    assert scalars(tmp_path, "throughput/slowest_rank") == {4: slowest, 9: slowest}
    assert scalars(tmp_path, "throughput/slowest_rank_behind")[9] == pytest.approx(behind / seconds)
    assert scalars(tmp_path, "throughput/data_wait_share")[9] == pytest.approx(max(awaited) / seconds)
