"""Training steps in Lightning's Trainer, as `lumos train` takes them: time, and memory beside the plan's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal
from unittest.mock import patch

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils.data import DataLoader

from bench.gpu.card import Figures, peak_flops
from bench.gpu.cases import RECOMPUTED
from bench.measure import watch_memory
from bench.model import MAX_LENGTH, draw_weights
from bench.training_step import hidden_as_in_training, loss_as_released, packed_clip
from experiments.plan.words import USABLE
from lumos_pl.batch import MaskedBatch, PackedBatch
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig, chunk_rows
from lumos_pl.machinery.devices import resolve_device
from lumos_pl.models import attention
from lumos_pl.models.config import AttentionBackend, ModelConfig, Placement, Recomputed, Size
from lumos_pl.models.memory import StepSettings, most_bytes, step_memory
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.module import LumosModule

MIB = 2**20
WARM_UP = 3  # steps: the optimizer's state, the choice of the attention, compiled graphs


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """One kind of step in bf16 with fused AdamW, of one clip.

    Args:
        latent_frames, rows, cols: of the clip.
        codebook_size: of a small vocabulary; None: the released one.
        n_text: ids of the text.
        steps: that are timed.
        recompute: None: the least with which the step fits the card, by the plan.
        chunk_size: rows of logits at a time; None: as the device has it.
        cudnn: whether torch may take cuDNN's attention.
    """

    size: Size
    latent_frames: int
    rows: int
    cols: int
    codebook_size: int | None = None
    n_text: int
    steps: int = 0
    attention: AttentionBackend = "auto"
    compile: bool = False
    recompute: Recomputed | None = "none"
    chunk_size: int | None = None
    cudnn: bool = False
    way: Literal["ours", "release"] = "ours"

    @property
    def layout_config(self) -> LayoutConfig:
        return vocabulary(self.codebook_size)

    def clip(self, n_text: int | None = None) -> PackedBatch:
        """A clip with a text of so many ids, else as many as the setting says."""
        shape = (self.latent_frames, self.rows, self.cols)
        return packed_clip(self.layout_config.build(), shape, n_text=self.n_text if n_text is None else n_text)


def vocabulary(codebook_size: int | None) -> LayoutConfig:
    """A small one of so many codes; None: the released one."""
    return LayoutConfig() if codebook_size is None else LayoutConfig(preset="compact", codebook_size=codebook_size)


class ReleaseModule(LumosModule):
    """The same training, but for the loss computed as the release does."""

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        assert self.net is not None
        loss = loss_as_released(self.net, batch)
        return {"loss": self.loss_to_minimize(loss, len(batch.target_index), batch.appearances)}


class LeavingStrategy(SingleDeviceStrategy):
    """Leaves the model where it is: Lightning would bring it back to the host, which takes longer than the steps."""

    def teardown(self) -> None:
        pass


class StepClock(Callback):
    """Notes when each step is done: on a GPU by its own clock, so that it need not wait for the host.

    Args:
        on_warm: called once the steps are done that are not timed.
    """

    def __init__(self, device: str, on_warm: Callable[[], None]) -> None:
        self._device, self._on_warm = device, on_warm
        self._marks: list[Any] = []
        self.first_loss = torch.tensor(torch.nan)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.first_loss = outputs["loss"].detach()
        if batch_idx + 1 == WARM_UP:
            self._wait()
            self._on_warm()
        if batch_idx + 1 >= WARM_UP:
            self._marks.append(self._mark())

    def _mark(self) -> Any:
        if self._device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def seconds(self) -> list[float]:
        """Of each step that is timed."""
        self._wait()
        if self._device != "cuda":
            return [after - before for before, after in pairwise(self._marks)]
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self._marks)]


@dataclass(frozen=True)
class Taken:
    """Steps that were taken.

    Args:
        seconds: of each that was timed.
        loss: of the first of all: alike for all settings that compute alike.
    """

    module: LumosModule
    seconds: list[float]
    loss: float

    @property
    def picked(self) -> str | None:
        """What the module says of its choice of attention, if it chose."""
        return "; ".join(choice.describe() for choice in self.module.attention_of.values()) or None


def take_steps(
    setting: StepSetting, recompute: Recomputed, batches: Sequence[PackedBatch], on_warm: Callable[[], None]
) -> Taken:
    """Train a fresh model on these batches, the first `WARM_UP` of them untimed; `on_warm` is called after those."""
    device = resolve_device("auto")
    model = ModelConfig(
        size=setting.size,
        max_length=MAX_LENGTH,
        attention=setting.attention,
        compile=setting.compile,
        activation_checkpointing=recompute,
    )
    kind = ReleaseModule if setting.way == "release" else LumosModule
    module = kind(model, setting.layout_config, loss=LossConfig(chunk_size=setting.chunk_size))
    with patch.object(LumosTransformer, "init_weights", lambda net, seed: draw_weights(net)):
        module.to(device).configure_model()  # where the weights are drawn: Lightning would have a CPU do it
    clock = StepClock(device, on_warm)
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        strategy=LeavingStrategy(torch.device("cuda:0" if device == "cuda" else "cpu")),
        devices=1,
        precision="bf16-mixed",
        max_steps=len(batches),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    with cudnn_allowed(setting.cudnn), compiled_cheaply_on_a_cpu():
        trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        seconds = clock.seconds()
    return Taken(module, seconds, clock.first_loss.item())


def training_step(**settings: Any) -> Figures:
    """Median time of a step, its peak memory beside the plan's, and the loss of the first."""
    setting, device = StepSetting(**settings), resolve_device("auto")
    clip = setting.clip()
    recompute = setting.recompute or least_recomputed(setting, device)
    held_mib: float = 0.0
    peak_mib: Callable[[], float] = float

    def watch() -> None:
        nonlocal held_mib, peak_mib
        held_mib, peak_mib = watch_memory(device)

    taken = take_steps(setting, recompute, [clip] * (WARM_UP + setting.steps), watch)
    peak_bytes = peak_mib() * MIB
    batch, peak = hidden_as_in_training(clip, setting.layout_config.build()), peak_flops(device)
    seconds = statistics.median(taken.seconds)
    plan_bytes = None
    if setting.way == "ours":
        plan_bytes = planned_bytes(setting, recompute, device, n_targets=len(batch.target_index))
    return {
        "seconds": seconds,
        "tokens": len(batch.tokens),
        "tokens_per_s": len(batch.tokens) / seconds,
        "mfu": None if peak is None else taken.module.step_flops(batch) / seconds / peak,
        "peak_bytes": peak_bytes,
        "plan_bytes": plan_bytes,
        "step_bytes": peak_bytes - held_mib * MIB,
        "loss": taken.loss,
        "recompute": recompute,
        "picked": taken.picked,
        "times": taken.seconds,
    }


def ragged_steps(*, n_texts: Sequence[int], **settings: Any) -> Figures:
    """Times of single steps with ever other lengths of text: each for the first time, then once more."""
    setting = StepSetting(**settings)
    assert setting.recompute is not None
    ragged = [setting.clip(n_text) for n_text in n_texts]
    batches = [*([setting.clip()] * WARM_UP), *ragged, *ragged]
    taken = take_steps(setting, setting.recompute, batches, lambda: None)
    first, again = taken.seconds[: len(ragged)], taken.seconds[len(ragged) :]
    return {
        "seconds": statistics.median(first),
        "most_seconds": max(first),
        "spread": max(first) / statistics.median(first),
        "spread_again": max(again) / statistics.median(again),
        "picked": taken.picked,
        "times": first,
        "times_again": again,
    }


def planned_bytes(setting: StepSetting, recompute: Recomputed, device: str, *, n_targets: int) -> int:
    """What `lumos plan` expects a step with so many hidden visual tokens to hold at most."""
    settings = StepSettings(
        mixed=True,
        placement=Placement(recompute=recompute),
        strategy="single",
        cpu_offload=False,
        accumulate=1,
        optimizer="adamw",
        ema=False,
        chunk_size=chunk_rows(LossConfig(chunk_size=setting.chunk_size), device),
        cuda=device == "cuda",
    )
    model = ModelConfig(size=setting.size).build(setting.layout_config.build())
    n_tokens = len(setting.clip().tokens)
    return most_bytes(step_memory(model, settings, n_tokens=n_tokens, n_targets=n_targets))


def least_recomputed(setting: StepSetting, device: str) -> Recomputed:
    """The first kind that fits the card with all visual tokens hidden, as the plan reckons; `full` if none does."""
    if device != "cuda":
        return "none"
    usable = USABLE * torch.cuda.get_device_properties(0).total_memory
    n_targets = setting.latent_frames * setting.rows * setting.cols
    fitting = (kind for kind in RECOMPUTED if planned_bytes(setting, kind, device, n_targets=n_targets) <= usable)
    return next(fitting, "full")


@contextmanager
def cudnn_allowed(allowed: bool) -> Iterator[None]:
    """Let `attend` offer torch cuDNN's kernels too, which it would take first."""
    more = [SDPBackend.CUDNN_ATTENTION] if allowed else []
    with patch.object(attention, "CUDA_KERNELS", [*more, *attention.CUDA_KERNELS]):
        yield


@contextmanager
def compiled_cheaply_on_a_cpu() -> Iterator[None]:
    """Without a GPU, graphs are made but no kernels, for which a C++ compiler would take a minute."""
    if resolve_device("auto") == "cuda":
        yield
        return
    with patch("torch.compile", partial(torch.compile, backend="aot_eager")):
        yield
