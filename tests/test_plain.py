"""Settings that are made in Python: of the types that they say, whole, and as plain values again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.caption_fidelity import CaptionFidelity
from callbacks.frame_loss_balance import FrameLossBalance
from callbacks.jsonl_logger import JsonlLogger
from callbacks.kind_loss import KindLoss
from callbacks.sample_grid import SampleGrid
from callbacks.sampled_clips import SampledClips
from callbacks.source_loss import SourceLoss
from callbacks.throughput import Throughput
from data_modules.config import DataConfig, SourceConfig
from data_modules.pixel_data import PixelDataConfig, PixelDataModule
from data_modules.token_data import TokenDataModule
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.tokenize import tokenize_media
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.errors import ConfigError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig, tube_mask
from lumos_pl.models.config import ComputeConfig, ModelConfig
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.settings.plain import check_texts, from_plain, to_plain
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.refusals import refused

LAYOUT = LayoutConfig().build()

ODD: list[tuple[Callable[[], object], str]] = [
    (lambda: SamplingConfig(given_context="hidden"), "sampling.given_context"),  # type: ignore[arg-type]
    (lambda: SamplingConfig(greedy="no"), "sampling.greedy"),  # type: ignore[arg-type]
    (lambda: SamplingConfig(steps=2.5), "sampling.steps"),  # type: ignore[arg-type]
    (lambda: ClipFormat(frames=5.5), "clip.frames"),  # type: ignore[arg-type]
    (lambda: ModelConfig(size="big"), "model.size"),  # type: ignore[arg-type]
    (lambda: ComputeConfig(attention="fast"), "model.attention"),  # type: ignore[arg-type]
    (lambda: AdapterConfig(kind="LoRA"), "adapter.kind"),  # type: ignore[arg-type]
    (lambda: AdapterConfig(kind="lora", targets="q_proj"), "adapter.targets"),  # type: ignore[arg-type]
    (lambda: LossConfig(mean_over="samples"), "loss.mean_over"),  # type: ignore[arg-type]
    (lambda: OptimizerConfig(schedule="cosin"), "optimizer.schedule"),  # type: ignore[arg-type]
    (lambda: MaskConfig(kind=tube_mask), "mask.kind"),  # type: ignore[arg-type]
    (lambda: MaskConfig(other="random", other_share=0.5), "mask.other_share"),  # type: ignore[arg-type]
    (lambda: TokenizerConfig(padding="ones"), "tokenizer.padding"),  # type: ignore[arg-type]
    (lambda: TokenizerConfig(levels="8,6,5"), "tokenizer.levels"),  # type: ignore[arg-type]
    (lambda: TokenizerModule(start="zeros"), "start"),  # type: ignore[arg-type]
    (lambda: DataConfig(kind="films"), "data.kind"),  # type: ignore[arg-type]
    (lambda: DataConfig(root=Path("tokens")), "data.root"),  # type: ignore[arg-type]
    (lambda: DataConfig(image={"batch_size": 2}), "data.image"),  # type: ignore[arg-type]
    (lambda: DataConfig(video=SourceConfig(batch_size=2.5)), "data.video.batch_size"),  # type: ignore[arg-type]
    (lambda: TokenDataModule({"root": "x"}, LayoutConfig().build()), "config"),  # type: ignore[arg-type]
    (lambda: TokenDataModule(DataConfig(), LayoutConfig()), "layout"),  # type: ignore[arg-type]
    (lambda: PixelDataModule({"root": "x"}, (4, 8, 8)), "config"),  # type: ignore[arg-type]
    (lambda: SampledClips("a red circle"), "prompts"),
    (lambda: SampledClips(["a red circle", 3]), "prompts[1]"),  # type: ignore[list-item]
    (lambda: SourceLoss("film"), "names"),
    (lambda: SampledClips(["a red circle"], clip={"frames": 5}), "clip"),  # type: ignore[arg-type]
    (lambda: SampledClips(["a red circle"], every_n_steps=-1), "every_n_steps"),
    (lambda: FrameLossBalance("10"), "every_n_steps"),  # type: ignore[arg-type]
    (lambda: FrameLossBalance(10, 0.5), "heatmap_every_n_steps"),  # type: ignore[arg-type]
    (lambda: KindLoss(0), "every_n_steps"),
    (lambda: SampleGrid(10, True), "max_samples"),
    (lambda: Throughput(None), "every_n_steps"),  # type: ignore[arg-type]
    (lambda: JsonlLogger(None), "path"),  # type: ignore[arg-type]
    (lambda: CaptionFidelity(2.5, WorldConfig()), "captions"),  # type: ignore[arg-type]
    (lambda: PixelDataModule(PixelDataConfig(root="x"), 8), "strides"),  # type: ignore[arg-type]
    (lambda: TokenDataModule(DataConfig(), LAYOUT, max_length=-3), "max_length"),
    (lambda: TokenDataModule(DataConfig(), LAYOUT, max_length="long"), "max_length"),  # type: ignore[arg-type]
    (lambda: TokenDataModule(DataConfig(), LAYOUT, world={"train": 4}), "world"),  # type: ignore[arg-type]
    (lambda: TokenizeSettings(size=32), "--size"),  # type: ignore[arg-type]
    (lambda: TokenizeSettings(frames=9.5), "--frames"),  # type: ignore[arg-type]
    (lambda: TokenizeSettings(where=3), "--where"),  # type: ignore[arg-type]
    (lambda: tokenize_media(None, "out", "embedded", TokenizeSettings()), "source"),  # type: ignore[arg-type]
    (lambda: tokenize_media("videos", "out", None, TokenizeSettings()), "tokenizer_source"),  # type: ignore[arg-type]
    (lambda: tokenize_media("videos", "out", "embedded", {}), "settings"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("steps", [True, "2", None, torch.tensor(2)], ids=repr)
def test_what_is_no_number_is_not_said_to_be_out_of_range(steps: Any) -> None:
    """A tensor of 2 is between 1 and a million, and the message would name the wrong cause."""
    with refused(ConfigError, where="sampling.steps", expected="int"):
        SamplingConfig(steps=steps)


def test_texts_of_numpy_are_texts() -> None:
    texts = check_texts(np.array(["a red circle"]), "prompts")
    assert texts == ["a red circle"] and type(texts[0]) is str


@pytest.mark.parametrize(("make", "where"), ODD, ids=[where for _, where in ODD])
def test_a_value_of_another_type_is_refused_where_it_is_given(make: Callable[[], object], where: str) -> None:
    """A wrong word would stand for another one, silently, and one text for a list of its letters."""
    with refused(ConfigError, where=where):
        make()


def test_a_misspelt_field_of_settings_is_told_with_the_nearest() -> None:
    with refused(ConfigError, where="optimizer", got="warm_up_steps", fix="did you mean warmup_steps?"):
        from_plain(OptimizerConfig, {"warm_up_steps": 2}, "optimizer")


def test_numbers_of_numpy_are_numbers() -> None:
    config = OptimizerConfig(lr=np.logspace(-3, -2, 2)[0], weight_decay=np.float32(0.5), warmup_steps=np.int64(7))
    plain = to_plain(config)
    assert {name: type(value) for name, value in plain.items()} == {
        name: type(value) for name, value in asdict(OptimizerConfig()).items()
    }
    assert (plain["lr"], plain["weight_decay"], plain["warmup_steps"]) == (pytest.approx(1e-3), 0.5, 7)
