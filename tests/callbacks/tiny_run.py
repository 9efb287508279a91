"""A run small enough to check every figure by hand: a module whose token losses are planted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import IterableDataset

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.layout import TokenSequence, compact_layout
from lumos_pl.masking import MaskConfig
from lumos_pl.seeding import generator

LAYOUT = compact_layout(codebook_size=240)


def make_batch(name: str, shapes: Sequence[tuple[int, int, int]], n_given: int = 0) -> MaskedBatch:
    """Random clips of the given [T, H, W], each frame hiding its own number of tokens."""
    names = [f"{name}/{i}" for i in range(len(shapes))]
    sequences = [
        TokenSequence(
            text_ids=(1, 2, 3),
            codes=torch.randint(LAYOUT.codebook_size, shape, generator=generator(0, "codes", name)),
            duration=1,
            fps=12,
        )
        for name, shape in zip(names, shapes, strict=True)
    ]
    packed = pack(sequences, names, LAYOUT, n_given=[n_given] * len(shapes))
    return hide_tokens(packed, LAYOUT, MaskConfig(kind="random", min_ratio=0.5), seed=0)


def planted_loss(batch: MaskedBatch) -> Tensor:
    """A loss for every target that differs between tokens, frames and batches, [M]."""
    return batch.target_frames + batch.target_codes / 240 + len(batch.tokens) / 100


def frame_means(batches: Iterable[MaskedBatch]) -> dict[int, float]:
    """The mean planted loss of each frame by its definition, token by token."""
    by_frame: dict[int, list[float]] = {}
    for batch in batches:
        for frame, loss in zip(batch.target_frames.tolist(), planted_loss(batch).tolist(), strict=True):
            by_frame.setdefault(frame, []).append(loss)
    return {frame: sum(losses) / len(losses) for frame, losses in sorted(by_frame.items())}


class TinyModule(LightningModule):
    """Offers callbacks what LumosModule does."""

    layout = LAYOUT

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.predicted = 0
        self.visual_tokenizer: Any = None
        self.made_with: Any = None

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        self.log("loss/train", self.weight.detach(), prog_bar=True, batch_size=1)
        return {"loss": self.weight.sum(), **self.validation_step(batch, batch_idx)}

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        return {"token_loss": planted_loss(batch), "target_frames": batch.target_frames}

    def predict_codes(self, batch: MaskedBatch) -> Tensor:
        """The right code for the even targets, a wrong one for the others."""
        self.predicted += 1
        wrong = torch.arange(len(batch.target_codes)) % 2
        return (batch.target_codes + wrong) % LAYOUT.codebook_size

    def pipeline(self, ranks: int = 1) -> Any:
        return self.made_with

    def check_makes_clips(self, *_: Any) -> None:
        pass

    def step_flops(self, batch: MaskedBatch) -> float:
        return 1e6 * batch.tokens.numel()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset[MaskedBatch]):
    def __init__(self, batches: Sequence[MaskedBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[MaskedBatch]:
        return iter(self.batches)


def make_trainer(
    folder: Path, callbacks: list[Callback], *, steps: int, loggers: Sequence[Logger] = (), **kwargs: Any
) -> Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=[TensorBoardLogger(folder, name="", version="", default_hp_metric=False), *loggers],
        callbacks=callbacks,
        log_every_n_steps=1,
        **{"max_epochs": -1, **quiet, **kwargs},
    )


def loader(batches: Sequence[MaskedBatch]) -> torch.utils.data.DataLoader[MaskedBatch]:
    return torch.utils.data.DataLoader(Stream(batches), batch_size=None)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """Value by step."""
    return {event.step: event.value for event in events(folder).Scalars(tag)}


def age_events(folder: Path) -> None:
    """Files of events are read in the order of their names, which have the second in which they were made."""
    for number, file in enumerate(sorted(folder.glob("events.out.*"), key=lambda file: file.stat().st_mtime_ns)):
        file.rename(folder / f"events.out.tfevents.{number:010}")
