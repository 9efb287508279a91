"""Moments of a device's own clock, which the host passes without waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


class Moment:
    """When the device has done all that it was given until now; the host does not wait for that.

    A GPU notes the moment in its queue of work. On a CPU it is the host's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._event = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def seconds_since(self, earlier: Moment) -> float:
        """What lies between two moments of a device; it must have come past both, or the host would wait."""
        if self._event is None or earlier._event is None:
            return self._host - earlier._host
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1e3


def now(device: torch.device) -> float:
    """Seconds of a steady clock once the device has done all it was given: the host waits."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Spans:
    """What lies between pairs of moments, such as the steps of an interval."""

    pairs: list[tuple[Moment, Moment]] = field(default_factory=list)

    def add(self, begin: Moment, end: Moment) -> None:
        self.pairs.append((begin, end))

    def seconds(self) -> list[float]:
        """Of each pair; the device must have come past all of them."""
        return [end.seconds_since(begin) for begin, end in self.pairs]


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that so many of them do not exceed; NaN of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
