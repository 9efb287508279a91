"""How long a training run waits for its data, after its warm-up: what a run says of itself.

python -m bench.data_wait ours [--experiment EXP] [--steps N]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.measure import measure_here
from callbacks.jsonl_logger import read_records
from experiments.read_config import load_experiment
from experiments.train import train


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["ours"])
    parser.add_argument("--experiment", default="real_tokens")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    notes: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:

        def work() -> None:
            settings = [f"trainer.max_steps={options.steps}", "trainer.val_every_n_steps=0", f"run.dir={temporary}"]
            quiet = [
                "run.name=wait",
                "data.val_root=null",
                "callbacks.progress_bar=false",
                f"callbacks.log_every_n_steps={options.steps}",  # one interval, from the end of the warm-up on
                "checkpoint.every_n_steps=0",
            ]
            train(options.experiment, load_experiment(options.experiment, [*settings, *quiet]))
            (file,) = Path(temporary).glob("*/wait/metrics.jsonl")
            shares = [record.get("throughput/data_wait_share") for record in read_records(file)]
            (notes["waited"],) = filter(None, shares)

        measured = measure_here(work)
    print(json.dumps(measured | {"notes": notes}))


if __name__ == "__main__":
    main()
