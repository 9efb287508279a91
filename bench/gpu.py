"""All that is asked of a GPU, in one go: training steps of 1B and 3B by every attention, and a clip of 2 s.

python -m bench.gpu [--quick] [--sizes 1b 3b] [--out gpu.json]

Each case is a process of its own. One that fails (out of memory, no flash-attn) says why and the others go on; the
file is written after every case, so that an end by a time limit costs one case. `--quick` does the same with a tiny
model on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from rich.console import Console
from rich.table import Table

from bench.measure import run_case
from lumos_pl.models.config import Size

GRIDS = {"256p": (32, 56), "384p": (48, 84)}  # rows and columns of 448x256 and 672x384 px
FRAMES = 7  # latent ones of 2 s
RECOMPUTE = {"1b": "none", "3b": "selective"}
ATTENTION = ("sdpa", "flex", "flash")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process: a name for the table, and what runs."""

    name: str
    module: str
    arguments: list[str]


def cases(sizes: Sequence[str], *, quick: bool) -> Iterator[Case]:
    """Per size and resolution every attention without and with compiled layers, the release's way, then generation."""
    where = ["--device", "cpu", "--threads", "1"] if quick else ["--device", "cuda"]
    grids = {"4x4": (4, 4)} if quick else GRIDS
    frames, repeats, steps = ("2", "1", "2") if quick else (str(FRAMES), "10", "50")
    for size in sizes:
        for pixels, (rows, cols) in grids.items():
            shape = ["--size", size, "--frames", frames, "--rows", str(rows), "--cols", str(cols)]
            common = [*shape, *where, "--precision", "bf16-mixed"]
            training = [*common, "--recompute", RECOMPUTE.get(size, "none"), "--update", "fused", "--repeats", repeats]
            for compiled in [[]] if quick else [[], ["--compile"]]:
                for attention in ATTENTION:
                    name = " ".join([size, pixels, "step", attention, *(["compiled"] if compiled else [])])
                    yield Case(
                        name=name,
                        module="bench.training_step",
                        arguments=["ours", *training, "--attention", attention, *compiled],
                    )
            yield Case(
                name=f"{size} {pixels} step as in the release",
                module="bench.training_step",
                arguments=["release", *training],
            )
            if pixels != "384p":
                for way, words in ("ours", "clip"), ("release", "clip as in the release"):
                    yield Case(
                        name=f"{size} {pixels} {words}",
                        module="bench.generation",
                        arguments=[way, *common, "--steps", steps],
                    )


def measure(case: Case) -> dict[str, Any]:
    """What the case printed, or {"failed": the last line of what it said}."""
    try:
        return run_case(case.module, case.arguments, errors=subprocess.PIPE)
    except subprocess.CalledProcessError as error:
        lines: list[str] = error.stderr.strip().splitlines()
        return {"failed": lines[-1][:300] if lines else f"exit status {error.returncode}"}


def row(measured: dict[str, Any], peak_flops: float | None) -> list[str]:
    if "failed" in measured:
        return ["failed", "", "", "", measured["failed"]]
    seconds, notes = measured["seconds"], measured["notes"]
    speed = [f"{seconds:.3f} s", "", ""]
    if "flops" in notes:
        per_second = notes["flops"] / seconds
        mfu = "" if peak_flops is None else f"{per_second / peak_flops:.1%}"
        speed[1:] = [f"{notes['tokens'] / seconds:,.0f}", f"{per_second / 1e12:.1f} {mfu}".strip()]
    return [*speed, f"{measured['total_mib'] / 1024:.1f}", str(measured["result"])[:12]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tiny model on a CPU: shows that it runs")
    parser.add_argument("--sizes", nargs="+", choices=get_args(Size), metavar="SIZE", help="default 1b 3b")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args(arguments)
    device, peak_flops = "cpu", None
    if not options.quick:
        device = torch.cuda.get_device_name()
        peak_flops = get_available_flops(torch.device("cuda"), torch.bfloat16)
    console, results = Console(), {}
    table = Table("", "time", "tokens/s", "TFLOP/s, MFU", "peak GiB", "loss or codes", title=device)
    sizes = options.sizes or (["debug"] if options.quick else ["1b", "3b"])
    for case in cases(sizes, quick=options.quick):
        results[case.name] = measure(case)
        console.print(case.name, *row(results[case.name], peak_flops), sep=" | ", highlight=False)
        table.add_row(case.name, *row(results[case.name], peak_flops))
        content = {
            "date": date.today().isoformat(),
            "device": device,
            "torch": torch.__version__,
            "peak_flops": peak_flops,
            "results": results,
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    console.print(table)


if __name__ == "__main__":
    main()
