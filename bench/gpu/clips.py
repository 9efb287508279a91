"""Making a clip, as `lumos sample` does it, or as the release does."""

from __future__ import annotations

from typing import Any, Literal

from bench.generation import WAYS, clip_request
from bench.gpu.card import Figures
from bench.gpu.steps import compiled_cheaply_on_a_cpu, vocabulary
from bench.measure import measure_here
from bench.model import MAX_LENGTH, build_decoder
from lumos_pl.machinery.devices import resolve_device
from lumos_pl.models.config import ModelConfig, Size
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import SamplingConfig


def clip(
    *,
    size: Size,
    latent_frames: int,
    rows: int,
    cols: int,
    steps: int,
    codebook_size: int | None = None,
    compile: bool = False,
    way: Literal["ours", "release"] = "ours",
) -> Figures:
    """Time of one clip in bf16, of all its refinement steps on average, and the peak memory.

    Args:
        latent_frames, rows, cols: of the clip.
        steps: refinement steps of a frame.
        codebook_size: of a small vocabulary; None: the released one.
    """
    device, layout = resolve_device("auto"), vocabulary(codebook_size).build()
    net = build_decoder(ModelConfig(size=size, max_length=MAX_LENGTH, compile=compile), layout, device)
    lumos = LumosPipeline(net=net, layout=layout, precision="bf16-mixed").place(device)

    def work(n_latent_frames: int, n_steps: int) -> Any:
        config = SamplingConfig(steps=n_steps, greedy=way == "release")  # which draws no other way here
        with lumos.autocast():
            return WAYS[way](net, layout, clip_request(layout, n_latent_frames, rows, cols), config).sum().item()

    with compiled_cheaply_on_a_cpu():
        work(2, 2)  # what the first passes set up once: for the text, and for frames of this size
        measured = measure_here(lambda: work(latent_frames, steps), device)
    return {
        "seconds": measured["seconds"],
        "step_seconds": measured["seconds"] / (latent_frames * steps),
        "peak_bytes": measured["total_mib"] * 2**20,
    }
