"""Lumos-1 on PyTorch Lightning: the model, its training and its clips.

from lumos_pl import LumosModule, LumosPipeline
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lumos_pl.machinery.public_names import offer

if TYPE_CHECKING:
    from lumos_pl.adapters.config import AdapterConfig as AdapterConfig
    from lumos_pl.batch import PackedBatch as PackedBatch
    from lumos_pl.batch import pack as pack
    from lumos_pl.errors import LumosError as LumosError
    from lumos_pl.layout import LayoutConfig as LayoutConfig
    from lumos_pl.layout import TokenSequence as TokenSequence
    from lumos_pl.loss.masked_cross_entropy import LossConfig as LossConfig
    from lumos_pl.masking import MASK_KINDS as MASK_KINDS
    from lumos_pl.masking import SCHEDULES as SCHEDULES
    from lumos_pl.masking import MaskConfig as MaskConfig
    from lumos_pl.models.config import ModelConfig as ModelConfig
    from lumos_pl.models.mm_rope import ROPE_KINDS as ROPE_KINDS
    from lumos_pl.models.mm_rope import RopeKind as RopeKind
    from lumos_pl.module import LumosModule as LumosModule
    from lumos_pl.optimizer import OPTIMIZERS as OPTIMIZERS
    from lumos_pl.optimizer import OptimizerConfig as OptimizerConfig
    from lumos_pl.pipeline import LumosPipeline as LumosPipeline
    from lumos_pl.sampling.config import ClipFormat as ClipFormat
    from lumos_pl.sampling.config import SamplingConfig as SamplingConfig
    from lumos_pl.sampling.generated_clip import GeneratedClip as GeneratedClip
    from lumos_pl.tokenizers.text import TextTokenizer as TextTokenizer
    from lumos_pl.tokenizers.visual import VisualTokenizer as VisualTokenizer

_PUBLIC = {
    "AdapterConfig": "lumos_pl.adapters.config",
    "ClipFormat": "lumos_pl.sampling.config",
    "GeneratedClip": "lumos_pl.sampling.generated_clip",
    "LayoutConfig": "lumos_pl.layout",
    "LossConfig": "lumos_pl.loss.masked_cross_entropy",
    "LumosError": "lumos_pl.errors",
    "LumosModule": "lumos_pl.module",
    "LumosPipeline": "lumos_pl.pipeline",
    "MASK_KINDS": "lumos_pl.masking",
    "MaskConfig": "lumos_pl.masking",
    "ModelConfig": "lumos_pl.models.config",
    "OPTIMIZERS": "lumos_pl.optimizer",
    "OptimizerConfig": "lumos_pl.optimizer",
    "PackedBatch": "lumos_pl.batch",
    "ROPE_KINDS": "lumos_pl.models.mm_rope",
    "RopeKind": "lumos_pl.models.mm_rope",
    "SCHEDULES": "lumos_pl.masking",
    "SamplingConfig": "lumos_pl.sampling.config",
    "TextTokenizer": "lumos_pl.tokenizers.text",
    "TokenSequence": "lumos_pl.layout",
    "VisualTokenizer": "lumos_pl.tokenizers.visual",
    "pack": "lumos_pl.batch",
}
__all__ = sorted(_PUBLIC)
__getattr__ = offer(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
