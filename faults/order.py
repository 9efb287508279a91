"""Workers and ranks that change in the middle of an epoch, of images and videos in turn and of drawn mixtures."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from data_modules.config import DataConfig, MixtureSource, SourceConfig, SyntheticConfig
from data_modules.stream.position import StreamPosition
from data_modules.token_data import TokenDataModule
from faults.campaign import Campaign, Judge, Verdict
from lumos_pl.layout import compact_layout

PER_STEP = 4  # micro-batches of a step, however many ranks share them
STEPS = 12


def in_turn() -> DataConfig:
    return DataConfig(
        kind="joint",
        root="synthetic",
        image=SourceConfig(batch_size=2),
        video=SourceConfig(batch_size=1, frames=9),
        synthetic=SyntheticConfig(n_samples=20),
        prompt="{caption}",
        given_prob=0.3,
    )


def mixed(draw: random.Random) -> DataConfig:
    """Up to five sources of the same data, with weights that stay, change slowly, or jump."""

    def weight() -> float | list[list[float]]:
        jump = draw.randrange(1, STEPS)
        points: list[list[float]] = [[jump, draw.random()], [jump, draw.choice([0, 1])], [STEPS + jump, 1]]
        return points if draw.random() < 0.5 else draw.uniform(0.1, 5)

    kinds = ["image", *(draw.choice(["image", "video"]) for _ in range(draw.randrange(5)))]
    sources = {
        f"source{number}": MixtureSource(
            root="synthetic",
            kind=kind,  # type: ignore[arg-type]
            weight=weight() if number else 1,  # the first has one at every step
            batch_size=draw.choice([None, 3]),
        )
        for number, kind in enumerate(kinds)
    }
    return replace(in_turn(), root=None, sources=sources)


def read_steps(config: DataConfig, first: int, last: int, *, ranks: int, workers: int) -> list[list[str]]:
    """Digests of the micro-batches of the steps from `first` to before `last`, each step's in one order."""
    config = replace(config, num_workers=workers)
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
    def judge(draw: random.Random) -> Verdict:
        config = draw.choice([in_turn(), mixed(draw)])
        expected = read_steps(config, 0, STEPS, ranks=1, workers=0)
        ways = [(draw.choice([1, 2, 4]), draw.choice([0, 1, 2, 3])) for _ in range(2)]
        stop = draw.randrange(1, STEPS)
        read = read_steps(config, 0, stop, ranks=ways[0][0], workers=ways[0][1])
        read += read_steps(config, stop, STEPS, ranks=ways[1][0], workers=ways[1][1])
        done = f"(ranks, workers) {ways[0]} to {ways[1]} at step {stop}, {len(config.sources)} sources"
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
