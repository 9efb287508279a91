"""How long a training run waits for its data: all of it, inside the run that users have.

python -m bench.data_wait ours [--experiment EXP] [--steps N]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from bench.measure import measure_here
from data_modules.token_stream import TokenLoader
from experiments.config import load_experiment
from experiments.train import train
from lumos_pl.batch import PackedBatch

WARM_UP = 5  # batches: the worker's start and the first step's set-up


class _Clock:
    """Times every batch that a loader is asked for, and all that lies between the first of these and the last."""

    def __init__(self) -> None:
        self.batches, self.waited, self.begun, self.ended = 0, 0.0, 0.0, 0.0
        self._iterate = TokenLoader.__iter__

    def iterate(self, loader: TokenLoader) -> Iterator[PackedBatch]:
        stream = self._iterate(loader)
        while True:
            asked = time.perf_counter()
            batch = next(stream)
            self.batches, self.ended = self.batches + 1, time.perf_counter()
            if self.batches == WARM_UP:
                self.begun = self.ended
            elif self.batches > WARM_UP:
                self.waited += self.ended - asked
            yield batch


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["ours"])
    parser.add_argument("--experiment", default="real_tokens")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    clock = _Clock()
    notes: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:

        def work() -> None:
            settings = [f"trainer.max_steps={options.steps}", "trainer.val_every_n_steps=0", f"run.dir={temporary}"]
            quiet = [
                "run.name=wait",
                "data.val_root=null",
                "callbacks.progress_bar=false",
                "checkpoint.every_n_steps=0",
            ]
            config = load_experiment(options.experiment, [*settings, *quiet])
            with patch.object(TokenLoader, "__iter__", lambda loader: clock.iterate(loader)):
                train(options.experiment, config)
            notes["waited"] = clock.waited / (clock.ended - clock.begun)

        measured = measure_here(work)
    print(json.dumps(measured | {"notes": notes}))


if __name__ == "__main__":
    main()
