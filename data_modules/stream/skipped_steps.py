"""Steps of the data's order that are left out: how a training goes round the batches that a loss spike came from.

    skip_steps: [2, "4-5"]      step of the training      0  1  2  3  4  5
                                step of the order         0  1  3  6  7  8

The order is numbered as the metrics number the steps of a training that skips nothing, from 0. Nothing is saved: which
step of the order comes next follows from the step of the training and the setting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from lumos_pl.errors import ConfigError
from lumos_pl.settings.ranges import LARGEST_COUNT

_ENTRY = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?")


@dataclass(frozen=True)
class SkippedSteps:
    """
    Args:
        ranges: first and last step of each, ascending, with others between them.
    """

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[object], where: str = "data.skip_steps") -> Self:
        """Those of a setting like `[1200, "3000-3010"]`; entries may overlap.

        Raises:
            ConfigError: an entry that is none.
        """
        joined: list[tuple[int, int]] = []
        for first, last in sorted(_range(entry, f"{where}[{number}]") for number, entry in enumerate(entries)):
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = joined[-1][0], max(joined[-1][1], last)
            else:
                joined.append((first, last))
        return cls(tuple(joined))

    def of_order(self, step: int) -> int:
        """Which step of the order a step of the training reads."""
        for first, last in self.ranges:
            if step < first:
                break
            step += last - first + 1
        return step

    def before(self, step: int) -> str | None:
        """In words, what a training that has come to `step` has passed over; None: nothing."""
        done = self.of_order(step - 1) if step else -1
        passed = [f"{first}" if first == last else f"{first}-{last}" for first, last in self.ranges if last < done]
        return " ".join(passed) or None


NONE_SKIPPED = SkippedSteps()


def _range(entry: object, where: str) -> tuple[int, int]:
    match = None if isinstance(entry, bool) else _ENTRY.fullmatch(str(entry))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not first <= last <= LARGEST_COUNT:
        expected = "a step like 1200, or a range like 3000-3010"
        raise ConfigError("not a step to skip", where=where, got=repr(entry)[:100], expected=expected)
    return first, last
