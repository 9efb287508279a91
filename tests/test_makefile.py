"""What is typed behind `make` is either done or refused, never passed over."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def dry(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "EXP=tokenizer_fsq", "data.root=videos.csv"], "data.root="),
        (["train", "ARGS=seed=1", "trainer.max_steps=10"], "trainer.max_steps="),
        (["own", "VIDEOS=videos", "minutes=5"], "minutes="),
        (["train", "demo"], "demo"),
        (["eval", "lumos_pl/models"], "lumos_pl/models"),  # make has nothing to do for a folder that is there
    ],
)
def test_a_word_that_nothing_reads_is_refused_before_any_work(words: list[str], named: str) -> None:
    done = dry(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert named in done.stderr


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["train", "EXP=demo", "ARGS=seed=1 trainer.max_steps=10"], "lumos train demo  seed=1 trainer.max_steps=10"),
        (["sample", "PROMPT=a red circle", "OUT=mine", "RUN=runs/demo/latest"], "lumos sample --run runs/demo/latest"),
        (["own", "VIDEOS=my videos", "MINUTES=5"], "lumos own"),
        (["tensorboard", "RUNS=elsewhere"], "tensorboard --logdir elsewhere"),
        (["bench-gpu", "GPU_PYTHON=python3"], "python3 -m bench.gpu"),
        (["setup", "CPU_TORCH=", "PYTHON=python3"], ""),
        (["plan", "OMP_NUM_THREADS=1"], "lumos plan debug"),  # which make gives to the command's environment
    ],
)
def test_what_the_pages_type_is_taken(words: list[str], command: str) -> None:
    done = dry(*words)
    assert done.returncode == 0, done.stderr
    assert command in done.stdout


def test_a_make_that_calls_this_one_keeps_variables_of_its_own() -> None:
    done = subprocess.run(
        ["make", "-n", "help", "V=1"], cwd=ROOT, env={**os.environ, "MAKELEVEL": "1"}, capture_output=True, check=False
    )
    assert done.returncode == 0
