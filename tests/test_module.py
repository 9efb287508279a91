from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.errors import NumericError
from lumos_pl.layout import LayoutConfig, TokenLayout, TokenSequence
from lumos_pl.machinery.devices import data_sheet_flops
from lumos_pl.masking import MaskConfig
from lumos_pl.models.attention import Attention, BlockCausalAttention
from lumos_pl.models.config import ModelConfig
from lumos_pl.module import LumosModule
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.spans import SequenceSpans
from tests.driven import driven
from tests.fake_cuda import FakeCuda
from tests.processes import on_ranks
from tests.refusals import refused


def vocabulary(layout: TokenLayout) -> LayoutConfig:
    return LayoutConfig(preset="compact", codebook_size=layout.codebook_size)


@pytest.fixture
def logged() -> dict[str, float]:
    """What `module` logs."""
    return {}


@pytest.fixture
def module(layout: TokenLayout, logged: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> LumosModule:
    """After two accumulated batches with losses 1 and 3; every gradient is 1."""
    module = LumosModule(ModelConfig(size="debug"), vocabulary(layout), optimizer=OptimizerConfig(grad_clip=0.5))
    module.configure_model()
    driven(module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.loss_to_minimize(torch.tensor(1.0), 10, ("a",))
    module.loss_to_minimize(torch.tensor(3.0), 30, ("b",))
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    return module


def gradient_norm(module: LumosModule) -> float:
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item()


def test_gradients_are_clipped_and_the_whole_steps_loss_logged(module: LumosModule, logged: dict[str, float]) -> None:
    before = gradient_norm(module)
    module.configure_gradient_clipping(None)
    assert gradient_norm(module) == pytest.approx(0.5, rel=1e-4)
    assert logged == {"loss/train": 2.0, "grad_norm": pytest.approx(before)}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_their_samples(bad: float, module: LumosModule) -> None:
    gradient = next(module.parameters()).grad
    assert gradient is not None
    gradient.fill_(bad)
    with refused(NumericError, where="step 0, samples a, b"):
        module.configure_gradient_clipping(None)
    module.loss_to_minimize(torch.tensor(bad), 30, ("b",))
    with refused(NumericError, where="step 0, samples b"):
        module.configure_gradient_clipping(None)


@pytest.mark.parametrize("looks", ["configure_gradient_clipping", "on_save_checkpoint", "on_train_end"])
def test_where_the_update_skips_itself_the_run_stops_a_step_later_or_before_anything_is_saved(
    looks: str, module: LumosModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumos_pl.optimized_module.skip_unless_finite", lambda *_: True)
    gradient = next(module.parameters()).grad
    assert gradient is not None
    gradient.fill_(math.nan)
    module.configure_gradient_clipping(None)
    module.loss_to_minimize(torch.tensor(2.0), 1, ("of the next step",))
    gradient.fill_(1)
    with refused(NumericError, where="step 0, samples a, b"):
        getattr(module, looks)(*[{}] * (looks != "on_train_end"))


def _name_a_bad_loss(rank: int, world: int, folder: Path) -> None:
    module = OptimizedModule(OptimizerConfig(), seed=0)
    driven(module)
    module.weight = torch.nn.Parameter(torch.ones(1))
    module.weight.grad = torch.tensor([math.nan])  # of all ranks, as their gradients are
    module.loss_to_minimize(torch.tensor(math.nan if rank else 1.0), 1, [f"of rank {rank}"])
    with pytest.raises(NumericError) as error:
        module.configure_gradient_clipping(None)
    (folder / str(rank)).write_text(str(error.value))


def test_every_rank_names_the_sample_of_the_rank_whose_loss_is_bad(tmp_path: Path) -> None:
    on_ranks(2, _name_a_bad_loss, tmp_path, tmp_path)
    for rank in "01":
        assert "loss is not finite | step 0, samples of rank 1 |" in (tmp_path / rank).read_text()


def test_on_a_gpu_auto_is_what_was_measured_for_images_and_for_videos_and_is_said(
    layout: TokenLayout,
    make_sequence: Callable[..., TokenSequence],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = {"image": {"sdpa": 0.002, "varlen": 0.001}, "video": {"sdpa": 0.002, "varlen": 0.003}}
    computed: list[str] = []
    module = LumosModule(ModelConfig(size="debug"), vocabulary(layout))
    module.configure_model()
    kinds = {latent_frames: "image" if latent_frames == 1 else "video" for latent_frames in (1, 3)}

    def seconds_of(backend: str, spans: Sequence[SequenceSpans], *_: object) -> float:
        return times[kinds[spans[0].latent_frames]][backend]

    def compute(spans: Sequence[SequenceSpans], device: torch.device, dtype: torch.dtype, backend: str) -> Attention:
        computed.append(backend)
        return BlockCausalAttention(spans)

    monkeypatch.setattr("lumos_pl.module.candidates", lambda *_, **__: ["sdpa", "varlen"])
    monkeypatch.setattr("lumos_pl.module.attention_seconds", seconds_of)
    monkeypatch.setattr("lumos_pl.models.transformer.block_causal_attention", compute)
    with FakeCuda() as gpu:
        module.to(gpu.device)
        for latent_frames in 1, 3, 1, 3:
            packed = pack([make_sequence(latent_frames)], ["a"], layout)
            module.training_step(module.on_before_batch_transfer(packed, 0).to(gpu.device), 0)
    assert computed == ["varlen", "sdpa"] * 2
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "attention of images: varlen (ms a layer: sdpa 2.00, varlen 1.00)",
        "attention of videos: sdpa (ms a layer: sdpa 2.00, varlen 3.00)",
    ]


def test_the_peak_of_a_gpu_whose_name_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    cuda = torch.device("cuda")
    assert data_sheet_flops(cuda, torch.bfloat16) == pytest.approx(989.4e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H100 80GB HBM3")
    assert data_sheet_flops(cuda, torch.bfloat16) == pytest.approx(989.4e12, rel=1e-3)


@pytest.mark.parametrize("looks_at_once", [True, False])
def test_an_infinite_loss_stops_the_run_though_its_gradients_are_finite(
    looks_at_once: bool, module: LumosModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumos_pl.optimized_module.skip_unless_finite", lambda *_: not looks_at_once)
    module.loss_to_minimize(torch.tensor(math.inf), 30, ("bad",))
    gradient = next(module.parameters()).grad
    assert gradient is not None
    gradient.fill_(1)
    with refused(NumericError, where="step 0, samples bad"):
        module.configure_gradient_clipping(None)
        module.on_save_checkpoint({})


def test_a_gpu_leaves_out_the_update_of_an_infinite_loss(module: LumosModule, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.Tensor] = []
    monkeypatch.setattr("lumos_pl.optimized_module.skip_unless_finite", lambda _, number: told.append(number) or True)
    gradient = next(module.parameters()).grad
    assert gradient is not None
    gradient.fill_(1)
    module.loss_to_minimize(torch.tensor(math.inf), 30, ("bad",))
    module.configure_gradient_clipping(None)
    assert len(told) == 1 and not torch.isfinite(told[0])


def test_self_forcing_trains_on_codes_of_the_models_own(
    layout: TokenLayout, make_sequence: Callable[..., TokenSequence]
) -> None:
    """Of a batch as often as it says, the same ones every time."""
    model = ModelConfig(size="debug")
    own = LumosModule(model, vocabulary(layout), mask=MaskConfig(self_forcing=0.5))
    plain = LumosModule(model, vocabulary(layout))
    own.configure_model()
    plain.configure_model()
    driven(own)
    driven(plain)
    forced = 0
    for number in range(6):
        batch = own.on_before_batch_transfer(pack([make_sequence()], [f"a{number}"], layout), 0)
        assert isinstance(batch, MaskedBatch)
        losses = [module.training_step(batch, number)["loss"].item() for module in (own, own, plain)]
        assert losses[0] == losses[1]
        forced += losses[0] != losses[2]
    assert 0 < forced < 6
