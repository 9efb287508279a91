"""What comes back of videos through visual tokenizers, beside each 8 x 8 block painted in its mean colour.

python -m bench.reconstruction VIDEOS [--tokenizers general embedded] [--sides 128 256] [--out sheet.png]

For each clip PSNR and the share of its change from frame to frame that comes back; for each tokenizer the codes in use
and its frames a second. The sheet shows truth, mean colours and reconstructions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from callbacks.picture_table import SHOWN_PX, Row, paint_table, show_frame
from data_modules.media.decode import ClipRequest
from data_modules.media.reader import MediaReader
from experiments.own.judge import mean_colours, psnr
from lumos_pl.machinery.encoding import encode_png
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.reconstruction import motion_kept, reconstruct

FRAMES, FPS = 17, 8


def read_clips(folder: Path, side: int) -> dict[str, Tensor]:
    """The first frames of each mp4 file of a folder, by its name."""
    request = ClipRequest(sizes=((side, side),), fps=FPS, max_frames=FRAMES, min_frames=FRAMES)
    with MediaReader() as reader:
        return {path.stem: torch.from_numpy(reader.read(path, request).frames) for path in sorted(folder.glob("*.mp4"))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", type=Path)
    parser.add_argument("--tokenizers", nargs="+", default=["general", "embedded"])
    parser.add_argument("--sides", nargs="+", type=int, default=[128, 256])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    tokenizers = {name: load_visual_tokenizer(name) for name in options.tokenizers}
    rows = []
    for side in options.sides:
        clips = read_clips(options.videos, side)
        for clip, truth in clips.items():
            plain = torch.from_numpy(mean_colours(truth.numpy()))
            print(f"{side} px {clip}: mean colours {psnr(plain.numpy(), truth.numpy()):.2f} dB", end="")
            pictures = {"truth": truth, "mean colours": plain}
            for name, tokenizer in tokenizers.items():
                made = pictures[name] = reconstruct(tokenizer, truth[None])[0][0]
                print(f", {name} {psnr(made.numpy(), truth.numpy()):.2f} dB", end="")
                print(f" with {float(motion_kept(made[None], truth[None])):.0%} of the motion", end="")
            print()
            for name, frames in pictures.items():
                shown = [show_frame(frames[i].numpy(), SHOWN_PX) for i in (0, FRAMES // 2, FRAMES - 1)]
                rows.append(Row(f"{clip} {side} px\n{name[-24:]}", shown))
        batch = torch.stack(list(clips.values()))
        for name, tokenizer in tokenizers.items():
            begun = time.perf_counter()
            codes = tokenizer.encode(batch)
            encoded = time.perf_counter()
            tokenizer.decode(codes)
            count, ended = batch.shape[0] * FRAMES, time.perf_counter()
            print(f"{side} px {name}: {len(codes.unique())} codes in {codes.numel()} cells, ", end="")
            print(f"encodes {count / (encoded - begun):.0f} and decodes {count / (ended - encoded):.0f} frames/s")
    if options.out is not None:
        title = f"through {' and '.join(tokenizers)}"
        options.out.write_bytes(encode_png(paint_table(title, ["first", "middle", "last"], rows)))


if __name__ == "__main__":
    main()
