"""What the kit measures, in the order of value, and what was estimated of it before any GPU was at hand.

Figures are kept in plain units under the names that `bench.gpu.table.FORMATS` prints: seconds, bytes, shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from bench.gpu.case import GIB, Case
from lumos_pl.models.config import AttentionBackend, Recomputed, Size

TEXT_LENGTHS = (37, 61, 88, 113, 142, 171, 199, 226, 251, 283)  # ids: no two alike, none a round number
CHUNK_SIZES = (256, 1024, 2048, 4096)
RECOMPUTED: tuple[Recomputed, ...] = get_args(Recomputed)
ATTENTION = [name for name in get_args(AttentionBackend) if name not in ("auto", "padded")]

Settings = dict[str, Any]

STEP_MEMORY = 29.5 * GIB  # of 1B at 256p, nothing recomputed, above weights, gradients and optimizer
# Eager and compiled, by a roofline over the parts of a step; a clip by its refinement steps.
EAGER = {"seconds": 0.430, "mfu": 0.28, "step_bytes": STEP_MEMORY}
ESTIMATED: dict[str, dict[str, float]] = {
    "card": {"product_flops": 620e12},
    "attention sdpa": EAGER,
    "compiled": {"seconds": 0.390, "mfu": 0.32},
    "recompute none": EAGER,
    "recompute full": {"seconds": 0.525, "mfu": 0.23},
    "clip": {"seconds": 10.5, "step_seconds": 0.030},
    "trace": {"kernels": 4_100},
}


def cases(*, toy: bool) -> list[Case]:
    """All of them.

    Args:
        toy: the same at a size that a CPU computes in no time: shows that everything runs, and nothing else.
    """
    return [*_training(toy), *_generation(toy), *_processes(toy), *_larger(toy), *_beside_the_release(toy)]


def shape(size: Size, pixels: str, *, toy: bool) -> Settings:
    """A model and a clip of 2 s at 448x256 or 672x384 px: latent frames, rows and columns."""
    if toy:
        return {"size": "debug", "latent_frames": 2, "rows": 4, "cols": 4, "codebook_size": 240}
    rows, cols = {"256p": (32, 56), "384p": (48, 84)}[pixels]
    return {"size": size, "latent_frames": 7, "rows": rows, "cols": cols}


def _step(name: str, about: str, limit_s: float, *, toy: bool, settings: Settings) -> Case:
    common = {"n_text": 20, "steps": 2} if toy else {"n_text": 200, "steps": 8}
    base = shape("1b", "256p", toy=toy) | common
    return Case(
        name=name,
        about=about,
        measure="bench.gpu.steps:training_step",
        limit_s=limit_s,
        settings=base | settings,
        estimated=ESTIMATED.get(name, {}),
    )


def _training(toy: bool) -> Iterator[Case]:
    """One step of 1B at 256p, 13,001 tokens, in all its variants."""
    large = {"n": 256} if toy else {"n": 8192}
    yield Case(
        name="card",
        about="product of two matrices of 8,192 x 8,192 in bf16; copy of 2 GiB",
        measure="bench.gpu.card:card",
        limit_s=40,
        settings=large | {"copied_bytes": 2**24 if toy else 2 * GIB},
        estimated=ESTIMATED["card"],
    )
    for attention in ATTENTION:
        about = f"step of 1B at 256p, attention={attention}"
        limit_s = 75 if attention == "flex" else 35  # which compiles its kernels
        yield _step(f"attention {attention}", about, limit_s, toy=toy, settings={"attention": attention})
    yield _lengths("lengths auto", "as it is", {}, toy)
    yield _lengths("lengths sdpa", "attention=sdpa", {"attention": "sdpa"}, toy)
    yield _lengths("lengths cudnn", "attention=sdpa with cuDNN's kernels", {"attention": "sdpa", "cudnn": True}, toy)
    yield _step("compiled", "step of 1B at 256p, compile=true", 120, toy=toy, settings={"compile": True})
    for rows in CHUNK_SIZES:
        about = f"step of 1B at 256p, loss.chunk_size={rows:,}"
        yield _step(f"chunk {rows}", about, 30, toy=toy, settings={"chunk_size": rows})
    for kind in RECOMPUTED:
        about = f"step of 1B at 256p, activation_checkpointing={kind}"
        yield _step(f"recompute {kind}", about, 30, toy=toy, settings={"recompute": kind})


def _lengths(name: str, about: str, settings: Settings, toy: bool) -> Case:
    base = shape("1b", "256p", toy=toy) | {
        "n_texts": [n // 10 if toy else n for n in TEXT_LENGTHS],
        "n_text": 20 if toy else 200,
    }
    return Case(
        name=name,
        about=f"steps of 1B at 256p with ten lengths of text, each for the first time, {about}",
        measure="bench.gpu.steps:ragged_steps",
        limit_s=50,
        settings=base | settings,
    )


def _generation(toy: bool) -> Iterator[Case]:
    for name, about, limit_s, compiled in ("clip", "", 50, False), ("clip compiled", ", compile=true", 120, True):
        yield Case(
            name=name,
            about=f"2 s at 256p by 1B, 50 refinement steps a frame, guided{about}",
            measure="bench.gpu.clips:clip",
            limit_s=limit_s,
            settings=shape("1b", "256p", toy=toy) | {"steps": 2 if toy else 50, "compile": compiled},
            estimated=ESTIMATED.get(name, {}),
        )


def _processes(toy: bool) -> Iterator[Case]:
    yield Case(
        name="saves",
        about="lumos train debug, fsdp2, two sharded checkpoints; resumed from the first",
        measure="bench.gpu.processes:sharded_saves",
        limit_s=120,
    )
    yield Case(
        name="tests",
        about="pytest -m gpu",
        measure="bench.gpu.processes:gpu_tests",
        limit_s=120,
        settings={"limit_s": 110} | ({"pattern": "test_attention.py"} if toy else {}),
    )


def _larger(toy: bool) -> Iterator[Case]:
    sizes: list[tuple[Size, str, float]] = [("1b", "384p", 50), ("3b", "256p", 50), ("3b", "384p", 70)]
    for size, pixels, limit_s in sizes:
        settings = shape(size, pixels, toy=toy) | {"recompute": None}
        about = f"step of {size.upper()} at {pixels}, recomputed what the plan says"
        yield _step(f"{size} {pixels}", about, limit_s, toy=toy, settings=settings)


def _beside_the_release(toy: bool) -> Iterator[Case]:
    about = "step of 1B at 256p, computed as the release does"
    yield _step("release step", about, 50, toy=toy, settings={"way": "release", "attention": "sdpa"})
    yield Case(
        name="release clip",
        about="2 s at 256p by 1B, 50 refinement steps a frame, guided, computed as the release does",
        measure="bench.gpu.clips:clip",
        limit_s=90,
        settings=shape("1b", "256p", toy=toy) | {"steps": 2 if toy else 50, "way": "release"},
    )
    traced = shape("1b", "256p", toy=toy) | {"n_text": 20 if toy else 200, "steps": 2}
    yield Case(
        name="trace",
        about="step of 1B at 256p under torch's profiler",
        measure="bench.gpu.trace:traced_step",
        limit_s=60,
        settings=traced,
        estimated=ESTIMATED["trace"],
    )
