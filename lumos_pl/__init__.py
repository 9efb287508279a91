"""Lumos-1 on PyTorch Lightning. `LumosPipeline` makes clips; it is imported when it is asked for, as torch is slow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumos_pl.pipeline import LumosPipeline

__all__ = ["LumosPipeline"]


def __getattr__(name: str) -> Any:
    if name == "LumosPipeline":
        from lumos_pl.pipeline import LumosPipeline

        return LumosPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
