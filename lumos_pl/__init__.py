"""Lumos-1 on PyTorch Lightning: the model, its training and its clips.

from lumos_pl import LumosModule, LumosPipeline
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lumos_pl.machinery.public_names import offer

if TYPE_CHECKING:
    from lumos_pl.layout import LayoutConfig as LayoutConfig
    from lumos_pl.loss.masked_cross_entropy import LossConfig as LossConfig
    from lumos_pl.masking import MASK_KINDS as MASK_KINDS
    from lumos_pl.masking import MaskConfig as MaskConfig
    from lumos_pl.models.config import ModelConfig as ModelConfig
    from lumos_pl.module import LumosModule as LumosModule
    from lumos_pl.optimizer import OptimizerConfig as OptimizerConfig
    from lumos_pl.pipeline import LumosPipeline as LumosPipeline
    from lumos_pl.sampling.config import ClipFormat as ClipFormat
    from lumos_pl.sampling.config import SamplingConfig as SamplingConfig

_PUBLIC = {
    "ClipFormat": "lumos_pl.sampling.config",
    "LayoutConfig": "lumos_pl.layout",
    "LossConfig": "lumos_pl.loss.masked_cross_entropy",
    "LumosModule": "lumos_pl.module",
    "LumosPipeline": "lumos_pl.pipeline",
    "MASK_KINDS": "lumos_pl.masking",
    "MaskConfig": "lumos_pl.masking",
    "ModelConfig": "lumos_pl.models.config",
    "OptimizerConfig": "lumos_pl.optimizer",
    "SamplingConfig": "lumos_pl.sampling.config",
}
__all__ = sorted(_PUBLIC)
__getattr__ = offer(__name__, _PUBLIC)
