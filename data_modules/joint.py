"""Images and videos in turn, an optimizer step of each."""

from __future__ import annotations

from dataclasses import dataclass


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
        cycle, place = divmod(step, len(self.pattern))
        kind = self.pattern[place]
        steps_before = cycle * self.pattern.count(kind) + self.pattern[:place].count(kind)
        return kind, steps_before * self.per_step + within
