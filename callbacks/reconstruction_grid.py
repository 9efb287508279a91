"""What a visual tokenizer in training reconstructs, below what went in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks.log_image import log_image, shows_images
from callbacks.picture_table import SHOWN_PX, Row, paint_table, show_frame
from callbacks.steps import RunCallback, step_index, step_is_due
from lumos_pl.machinery.encoding import encode_gif, encode_png
from lumos_pl.machinery.stop_request import BrokenOff, breakable
from lumos_pl.tokenizers.reconstruction import PixelBatch, reconstruct
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule

NAME_CHARS = 24  # a path ends with its file's name


class ReconstructionGrid(RunCallback):
    """Paints the first clips of a training batch, and of the first batch of each validation.

    `reconstruction/train`, `reconstruction/val`: first, middle and last frame of each clip, the truth above its
    reconstruction. `..._video`: whole clips side by side as an animated GIF. If the run is asked to stop, painting is
    abandoned, and the first batch of the resumed run is painted instead.

    Args:
        every_n_steps: optimizer steps between two training pictures.
        max_samples: clips per picture.
        fps: frames per second of the animation.
    """

    def __init__(self, every_n_steps: int, max_samples: int, fps: int) -> None:
        self.every_n_steps, self.max_samples, self.fps = every_n_steps, max_samples, fps
        self._is_owed = self._is_wanted = False

    def state_dict(self) -> dict[str, Any]:
        return {"is_owed": True} if self._is_owed else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_wanted = state_dict["is_owed"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PixelBatch, batch_idx: int
    ) -> None:
        if self._is_wanted or step_is_due(trainer, self.every_n_steps):
            with suppress(BrokenOff):
                self._is_wanted, self._is_owed = False, True
                self._log(trainer, cast(TokenizerModule, pl_module), batch, "train")
                self._is_owed = False

    def on_validated_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: PixelBatch, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            with suppress(BrokenOff):  # the validation ends with this batch
                self._log(trainer, cast(TokenizerModule, module), batch, "val")

    def _log(self, trainer: Trainer, module: TokenizerModule, batch: PixelBatch, phase: str) -> None:
        if not trainer.is_global_zero or not shows_images(trainer):
            return
        truth, names = batch.frames[: self.max_samples], batch.names[: self.max_samples]
        with breakable():
            reconstruction, _ = reconstruct(module.net, truth)
        step = step_index(trainer)
        title = f"{phase}, step {step}"
        log_image(trainer, f"reconstruction/{phase}", paint_pair_stills(title, names, truth, reconstruction), step)
        if truth.shape[1] > 1:
            video = paint_pair_animation(title, truth, reconstruction, self.fps)
            log_image(trainer, f"reconstruction/{phase}_video", video, step)


def paint_pair_stills(title: str, names: Sequence[str], truth: Tensor, reconstruction: Tensor) -> bytes:
    """A PNG with two rows per clip; both clips [B, N, H, W, 3]."""
    truth, reconstruction = truth.cpu(), reconstruction.cpu()
    n_frames = truth.shape[1]
    shown = sorted({0, n_frames // 2, n_frames - 1})
    rows = []
    for name, before, after in zip(names, truth, reconstruction, strict=True):
        rows.append(Row(f"{name[-NAME_CHARS:]}\ntruth", [show_frame(before[i].numpy(), SHOWN_PX) for i in shown]))
        rows.append(Row("reconstruction", [show_frame(after[i].numpy(), SHOWN_PX) for i in shown]))
    return encode_png(paint_table(title, [f"frame {i}" for i in shown], rows))


def paint_pair_animation(title: str, truth: Tensor, reconstruction: Tensor, fps: int) -> bytes:
    """A GIF, a column per clip; both clips [B, N, H, W, 3]."""
    truth, reconstruction = truth.cpu(), reconstruction.cpu()
    tables = []
    for n in range(truth.shape[1]):
        rows = [
            Row(caption, [show_frame(clip[n].numpy(), SHOWN_PX) for clip in clips])
            for caption, clips in (("truth", truth), ("reconstruction", reconstruction))
        ]
        tables.append(paint_table(title, [""] * len(truth), rows))
    return encode_gif(tables, 1000 / fps)
