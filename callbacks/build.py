"""Builds callbacks from the configuration; apart, so that reading a configuration does not load Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from lightning.pytorch import Callback

from callbacks.caption_fidelity import CaptionFidelity
from callbacks.config import CallbackConfig
from callbacks.frame_loss_balance import FrameLossBalance
from callbacks.kind_loss import KindLoss
from callbacks.progress import StepProgressBar
from callbacks.sample_grid import SampleGrid
from callbacks.sampled_clips import SampledClips
from callbacks.source_loss import SourceLoss
from callbacks.throughput import Throughput
from lumos_pl.shape_world.scene import WorldConfig


def build_callbacks(
    config: CallbackConfig,
    *,
    world: WorldConfig | None = None,
    joint: bool = False,
    sources: Sequence[str] = (),
    timeout: timedelta | None = None,
) -> list[Callback]:
    """The measuring callbacks of a Lumos-1 run.

    Args:
        world: the world whose captions `caption_fidelity` asks for; without one, that callback is left out.
        joint: whether images and videos are trained on in turn.
        sources: names of the data sets that are mixed.
        timeout: how long a rank waits for the others' figures; by default torch's timeout.
    """
    callbacks: list[Callback] = [
        FrameLossBalance(config.log_every_n_steps, config.heatmap_every_n_steps),
        Throughput(config.log_every_n_steps, timeout=timeout),
    ]
    if joint:
        callbacks.append(KindLoss(config.log_every_n_steps))
    if sources:
        callbacks.append(SourceLoss(sources, config.log_every_n_steps))
    if config.sample_grid_every_n_steps:
        callbacks.append(SampleGrid(config.sample_grid_every_n_steps, config.sample_grid_samples))
    if config.prompts:
        every, longest = config.sampled_clips_every_n_steps, config.sampled_clips_max_seconds
        callbacks.append(SampledClips(config.prompts, every_n_steps=every, max_seconds=longest, timeout=timeout))
    if config.fidelity_captions and world is not None:
        callbacks.append(CaptionFidelity(config.fidelity_captions, world, timeout=timeout))
    if config.progress_bar:
        callbacks.append(StepProgressBar(config.log_every_n_steps))  # last: it shows what the others logged
    return callbacks
