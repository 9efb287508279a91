"""The data of a training: `from data_modules import DataConfig, TokenDataModule`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lumos_pl.machinery.public_names import offer

if TYPE_CHECKING:
    from data_modules.config import DataConfig as DataConfig
    from data_modules.config import MixtureSource as MixtureSource
    from data_modules.config import SourceConfig as SourceConfig
    from data_modules.config import SyntheticConfig as SyntheticConfig
    from data_modules.pixel_data import PixelDataConfig as PixelDataConfig
    from data_modules.pixel_data import PixelDataModule as PixelDataModule
    from data_modules.shards.places import CacheConfig as CacheConfig
    from data_modules.token_data import TokenDataModule as TokenDataModule
    from data_modules.tokenizing.settings import TokenizeSettings as TokenizeSettings
    from data_modules.tokenizing.tokenize import tokenize_media as tokenize_media
    from lumos_pl.machinery.retrying import RetryConfig as RetryConfig
    from lumos_pl.shape_world.clips import WorldClipsConfig as WorldClipsConfig

_PUBLIC = {
    "CacheConfig": "data_modules.shards.places",
    "DataConfig": "data_modules.config",
    "MixtureSource": "data_modules.config",
    "PixelDataConfig": "data_modules.pixel_data",
    "PixelDataModule": "data_modules.pixel_data",
    "RetryConfig": "lumos_pl.machinery.retrying",
    "SourceConfig": "data_modules.config",
    "SyntheticConfig": "data_modules.config",
    "TokenDataModule": "data_modules.token_data",
    "TokenizeSettings": "data_modules.tokenizing.settings",
    "WorldClipsConfig": "lumos_pl.shape_world.clips",
    "tokenize_media": "data_modules.tokenizing.tokenize",
}
__all__ = sorted(_PUBLIC)
__getattr__ = offer(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
