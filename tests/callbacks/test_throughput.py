import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import throughput
from callbacks.throughput import WARMUP_STEPS, Throughput
from tests.callbacks.tiny_run import TinyModule, events, loader, make_batch, make_trainer, scalars
from tests.models import counted_flops as flops

BATCHES = [make_batch(f"t{i}", [(2, 4, 4)] * (1 + i * i % 7)) for i in range(24)]
TOKENS = [batch.tokens.numel() for batch in BATCHES]


class TimedModule(TinyModule):
    """Every training batch takes a second of the clock that it replaces, a validation batch a hundred."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seconds = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.seconds)

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
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(len(seconds)))
    monkeypatch.setattr(throughput, "data_sheet_flops", lambda *_: int(1e9))
    monkeypatch.setattr(module, "on_before_batch_transfer", lambda batch, _: seconds.append(batch) or batch)
    trainer = make_trainer(tmp_path, [Throughput(2)], steps=2, accumulate_grad_batches=2)
    total = flops.counted(lambda: trainer.fit(module, DataLoader(batches, batch_size=None)))
    useful = total - sum(flops.recomputed_flops(module, batch, recomputed) for batch in batches)
    assert scalars(tmp_path, "throughput/mfu") == pytest.approx({1: useful / 4 / 1e9}, rel=0.01)
