"""What the benchmarks of the decoder have in common: its size, where it computes, and how."""

from __future__ import annotations

import argparse
from typing import get_args

import torch

from lumos_pl.layout import TokenLayout, lumos1_layout
from lumos_pl.machinery.allocator import set_up_memory
from lumos_pl.models.config import AttentionBackend, ModelConfig, Recomputed, Size
from lumos_pl.models.transformer import INIT_STD, LumosTransformer
from lumos_pl.seeding import derive_seed

MAX_LENGTH = 65_536  # tokens of the longest sequence that is tried


def add_model_arguments(parser: argparse.ArgumentParser, *, latent_frames: int) -> None:
    parser.add_argument("way", choices=["ours", "release"])
    parser.add_argument("--size", choices=get_args(Size), default="small")
    parser.add_argument("--frames", dest="latent_frames", type=int, default=latent_frames, help="latent ones")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--cols", type=int, default=32)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed", "64-true"], default="32-true")
    parser.add_argument("--attention", choices=get_args(AttentionBackend), default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", choices=[kind for kind in get_args(Recomputed) if isinstance(kind, str)])
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")


def build_model(options: argparse.Namespace) -> tuple[LumosTransformer, TokenLayout]:
    """A decoder with drawn weights over the released vocabulary, in a process set up as `lumos` sets it up."""
    torch.set_num_threads(options.threads)
    set_up_memory()
    layout = lumos1_layout()
    config = ModelConfig(
        size=options.size,
        max_length=MAX_LENGTH,
        attention=options.attention,
        compile=options.compile,
        activation_checkpointing=options.recompute or "none",
    )
    net = build_decoder(config, layout, options.device)
    return net.double() if options.precision == "64-true" else net, layout


def build_decoder(config: ModelConfig, layout: TokenLayout, device: str) -> LumosTransformer:
    """A decoder in fp32 with drawn weights on a device."""
    with torch.device(device):
        net = LumosTransformer(config.build(layout), config)
    draw_weights(net)
    return net


@torch.no_grad()
def draw_weights(net: LumosTransformer) -> None:
    """Weights of a fresh model, drawn where it computes: `init_weights` takes a CPU longer than all of a 3B's steps."""
    draws = torch.Generator(net.lm_head.weight.device).manual_seed(derive_seed(0, "bench"))
    for name, parameter in net.named_parameters():
        if "norm" not in name:
            parameter.normal_(std=INIT_STD, generator=draws)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def text_id(layout: TokenLayout) -> int:
    """An id that may stand in a text, as may those after it."""
    return min(20_000, layout.n_text // 2)


def autocast(options: argparse.Namespace) -> torch.autocast:
    return torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16-mixed")
