"""What is measured in one go; knows no torch, so that a driver of cases starts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement.

    Args:
        about: what is measured, for a reader of the table.
        measure: `module:function` of the worker that measures it; it takes the settings as keywords.
        limit_s: after so many seconds it is killed, and the others go on.
        estimated: figures by name, as they were reckoned before any GPU was at hand.
    """

    name: str
    about: str
    measure: str
    limit_s: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    estimated: Mapping[str, float] = field(default_factory=dict)
