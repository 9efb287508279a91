"""Timestamps on a device's own clock, taken without making the host wait."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


class Moment:
    """The time when the device has finished everything queued so far; the host does not wait for it.

    A GPU records it in its queue of work. On a CPU it is the host's own time.
    """

    def __init__(self, device: torch.device) -> None:
        self._host = time.perf_counter()
        self._event = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def seconds_since(self, earlier: Moment) -> float:
        """Seconds between two moments of a device, which must have passed both, or the host would wait."""
        if self._event is None or earlier._event is None:
            return self._host - earlier._host
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1e3


def now(device: torch.device) -> float:
    """Seconds on a steady clock once the device has finished everything queued; the host waits for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Spans:
    """The times between pairs of moments, such as the steps of an interval."""

    pairs: list[tuple[Moment, Moment]] = field(default_factory=list)

    def add(self, begin: Moment, end: Moment) -> None:
        self.pairs.append((begin, end))

    def seconds(self) -> list[float]:
        """One per pair; the device must have passed all of them."""
        return [end.seconds_since(begin) for begin, end in self.pairs]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed; NaN if there are none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan
