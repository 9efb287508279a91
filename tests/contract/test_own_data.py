"""Samples of somebody's own, in a plain Dataset and DataLoader."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lumos_pl import LumosModule, OptimizerConfig, TokenSequence, pack
from lumos_pl.batch import MaskedBatch
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import LayoutConfig
from lumos_pl.masking import MaskConfig
from tests.contract.conftest import LAYOUT, MakeTrainer, make_module, same_weights
from tests.refusals import refused


def clip(number: int = 0, **changes: Any) -> TokenSequence:
    generator = torch.Generator().manual_seed(number)
    codes = torch.randint(0, 1000, (2, 2, 2), generator=generator)
    return TokenSequence(**{"text_ids": tuple(b"a clip"), "codes": codes, "duration": 1, "fps": 12, **changes})


def loader(collate: Any = None) -> DataLoader[Any]:
    clips = [clip(number) for number in range(8)]
    return DataLoader(clips, batch_size=2, collate_fn=collate or partial(pack, layout=LAYOUT.build()))  # type: ignore[arg-type]


class Inputs(Callback):
    """What the decoder saw in each step, and how far the training was."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.progress: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: MaskedBatch, _: int) -> None:
        assert isinstance(module, LumosModule)
        self.seen.append(batch.inputs)
        self.progress.append(module.progress)


def test_a_loader_of_ones_own_has_other_masks_in_each_epoch(trainer: MakeTrainer) -> None:
    inputs, again = Inputs(), Inputs()
    trainer(inputs, max_epochs=2).fit(make_module(), loader(), loader())
    first, second = inputs.seen[:4], inputs.seen[4:]
    assert [tensor.shape for tensor in first] == [tensor.shape for tensor in second]
    assert not any(torch.equal(*both) for both in zip(first, second, strict=True))
    trainer(again, max_epochs=2, folder="again").fit(make_module(), loader(), loader())
    assert all(torch.equal(*both) for both in zip(inputs.seen, again.seen, strict=True))


@pytest.mark.seconds
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 12}])
def test_a_training_saved_at_the_end_of_an_epoch_goes_on_with_the_next(
    limits: dict[str, int], trainer: MakeTrainer, tmp_path: Any
) -> None:
    whole, resumed = make_module(), make_module()
    trainer(folder="whole", **limits).fit(whole, loader())
    for step in 4, 8:
        resumed, own = make_module(), trainer(folder="resumed", **limits)
        own.fit(resumed, loader(), ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert own.global_step == 12 and same_weights(whole, resumed)


def test_the_schedule_and_the_progress_end_with_the_epochs_of_the_data(trainer: MakeTrainer) -> None:
    schedule = OptimizerConfig(lr=1.0, warmup_steps=0, schedule="linear", min_lr_ratio=0.0)
    inputs, module = Inputs(), make_module(optimizer=schedule, mask=MaskConfig(other="random"))
    trainer(inputs, max_epochs=2, accumulate_grad_batches=2).fit(module, loader())
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.0)  # type: ignore[union-attr]
    assert inputs.progress[::2] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize("batch", [{"codes": torch.zeros(2)}, [torch.zeros(2)], torch.zeros(2), ["a caption"]])
def test_what_is_no_batch_of_samples_is_refused(batch: Any, stage: str, trainer: MakeTrainer) -> None:
    with refused(ConfigError, where="batch", expected="PackedBatch"):
        getattr(trainer(max_steps=1), stage)(make_module(), loader(lambda _: batch))


def test_ids_and_lengths_that_the_decoder_does_not_have_are_refused(trainer: MakeTrainer) -> None:
    other = LayoutConfig(preset="compact", codebook_size=2000).build()
    with refused(DataError, expected="0 to 1391, layout compact"):
        strange = partial(pack, layout=other)
        trainer(max_steps=1).fit(make_module(), loader(lambda _: strange([clip(codes=torch.full((1, 2, 2), 1999))])))
    with refused(DataError, expected="at most 512 tokens, model.max_length"):
        long = pack([clip(text_ids=(1,) * 600)], layout=LAYOUT.build())
        trainer(max_steps=1).fit(make_module(), loader(lambda _: long))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"codes": torch.rand(2, 2, 2)}, "codes"),
        ({"codes": np.zeros((2, 2, 2), int)}, "codes"),
        ({"text_ids": "abc"}, "text position 0"),
        ({"duration": 1.5}, "duration"),
        ({"fps": "8"}, "fps"),
    ],
)
def test_a_sequence_of_other_types_is_refused(changes: dict[str, Any], where: str) -> None:
    with refused(DataError, where=where):
        pack([clip(**changes)], layout=LAYOUT.build())


def test_what_cannot_be_packed_is_refused() -> None:
    layout = LAYOUT.build()
    with refused(ConfigError, where="layout"):
        pack([clip()], layout=LAYOUT)  # type: ignore[arg-type]
    for sequences, where in ([], "sequences"), (clip(), "sequences"), ([3], "sequences[0]"):
        with refused(ConfigError, where=where):
            pack(sequences, layout=layout)  # type: ignore[arg-type]
    for names, kind in (["a"], DataError), ("ab", ConfigError):
        with refused(kind, where="appearances"):
            pack([clip(), clip()], names, layout)
    for n_given in 2, -1:
        with refused(DataError, where="n_given"):
            pack([clip()], ["a"], layout, n_given=[n_given])


def test_tokens_that_are_not_those_of_the_spans_are_refused() -> None:
    module, batch = make_module(), pack([clip()], layout=LAYOUT.build())
    module.configure_model()
    for tokens in batch.tokens[:-1], batch.tokens[None], batch.tokens.float(), batch.tokens.tolist():
        with refused(DataError, where="tokens"):
            module(tokens, batch.spans)
    assert copy.deepcopy(batch).appearances == batch.appearances
