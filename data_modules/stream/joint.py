"""Images and videos in turn, an optimizer step of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Order(Protocol):
    """Which source each micro-batch of a run is of: a pure function, so that a resumed run needs its step alone."""

    def locate(self, micro_batch: int) -> tuple[str, int]:
        """The source of a micro-batch of the run, and its number among those of that source."""
        ...

    def steps_before(self, step: int) -> dict[str, int]:
        """How many of the optimizer steps before one are of each source."""
        ...


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """Which kind each micro-batch of a run is, by arithmetic alone.

        pattern (video, image), 2 micro-batches a step      m      0  1  2  3  4  5  6  7
                                                            video  0  1        2  3
                                                            image        0  1        2  3

    All micro-batches of a step, whichever rank takes them, are of one kind, so no rank waits for
    another's longer batch; and the order is the same for any world size with equal `per_step`.

    Args:
        pattern: kinds of the optimizer steps, over and over.
        per_step: micro-batches of an optimizer step over all ranks.
    """

    pattern: tuple[str, ...]
    per_step: int

    def locate(self, micro_batch: int) -> tuple[str, int]:
        """The kind of a micro-batch of the run, and its number among those of that kind."""
        step, within = divmod(micro_batch, self.per_step)
        kind = self.pattern[step % len(self.pattern)]
        return kind, self._before(step, kind) * self.per_step + within

    def steps_before(self, step: int) -> dict[str, int]:
        """How many of the optimizer steps before one are of each kind."""
        return {kind: self._before(step, kind) for kind in sorted(set(self.pattern))}

    def _before(self, step: int, kind: str) -> int:
        cycle, place = divmod(step, len(self.pattern))
        return cycle * self.pattern.count(kind) + self.pattern[:place].count(kind)
