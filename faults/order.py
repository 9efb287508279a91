"""Workers and ranks that change in the middle of an epoch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from data_modules.config import DataConfig, SourceConfig, SyntheticConfig
from data_modules.position import StreamPosition
from data_modules.token_data import TokenDataModule
from faults.campaign import Campaign, Judge, Verdict
from lumos_pl.layout import compact_layout

PER_STEP = 4  # micro-batches of a step, however many ranks share them
STEPS = 12


def read_steps(first: int, last: int, *, ranks: int, workers: int) -> list[list[str]]:
    """Digests of the micro-batches of the steps from `first` to before `last`, each step's in one order."""
    config = DataConfig(
        kind="joint",
        root="synthetic",
        image=SourceConfig(batch_size=2),
        video=SourceConfig(batch_size=1, frames=9),
        synthetic=SyntheticConfig(n_samples=20),
        num_workers=workers,
        prompt="{caption}",
        given_prob=0.3,
    )
    each = PER_STEP // ranks
    steps: list[list[str]] = [[""] * PER_STEP for _ in range(first, last)]
    for rank in range(ranks):
        data = TokenDataModule(config, compact_layout(codebook_size=60), seed=3)
        data.setup("fit")
        position = StreamPosition(start=first * PER_STEP, per_step=PER_STEP, rank=rank, world_size=ranks)
        batches = iter(data.stream(partial(replace, position)))
        for number, batch in enumerate(islice(batches, (last - first) * each)):
            step, place = divmod(number, each)
            content = batch.tokens.numpy().tobytes() + repr(batch.appearances).encode()
            steps[step][place * ranks + rank] = hashlib.sha256(content).hexdigest()
        del batches  # ends the workers
    return steps


@contextmanager
def _changes(folder: Path) -> Iterator[Judge]:
    expected = read_steps(0, STEPS, ranks=1, workers=0)

    def judge(draw: random.Random) -> Verdict:
        ways = [(draw.choice([1, 2, 4]), draw.choice([0, 1, 2, 3])) for _ in range(2)]
        stop = draw.randrange(1, STEPS)
        read = read_steps(0, stop, ranks=ways[0][0], workers=ways[0][1])
        read += read_steps(stop, STEPS, ranks=ways[1][0], workers=ways[1][1])
        done = f"(ranks, workers) {ways[0]} to {ways[1]} at step {stop}"
        return Verdict("same order" if read == expected else "other order", done)

    yield judge


CHANGES = Campaign(
    name="order",
    title="changes of workers and ranks",
    instances=12,
    held=("same order",),
    broken=("other order",),
    open=_changes,
)
