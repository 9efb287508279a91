"""How long a command takes from its start to its end.

python -m bench.startup help|python|debug|imports
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory

from bench.measure import measure_here

LUMOS = ["-m", "experiments.cli"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["help", "python", "debug", "imports"])
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        one_step = [*LUMOS, "train", "debug", "trainer.max_steps=1", "trainer.val_every_n_steps=0"]
        commands = {
            "help": [*LUMOS, "--help"],
            "python": ["-c", "pass"],
            "debug": [*one_step, f"run.dir={temporary}"],
            "imports": ["-c", "import torch, lightning"],
        }

        def work() -> None:
            subprocess.run([sys.executable, *commands[options.way]], check=True, capture_output=True)

        print(json.dumps(measure_here(work)))


if __name__ == "__main__":
    main()
