"""What the model sees and predicts: truth, masked input and one-pass prediction."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from callbacks.log_image import log_image, shows_images
from callbacks.picture_table import Frames, Row, paint_table, show_frame
from callbacks.steps import RunCallback, step_index, step_is_due
from lumos_pl.batch import KINDS, MaskedBatch
from lumos_pl.layout import TokenLayout
from lumos_pl.machinery.encoding import encode_gif, encode_png
from lumos_pl.machinery.stop_request import BrokenOff, breakable
from lumos_pl.module import LumosModule
from lumos_pl.settings.ranges import whole_number
from lumos_pl.tokenizers.code_colors import code_colors

Decode = Callable[[Tensor], Frames]
"""From codes [T, H, W] on the CPU to N frames; N = T, or 1 + s * (T - 1) for a causal tokenizer of stride s."""

PANELS = ("truth", "input", "prediction")
HIDDEN_GREY = 128
LONG_SIDE_PX = 192
NAME_CHARS = 32  # a name ends with its key
MS_PER_LATENT_FRAME = 330  # 4 frames at 12 fps: the pace of the released clips


class SampleGrid(RunCallback):
    """Paints the first samples of a training batch of each kind, and the first ones of each validation.

    `samples/train` and `samples/val`: per sample one row each for truth, input (hidden cells grey) and prediction, one
    column per latent frame. `samples/train_video`, `samples/val_video`: the three side by side as an animated GIF, one
    row per sample. The prediction fills all hidden codes in one pass with the likeliest code; it is not what
    refinement in many steps would generate. Frames are decoded by the module's visual tokenizer; without one, codes
    are painted in false colours. If the run is asked to stop, painting is abandoned, and the next training batch of
    the kind is painted after the resume.

    Args:
        every_n_steps: optimizer steps between two training pictures.
        max_samples: samples per picture.
    """

    def __init__(self, every_n_steps: int = 500, max_samples: int = 4) -> None:
        self.every_n_steps = whole_number(every_n_steps, "every_n_steps", low=0)
        self.max_samples = whole_number(max_samples, "max_samples")
        self._wanted: set[str] = set()
        self._owed: set[str] = set()  # to be painted once the run is resumed
        self._unseen: set[str] = set()  # kinds not yet painted in this validation

    def state_dict(self) -> dict[str, Any]:
        wanted = sorted(self._wanted | self._owed)
        return {"wanted": wanted} if wanted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._wanted = set(state_dict["wanted"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        if step_is_due(trainer, self.every_n_steps):
            self._wanted = set(KINDS)  # if images and videos come in turn, the next batch of each
        if batch.kind in self._wanted:
            self._wanted.remove(batch.kind)
            with suppress(BrokenOff):
                self._owed.add(batch.kind)
                self._log(trainer, cast(LumosModule, pl_module), batch, "train")
                self._owed.remove(batch.kind)

    def on_validated_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._unseen = set(KINDS)
        if batch.kind in self._unseen:
            self._unseen.remove(batch.kind)
            with suppress(BrokenOff):  # the validation ends with this batch
                self._log(trainer, cast(LumosModule, module), batch, "val")

    def _log(self, trainer: Trainer, module: LumosModule, batch: MaskedBatch, phase: str) -> None:
        with trainer.precision_plugin.forward_context():  # Lightning calls hooks outside of it
            predicted = module.predict_codes(batch)  # on every rank: with a sharded model this communicates
        if not trainer.is_global_zero or not shows_images(trainer):
            return
        layout, step = module.layout, step_index(trainer)
        decode = _decoder(module)
        try:
            with breakable():
                samples = cut_samples(batch, predicted, layout)[: self.max_samples]
                clips = [paint_sample(sample, decode) for sample in samples]
        except torch.OutOfMemoryError:
            rank_zero_warn("no sample pictures: the GPU has no room to decode them beside the training")
            return
        title = f"{phase}, step {step}: truth, what the model sees (grey = hidden), and its one-pass prediction"
        log_image(trainer, f"samples/{phase}", encode_png(_still(title, clips)), step)
        if max(clip.latent_frames for clip in clips) > 1:
            log_image(trainer, f"samples/{phase}_video", _video(f"{phase}, step {step}", clips), step)


def _decoder(module: LumosModule) -> Decode:
    tokenizer, codebook_size = module.visual_tokenizer, module.layout.codebook_size
    if tokenizer is None:
        return lambda codes: code_colors(codes.numpy(), codebook_size)
    return lambda codes: tokenizer.decode(codes[None])[0].cpu().numpy()


@dataclass(frozen=True)
class Sample:
    """One sample's codes, all [T, H, W] on the CPU; `is_hidden` is True at what the model did not see."""

    name: str
    truth: Tensor
    is_hidden: Tensor
    prediction: Tensor


def cut_samples(batch: MaskedBatch, predicted: Tensor, layout: TokenLayout) -> list[Sample]:
    """Cut a packed batch into its samples.

    Args:
        predicted: codes at `batch.target_index`, [M].
    """
    batch = batch.to("cpu")
    filled = batch.tokens.clone()
    filled[batch.target_index] = predicted.cpu() + layout.visual_offset
    samples = []
    for spans, name, offset in zip(batch.spans, batch.appearances, batch.offsets, strict=True):
        index = (offset + spans.visual_index).view(spans.latent_frames, spans.rows, spans.cols)
        samples.append(
            Sample(
                name=name,
                truth=batch.tokens[index] - layout.visual_offset,
                is_hidden=batch.inputs[index] == layout.mask,
                prediction=filled[index] - layout.visual_offset,
            )
        )
    return samples


@dataclass(frozen=True)
class PaintedSample:
    """A sample as pictures.

    Args:
        captions: one for each panel.
        panels: N frames each.
        stride: frames per latent frame; the first latent frame is one frame.
    """

    name: str
    captions: tuple[str, str, str]
    panels: tuple[list[Image.Image], list[Image.Image], list[Image.Image]]
    stride: int

    @property
    def latent_frames(self) -> int:
        return 1 + (len(self.panels[0]) - 1) // self.stride


def paint_sample(sample: Sample, decode: Decode) -> PaintedSample:
    truth, prediction = decode(sample.truth), decode(sample.prediction)
    hidden = sample.is_hidden.numpy()
    latent_frames, rows, cols = hidden.shape
    n_frames, height, width = truth.shape[:3]
    stride = (n_frames - 1) // (latent_frames - 1) if latent_frames > 1 else 1
    latent_frame = (np.arange(n_frames) + stride - 1) // stride  # frame 0 by itself, then groups
    is_grey = hidden[latent_frame].repeat(height // rows, 1).repeat(width // cols, 2)
    seen = np.where(is_grey[..., None], np.uint8(HIDDEN_GREY), truth)
    right = (sample.prediction == sample.truth).numpy()[hidden]
    name = sample.name[-NAME_CHARS:]
    captions = (
        f"{name}\ntruth",
        f"input\n{hidden.mean():.0%} hidden",
        f"prediction\n{right.mean():.1%} of hidden right" if len(right) else "prediction",
    )

    def shown(frames: Frames) -> list[Image.Image]:
        return [show_frame(frame, LONG_SIDE_PX) for frame in frames]

    return PaintedSample(
        name,
        captions,
        (shown(truth), shown(seen), shown(prediction)),
        stride,
    )


def _still(title: str, clips: list[PaintedSample]) -> Image.Image:
    """Three rows per sample, one column per latent frame (its last decoded frame)."""
    rows = [
        Row(caption, frames[:: clip.stride])
        for clip in clips
        for caption, frames in zip(clip.captions, clip.panels, strict=True)
    ]
    return paint_table(title, [f"frame {t}" for t in range(max(clip.latent_frames for clip in clips))], rows)


def _video(title: str, clips: list[PaintedSample]) -> bytes:
    """One row per sample, the three panels as columns; a clip that has ended holds its last frame."""
    longest = max(clips, key=lambda clip: len(clip.panels[0]))
    n_frames = len(longest.panels[0])
    tables = []
    for n in range(n_frames):
        rows = [Row(clip.name, [frames[min(n, len(frames) - 1)] for frames in clip.panels]) for clip in clips]
        tables.append(paint_table(f"{title}: frame {n + 1} of {n_frames}", PANELS, rows))
    return encode_gif(tables, MS_PER_LATENT_FRAME // longest.stride)
