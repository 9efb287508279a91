"""What a GPU would refuse or wait for, on fake CUDA tensors: compared with the table in docs/PERFORMANCE.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.data import DataLoader

from callbacks import throughput
from callbacks.build import build_callbacks
from callbacks.config import CallbackConfig
from callbacks.progress import StepProgressBar
from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import PackedBatch, pack
from lumos_pl.layout import LayoutConfig, TokenLayout, TokenSequence
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig
from lumos_pl.models import attention_backend, flex_attention
from lumos_pl.models.config import AttentionBackend, ModelConfig, Recomputed
from lumos_pl.models.flex_attention import WARPS_AT_64, FlexAttention
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.module import LumosModule
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.reconstruction import PixelBatch
from lumos_pl.tokenizers.reconstruction_loss import ReconstructionConfig
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.fake_cuda import FakeCuda, Fault

MakeSequence = Callable[..., TokenSequence]
SHAPES = [(3, 2, 3, 5), (1, 4, 2, 30), (2, 2, 2, None)]  # latent frames, rows, cols, text
STEPS, LOG_EVERY = 5, 3
SOURCES = ("even", "odd")
SECTION = "## Where the host waits for the GPU"


@cache
def documented(when: str) -> list[Fault]:
    """The rows of the table for `when`, each an operation and the function of the project that it is in."""
    text = (Path(__file__).parents[1] / "docs" / "PERFORMANCE.md").read_text()
    section = text[text.index(SECTION) :].split("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if line.startswith("| `")]
    return [Fault(where.strip("`"), what) for where, what, occasion, _ in rows if occasion == when]


def check(waits: Iterable[Fault], *occasions: str) -> None:
    """They are what the table has for these occasions, at whatever number."""
    found, expected = set(waits), {fault for when in occasions for fault in documented(when)}
    unlisted, gone = sorted(found - expected), sorted(expected - found)
    assert not unlisted, f"docs/PERFORMANCE.md does not list {unlisted}"
    assert not gone, f"docs/PERFORMANCE.md still lists {gone}"


@pytest.fixture
def gpu() -> Iterator[FakeCuda]:
    with FakeCuda() as gpu:
        yield gpu


# -- a trainer on it -------------------------------------------------------------------------------


class FakeAccelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


class OneOfMany(SingleDeviceStrategy):
    """Says that it waits where Lightning's strategies of several processes do: they reduce behind a barrier."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__(device=gpu.device, accelerator=FakeAccelerator())
        self.gpu = gpu

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        self.gpu.wait("barrier of all ranks")
        return tensor


@dataclass
class Watch(Callback):
    """What the host waited for between the starts of two training batches, by the step; and in a validation."""

    gpu: FakeCuda
    steps: list[list[Fault]] = field(default_factory=list)
    validation: list[Fault] = field(default_factory=list)

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append(list(self.gpu.waits))
        self.gpu.waits.clear()

    def on_validation_start(self, *_: Any) -> None:
        self.gpu.waits.clear()

    def on_validation_end(self, *_: Any) -> None:
        self.validation = list(self.gpu.waits)
        self.gpu.waits.clear()


def make_trainer(gpu: FakeCuda, folder: Path, callbacks: list[Callback], *, mixed: bool) -> tuple[Trainer, Watch]:
    watch = Watch(gpu)
    trainer = Trainer(
        strategy=OneOfMany(gpu),
        plugins=[MixedPrecision("bf16-mixed", device="cuda")] if mixed else [],
        callbacks=[watch, *callbacks],
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        max_epochs=-1,
        max_steps=STEPS,
        log_every_n_steps=LOG_EVERY,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    return trainer, watch


def check_steps(watch: Watch, *, logging: str) -> None:
    """Every step but the first ones, which set things up, waits as documented."""
    assert not watch.gpu.mixed, watch.gpu.mixed
    after_step = dict(enumerate(watch.steps))  # [0]: before the first
    assert len(after_step) == STEPS
    for step in range(2, STEPS):
        waits = after_step[step]
        if step % LOG_EVERY:
            check(waits, "a step")
            assert len(waits) == len(set(waits)), f"some of them more than once: {waits}"
        else:
            check(waits, "a step", logging)


# -- Lumos-1 ---------------------------------------------------------------------------------------


def make_module(layout: TokenLayout, attention: AttentionBackend, **compute: Any) -> LumosModule:
    model = ModelConfig(size="debug", attention=attention, **compute)
    vocabulary = LayoutConfig(preset="compact", codebook_size=layout.codebook_size)
    return LumosModule(model, vocabulary, loss=LossConfig(chunk_size=16), optimizer=OptimizerConfig(ema_decay=0.9))


def as_loaded(make_sequence: MakeSequence, layout: TokenLayout, n: int = STEPS) -> DataLoader[PackedBatch]:
    """Batches of images and of videos in turn, in pinned memory."""
    batches = []
    for number in range(n):
        shapes = [(1, *shape[1:]) for shape in SHAPES] if number % 2 else SHAPES
        sequences = [make_sequence(*shape, seed=number) for shape in shapes]
        batches.append(
            pack(sequences, [f"{SOURCES[number % 2]}/{number}/{i}" for i in range(len(shapes))], layout).pin_memory()
        )
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def mixed_kernel(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    """In place of a kernel that only a GPU has: depends on everything, wrongly."""
    return q + k.mean() + v.mean()


def flex_kernel(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, **_: Any) -> Tensor:
    index = torch.arange(q.shape[2], device=q.device)
    block_mask.mask_mod(index[:1], index[:1], index, index)
    for name in "kv_num_blocks", "kv_indices", "q_num_blocks", "full_q_indices":
        assert getattr(block_mask, name).is_cuda
    return mixed_kernel(q, k, v)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the kernels of `varlen` and `flex`."""
    monkeypatch.setitem(attention_backend.KERNELS, "varlen", lambda: mixed_kernel)
    monkeypatch.setattr(flex_attention, "kernel", lambda _: flex_kernel)


def fit(
    gpu: FakeCuda,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: LightningModule,
    *loaders: Any,
    mixed: bool = False,
) -> Watch:
    monkeypatch.setattr(throughput, "WARMUP_STEPS", 1)
    monkeypatch.setattr(_AcceleratorConnector, "is_distributed", True)  # so that Lightning reduces
    config = CallbackConfig(log_every_n_steps=LOG_EVERY, sample_grid_every_n_steps=0, heatmap_every_n_steps=0)
    callbacks: list[Callback] = [StepProgressBar(LOG_EVERY)]
    if isinstance(module, LumosModule):
        callbacks = build_callbacks(config, joint=True, sources=SOURCES)
    trainer, watch = make_trainer(gpu, folder, callbacks, mixed=mixed)
    trainer.fit(module, *loaders)
    return watch


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("attention", "mixed", "recomputed"),
    [("sdpa", False, "none"), ("flex", True, "full"), ("varlen", True, "selective")],
)
def test_a_training_step_waits_where_the_documentation_says(
    attention: AttentionBackend,
    mixed: bool,
    recomputed: Recomputed,
    gpu: FakeCuda,
    kernels: None,
    layout: TokenLayout,
    make_sequence: MakeSequence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make_module(layout, attention, activation_checkpointing=recomputed)
    watch = fit(gpu, tmp_path, monkeypatch, module, as_loaded(make_sequence, layout), mixed=mixed)
    check_steps(watch, logging="a logging")


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("planted", "seen"),
    [
        (lambda states: states * states.sum().item(), "what='item'"),
        (lambda states: states[torch.arange(len(states))], "what='index on the CPU'"),
        (lambda states: states + torch.zeros(len(states), 1), "what='add'"),
    ],
)
def test_a_planted_fault_fails_the_test(
    planted: Callable[[Tensor], Tensor],
    seen: str,
    gpu: FakeCuda,
    layout: TokenLayout,
    make_sequence: MakeSequence,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = make_module(layout, "sdpa")
    states = module.states_at_targets
    monkeypatch.setattr(module, "states_at_targets", lambda batch: planted(states(batch)))
    watch = fit(gpu, tmp_path, monkeypatch, module, as_loaded(make_sequence, layout))
    with pytest.raises(AssertionError, match=rf"lumos_pl/module.py:LumosModule._step', {seen}"):
        check_steps(watch, logging="a logging")


@pytest.mark.seconds
def test_a_validation_waits_where_the_documentation_says(
    gpu: FakeCuda, layout: TokenLayout, make_sequence: MakeSequence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = [as_loaded(make_sequence, layout, n) for n in (STEPS, 4)]
    watch = fit(gpu, tmp_path, monkeypatch, make_module(layout, "sdpa"), *loaders, mixed=True)
    assert gpu.mixed == []
    check(watch.validation, "a validation")


def test_a_prediction_does_not_wait(gpu: FakeCuda, layout: TokenLayout, make_sequence: MakeSequence) -> None:
    module = make_module(layout, "sdpa").to(gpu.device)
    module.configure_model()
    (packed, *_) = as_loaded(make_sequence, layout)
    batch = module.on_before_batch_transfer(packed, 0)
    with gpu.watch():
        codes = module.predict_codes(batch.to(gpu.device))
    assert codes.is_cuda and len(codes) == len(batch.target_codes)
    assert gpu.waits == [] and gpu.mixed == []


# -- generation ------------------------------------------------------------------------------------


def requests(codebook: int) -> list[GenerationRequest]:
    given = torch.randint(codebook, (1, 2, 3), generator=torch.Generator().manual_seed(0))
    return [
        GenerationRequest(
            text_ids=(1, 2), latent_frames=3, rows=2, cols=3, duration=1, fps=12, seed=1, given_codes=given
        ),
        GenerationRequest(text_ids=None, latent_frames=2, rows=3, cols=2, duration=1, fps=12, seed=2),
    ]


@pytest.mark.parametrize(
    ("restriction", "a_step"),
    [
        ({}, "a step of sampling"),
        ({"top_k": 5, "given_context": "partial"}, "a step of sampling"),
        ({"top_p": 0.9}, "a step of sampling with top_p"),
    ],
)
def test_sampling_waits_where_the_documentation_says(
    restriction: dict[str, Any],
    a_step: str,
    gpu: FakeCuda,
    layout: TokenLayout,
    make_decoder: Callable[..., LumosTransformer],
) -> None:
    net = make_decoder().to(gpu.device)
    config = SamplingConfig(steps=4, guidance=3.0, **restriction)
    steps: list[list[Fault]] = []

    def on_step(done: int, in_all: int) -> None:
        steps.append(list(gpu.waits))
        gpu.waits.clear()

    with gpu.watch():
        clips = generate(net, layout, requests(layout.codebook_size), config, on_step=on_step)
    assert [clip.is_cuda for clip in clips] == [False, False] and gpu.mixed == []
    assert len(steps) == 2 * 4  # of two frames
    for waits in steps:
        check(waits, a_step)
    check(gpu.waits, "a clip")


# -- the tokenizer ---------------------------------------------------------------------------------


@pytest.mark.seconds
def test_training_a_tokenizer_waits_where_the_documentation_says(
    gpu: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TokenizerConfig(levels=[5, 5], width=16, patch_width=8, blocks=1)
    module = TokenizerModule(config, ReconstructionConfig(), OptimizerConfig())
    frames = torch.randint(256, (2, 5, 16, 16, 3), dtype=torch.uint8).pin_memory()
    loader: Any = DataLoader([PixelBatch(frames, ["a", "b"])] * STEPS, batch_size=None)  # type: ignore[arg-type]
    watch = fit(gpu, tmp_path, monkeypatch, module, loader, loader, mixed=True)
    check_steps(watch, logging="a logging of a tokenizer")
    check(watch.validation, "a validation of a tokenizer")


# -- parts -----------------------------------------------------------------------------------------


def test_a_batch_is_pinned_where_it_is_not_and_comes_back_whole(
    gpu: FakeCuda, layout: TokenLayout, make_sequence: MakeSequence
) -> None:
    packed = pack([make_sequence()], ["a"], layout)
    batch = hide_tokens(packed, layout, MaskConfig(), seed=0)
    moved = batch.to(gpu.device)
    assert moved.inputs.is_cuda and moved.target_frames.is_cuda and gpu.waits == []
    back = moved.to("cpu")
    assert torch.equal(back.inputs, batch.inputs) and gpu.mixed == []  # reading what has not arrived would be noted
    assert {fault.what for fault in gpu.waits} == {"copy to the CPU"}


@pytest.mark.parametrize(("head_dim", "options"), [(64, WARPS_AT_64), (128, None)])
def test_flex_asks_for_more_warps_where_the_default_spills(
    head_dim: int, options: dict[str, Any] | None, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def kernel(q: Tensor, *_: Any, kernel_options: Any, **__: Any) -> Tensor:
        asked.append(kernel_options)
        return q

    monkeypatch.setattr(flex_attention, "kernel", lambda _: kernel)
    spans = [SequenceSpans(prefix=3, latent_frames=1, rows=1, cols=1)]
    x = torch.ones(spans[0].length, 2, head_dim, device=gpu.device)
    assert FlexAttention(spans, gpu.device)(0, x, x, x).shape == x.shape
    assert asked == [options]
