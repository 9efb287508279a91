"""From the configuration to the callbacks; apart from it, so that reading a configuration does not load Lightning."""

from __future__ import annotations

from lightning.pytorch import Callback

from callbacks.config import CallbackConfig
from callbacks.frame_loss_balance import FrameLossBalance
from callbacks.progress import StepProgressBar
from callbacks.sample_grid import Decode, SampleGrid
from callbacks.throughput import Throughput


def build_callbacks(config: CallbackConfig, *, decode: Decode | None = None) -> list[Callback]:
    """The measuring callbacks of a run; `decode` turns codes into RGB frames for the sample pictures."""
    callbacks: list[Callback] = [
        FrameLossBalance(config.log_every_n_steps, config.heatmap_every_n_steps),
        Throughput(config.log_every_n_steps),
    ]
    if config.sample_grid_every_n_steps:
        callbacks.append(SampleGrid(config.sample_grid_every_n_steps, config.sample_grid_samples, decode))
    if config.progress_bar:
        callbacks.append(StepProgressBar(config.log_every_n_steps))  # last: it shows what the others logged
    return callbacks
