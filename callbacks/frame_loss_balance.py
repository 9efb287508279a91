"""Frame-wise loss balance: is the loss the same in all latent frames? That is what AR-DF's tube masks are for.

With independent masks the later frames copy from the earlier ones and their loss falls far below the
first frame's; with tubes the frames stay level (arXiv:2507.08801).
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.frame_loss_metric import FrameLoss
from callbacks.log_image import log_image, shows_images
from callbacks.loss_history import LossHistory, paint_curves, paint_heatmap
from callbacks.steps import PHASES, PhaseFigures, log_figures, of_step, step_index, step_is_due
from lumos_pl.batch import MaskedBatch
from lumos_pl.settings.ranges import whole_number


class FrameLossBalance(PhaseFigures):
    r"""Logs the loss of each latent frame, their spread, and two pictures of both over the steps.

    Tags, for `train` and `val`:

        loss_frame/train/00, 01, ..          mean loss of the frame's hidden tokens
        loss_frame/train/mean, min, max      over the frames
        loss_frame/train/spread              (max - min) / mean
        loss_frame/heatmap, curves           pictures of the training losses over the whole run

    TensorBoard's Custom Scalars tab shows all frames in one chart, in one colour, and the mean between min and max;
    `curves` labels each line with its frame.

    Args:
        every_n_steps: optimizer steps between two loggings.
        heatmap_every_n_steps: optimizer steps between two pictures; 0: none.
    """

    def __init__(self, every_n_steps: int = 10, heatmap_every_n_steps: int = 500) -> None:
        self.every_n_steps = whole_number(every_n_steps, "every_n_steps")
        self.heatmap_every_n_steps = whole_number(heatmap_every_n_steps, "heatmap_every_n_steps", low=0)
        self._losses = {phase: FrameLoss() for phase in PHASES}
        self._last: dict[str, dict[str, Any]] = {}
        self._history = LossHistory()
        self._drawn_at = -1

    def summary(self) -> dict[str, Any]:
        """The last figures of each phase, as plain values for JSON.

        `{"frame_loss": {"train": {"step", "frames", "spread"}, "val": ...}}`:

        `frames` lists the loss by latent frame, None for a frame without targets. A phase without figures is
        absent, as is training on images alone.
        """
        return {"frame_loss": dict(self._last)}

    def state_dict(self) -> dict[str, Any]:
        return {"last": dict(self._last), "history": self._history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = dict(state_dict["last"])
        self._history = LossHistory(**state_dict["history"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for losses in self._losses.values():
            losses.to(trainer.strategy.root_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_at = -1  # by an earlier training
        charts = {}
        for phase in PHASES:
            tag = f"loss_frame/{phase}"
            charts[f"Frame-wise loss ({phase})"] = {
                "loss of each latent frame": ["Multiline", [rf"{tag}/\d+$"]],
                "mean, min and max over frames": ["Margin", [f"{tag}/mean", f"{tag}/min", f"{tag}/max"]],
            }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(charts)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if step_is_due(trainer, self.heatmap_every_n_steps):
            self._log_heatmap(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.heatmap_every_n_steps and self._drawn_at != step_index(trainer):
            self._log_heatmap(trainer)

    def gather(self, phase: str, outputs: Any, batch: MaskedBatch) -> None:
        self._losses[phase].update(of_step(outputs, "token_loss"), of_step(outputs, "target_frames"), batch)

    def tell(self, trainer: Trainer, phase: str) -> None:
        losses = self._losses[phase].compute()
        self._losses[phase].reset()
        if not losses:
            return
        step = step_index(trainer)
        low, high, mean = min(losses.values()), max(losses.values()), sum(losses.values()) / len(losses)
        spread = (high - low) / mean if mean else 0.0
        metrics = {f"loss_frame/{phase}/{frame:02d}": loss for frame, loss in losses.items()}
        for key, value in {"mean": mean, "min": low, "max": high, "spread": spread}.items():
            metrics[f"loss_frame/{phase}/{key}"] = value
        log_figures(trainer, metrics)
        frames = [losses.get(frame) for frame in range(max(losses) + 1)]
        self._last[phase] = {"step": step, "frames": frames, "spread": spread}
        if phase == "train":
            self._history.add(step, frames)

    def _log_heatmap(self, trainer: Trainer) -> None:
        self._drawn_at = step_index(trainer)
        if trainer.is_global_zero and len(self._history.rows) > 1 and shows_images(trainer):
            for name, paint in {"heatmap": paint_heatmap, "curves": paint_curves}.items():
                log_image(trainer, f"loss_frame/{name}", paint(self._history.rows), step_index(trainer))
