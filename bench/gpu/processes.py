"""What is tried in processes of its own: sharded checkpoints of a run, and the tests that need a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import torch

from bench.gpu.card import Figures
from bench.gpu.driver import ROOT
from lumos_pl.checkpoints.complete import checkpoint_name, kept_checkpoints
from lumos_pl.checkpoints.sharded import is_sharded

STEPS = 4
SMALL = [
    f"trainer.max_steps={STEPS}",
    f"checkpoint.every_n_steps={STEPS // 2}",
    "trainer.val_every_n_steps=0",
    "trainer.strategy=fsdp2",
    "trainer.precision=bf16-mixed",  # so that layers are gathered in bf16, as in the recipes
    "model.attention=sdpa",  # `auto` may choose otherwise in the second process
    "data.synthetic.n_samples=10",
    "data.image.batch_size=2",
    "data.video.batch_size=1",
    "data.video.frames=9",
    "callbacks.progress_bar=false",
    "callbacks.sample_grid_every_n_steps=0",
    "callbacks.heatmap_every_n_steps=0",
]
# Equal weights are asked for: so a GPU, too, has to add up in the same order every time.
LUMOS = """
import sys, torch
torch.use_deterministic_algorithms(True)  # warnings only would leave attention's gradients as they are
from experiments.cli import main
sys.exit(main(sys.argv[1:]))
"""


def sharded_saves() -> Figures:
    """Whether a run saves two sharded checkpoints, and ends with the same weights when it is resumed from the first."""
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    with TemporaryDirectory() as folder:
        places = [f"run.dir={folder}", "run.name=saves"]
        _lumos("train", "debug", *SMALL, f"trainer.accelerator={accelerator}", *places)
        run = Path(folder) / "debug" / "saves"
        checkpoints = run / "checkpoints"
        saved = [file for file in kept_checkpoints(checkpoints) if is_sharded(file)]
        never_stopped = _weights(run)
        rmtree(checkpoints / checkpoint_name(STEPS))
        _lumos("resume", str(run))
        return {"sharded_checkpoints": len(saved), "equal_weights": _weights(run) == never_stopped}


def _weights(run: Path) -> str:
    digest: str = json.loads((run / "result.json").read_text())["weights_sha256"]
    return digest


def _lumos(*arguments: str) -> None:
    done = _run(["-c", LUMOS, *arguments])
    if done.returncode:
        raise RuntimeError(f"lumos {arguments[0]}: {_last_line(done.stderr)}")


def gpu_tests(*, limit_s: float, pattern: str = "test_*.py") -> Figures:
    """Counts of the tests that need a GPU, in the files of this pattern, as far as they come in the time."""
    if find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed here")
    found = sorted((ROOT / "tests").rglob(pattern), key=lambda file: (file.name != "test_attention.py", file))
    files = [str(file.relative_to(ROOT)) for file in found if "pytest.mark.gpu" in file.read_text()]
    options = ["-vv", "-m", "gpu", "-rfE", "--tb=line", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    try:
        done = _run(["-m", "pytest", *options, *files], limit_s)
        said, ended = done.stdout, True
    except subprocess.TimeoutExpired as error:
        said, ended = (error.stdout or b"").decode(errors="replace"), False
    counts = Counter(re.findall(OUTCOME, said, re.MULTILINE))
    if not counts:
        raise RuntimeError(f"pytest: {_last_line(done.stderr or said) if ended else f'nothing in {limit_s:g} s'}")
    told = [line[:200] for line in said.splitlines() if re.search(r"(FAILED|ERROR)\b", line)]
    named = {name: counts[word] for name, word in OUTCOMES.items()}
    return named | {"told": told if ended else [*told, f"cut short after {limit_s:g} s"]}


OUTCOMES = {"passed": "PASSED", "failed": "FAILED", "error": "ERROR", "skipped": "SKIPPED"}
OUTCOME = r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b"  # a line of `pytest -v`


def _run(arguments: Sequence[str], limit_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, from the checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},  # what a product in a fixed order needs
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no word"
