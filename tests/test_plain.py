"""Settings that are made in Python: of the types that they say, whole, and as plain values again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from callbacks.sampled_clips import SampledClips
from callbacks.source_loss import SourceLoss
from data_modules.config import DataConfig, SourceConfig
from data_modules.pixel_data import PixelDataModule
from data_modules.token_data import TokenDataModule
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.errors import ConfigError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig, tube_mask
from lumos_pl.models.config import ComputeConfig, ModelConfig
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.settings.plain import from_plain, to_plain
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.refusals import refused

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
]


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
