"""What `make bench` measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A module that measures one alternative, see `alternate`.

    Args:
        arguments: the same for all ways.
        quick: further ones that make it tiny.
        ways: what is compared, as the module's first words: ours, and the baseline if there is one.
        unit: of the note that is work done: shown as so many a second.
        goal: what the figure should be.
        needs: a folder without which it is skipped, and what makes it.
    """

    module: str
    arguments: list[str] = field(default_factory=list)
    quick: list[str] = field(default_factory=list)
    ways: tuple[str, ...] = ("ours", "release")
    unit: str | None = None
    goal: str = ""
    needs: tuple[Path, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The same work at several sizes.

    Args:
        option: of the module, that takes the size.
        unit: the note that is the size in the table.
        sizes: ours is measured at.
        baseline: the release's way is measured at, which runs out of memory earlier.
    """

    module: str
    option: str
    unit: str
    sizes: tuple[int, ...]
    baseline: tuple[int, ...]
    arguments: list[str] = field(default_factory=list)
    quick: list[str] = field(default_factory=list)
    quick_sizes: tuple[int, ...] = (1, 2)


def _setting(*words: str, without: str = "ours") -> Benchmark:
    """A training step with a setting against one without."""
    return Benchmark(module="bench.training_step", ways=(" ".join((without, *words)), without), quick=TINY)


TINY = ["--size", "debug", "--rows", "4", "--cols", "4", "--threads", "1"]
REAL_TOKENS = Path("data/lumos_tokens"), "`lumos import-tokens DIR --out data/lumos_tokens` with the release's files"

BENCHMARKS = {
    "training step, 4 frames of 32x32, fp32": Benchmark(module="bench.training_step", quick=TINY, goal="4; 1/6"),
    "training step, 4 frames of 32x32, bf16": Benchmark(
        module="bench.training_step", arguments=["--precision", "bf16-mixed"], quick=TINY
    ),
    "setting: selective recomputation": _setting("--recompute selective"),
    "setting: full recomputation": _setting("--recompute full"),
    "setting: bf16-mixed": _setting("--precision bf16-mixed"),
    "setting: torch.compile": _setting("--compile"),
    "setting: fused AdamW, against torch's loop": _setting("--update fused", without="ours --update loop"),
    "setting: an EMA, with AdamW": _setting("--ema", without="ours --update fused"),
    "generation, 2 frames of 32x32, 10 steps": Benchmark(module="bench.generation", quick=[*TINY, "--steps", "2"]),
    "generation, 4 frames of 32x32, 50 steps": Benchmark(
        module="bench.generation",
        arguments=["--frames", "4", "--steps", "50"],
        quick=[*TINY, "--steps", "2"],
        goal="8; 1/4",
    ),
    "packing against padding, images and videos": Benchmark(
        module="bench.packing",
        ways=("ours", "padded"),
        quick=["--samples", "4", "--size", "debug", "--threads", "1"],
        unit="tokens",
        goal="budget unused: 2%",
    ),
    "data: 13 M tokens read, in this process": Benchmark(
        module="bench.streaming",
        ways=("ours", "plain"),
        quick=["--samples", "64"],
        unit="tokens",
    ),
    "data: 13 M tokens out of one worker": Benchmark(
        module="bench.streaming",
        arguments=["--workers", "1"],
        ways=("ours",),
        quick=["--samples", "64"],
        unit="tokens",
        goal="5,000,000 tokens/s",
    ),
    "data: to the middle of 10,000 samples": Benchmark(
        module="bench.resuming", ways=("ours", "reading"), quick=["--samples", "100"], goal="2 s"
    ),
    "data: waiting in real_tokens": Benchmark(
        module="bench.data_wait",
        ways=("ours",),
        quick=["--steps", "8", "--experiment", "debug"],
        goal="waited: 1%",
        needs=REAL_TOKENS,
    ),
    "tokenizing, two workers against one": Benchmark(
        module="bench.tokenization", ways=("two", "one"), quick=["--clips", "4"], unit="frames"
    ),
    "checkpoint: saving, against torch.save": Benchmark(
        module="bench.checkpoint", ways=("save", "save_alone"), quick=["--size", "debug"], unit="MiB"
    ),
    "checkpoint: loading, against torch.load": Benchmark(
        module="bench.checkpoint", ways=("load", "load_alone"), quick=["--size", "debug"], unit="MiB"
    ),
    "start: `lumos --help`, against python": Benchmark(module="bench.startup", ways=("help", "python"), goal="0.5 s"),
    "start: `debug` to its first step, against imports": Benchmark(
        module="bench.startup", ways=("debug", "imports"), goal="15 s"
    ),
}

GROWTHS = {
    "growth: training step, frames of 32x32": Growth(
        module="bench.training_step",
        option="--frames",
        unit="tokens",
        sizes=(2, 4, 8, 15, 30),  # 2k to 32k tokens
        baseline=(1, 2, 4, 6),
        quick=TINY,
    ),
    "growth: generation, frames of 16x16, 10 steps": Growth(
        module="bench.generation",
        option="--frames",
        unit="frames",
        sizes=(1, 2, 4, 8, 16),
        baseline=(1, 2, 4, 8, 16),
        arguments=["--rows", "16", "--cols", "16"],
        quick=[*TINY, "--steps", "2"],
    ),
}
