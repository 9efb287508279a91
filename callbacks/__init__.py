"""Callbacks that measure and show a training in any Trainer: `from callbacks import FrameLossBalance, SampledClips`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lumos_pl.machinery.public_names import offer

if TYPE_CHECKING:
    from callbacks.caption_fidelity import CaptionFidelity as CaptionFidelity
    from callbacks.frame_loss_balance import FrameLossBalance as FrameLossBalance
    from callbacks.jsonl_logger import JsonlLogger as JsonlLogger
    from callbacks.kind_loss import KindLoss as KindLoss
    from callbacks.progress import StepProgressBar as StepProgressBar
    from callbacks.sample_grid import SampleGrid as SampleGrid
    from callbacks.sampled_clips import SampledClips as SampledClips
    from callbacks.source_loss import SourceLoss as SourceLoss
    from callbacks.throughput import Throughput as Throughput

_PUBLIC = {
    "CaptionFidelity": "callbacks.caption_fidelity",
    "FrameLossBalance": "callbacks.frame_loss_balance",
    "JsonlLogger": "callbacks.jsonl_logger",
    "KindLoss": "callbacks.kind_loss",
    "SampleGrid": "callbacks.sample_grid",
    "SampledClips": "callbacks.sampled_clips",
    "SourceLoss": "callbacks.source_loss",
    "StepProgressBar": "callbacks.progress",
    "Throughput": "callbacks.throughput",
}
__all__ = sorted(_PUBLIC)
__getattr__ = offer(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
