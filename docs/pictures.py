"""The pictures of README and site, each drawn from what the code computes: `make pictures`.

docs/figures/clips.gif       captions and the clips that the model which comes with the project makes of them
             path.png        text -> codes -> hidden -> clip, one step a panel
             refinement.png  two latent frames filling up with codes, step by step
             masks.svg       which positions each kind of mask hides
             attention.svg   who may attend to whom
             rope.svg        which axis each frequency rotates by
             positions.svg   where the tokens of a clip stand on each axis
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from experiments.study.figures import COLORS, INK, STYLE
from lumos_pl import LumosPipeline
from lumos_pl.machinery.encoding import encode_gif
from lumos_pl.masking import MASK_KINDS, OfCodes
from lumos_pl.models.attention import attn_mask
from lumos_pl.models.mm_rope import ROPE_KINDS, frequency_axes
from lumos_pl.sampling.generate import FrameInProgress
from lumos_pl.sampling.unfinished_clip import HIDDEN as HIDDEN_CODE
from lumos_pl.seeding import generator
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.code_colors import code_colors
from lumos_pl.tokenizers.load import need_visual_tokenizer

FIGURES = Path(__file__).parent / "figures"
CAPTIONS = (
    "a big red circle moves left fast",
    "a small blue square moves up slowly",
    "a big green triangle grows fast, on checks",
    "a small yellow circle shrinks slowly",
    "a big cyan triangle moves down fast, on stripes",
    "a big red circle left of a small blue square, the square moves up fast",
    "a big magenta square moves right slowly, on checks",
    "a small purple circle moves right fast",
)
SEED = 3
ACROSS, SHOWN_PX, GAP_PX, LABEL_PX, FONT_PX = 4, 128, 16, 64, 13
HIDDEN, SEEN = "#cf4a7d", "#e4e4e8"
AXES = ("time", "height", "width")


def draw_clips(pipeline: LumosPipeline, file: Path) -> None:
    """The clips side by side under their captions, as one endless animation."""
    clips = pipeline.generate(CAPTIONS, seed=SEED)
    font = ImageFont.load_default(FONT_PX)
    down = -(-len(clips) // ACROSS)
    size = (ACROSS * (SHOWN_PX + GAP_PX) + GAP_PX, down * (SHOWN_PX + LABEL_PX + GAP_PX) + GAP_PX)
    frames = []
    for number in range(len(clips[0].frames)):
        page = Image.new("RGB", size, "#16161c")
        draw = ImageDraw.Draw(page)
        for place, clip in enumerate(clips):
            left = GAP_PX + place % ACROSS * (SHOWN_PX + GAP_PX)
            top = GAP_PX + place // ACROSS * (SHOWN_PX + LABEL_PX + GAP_PX)
            words, lines = clip.prompt.split(), [""]
            for word in words:
                longer = f"{lines[-1]} {word}".strip()
                lines = [*lines[:-1], longer] if font.getlength(longer) <= SHOWN_PX else [*lines, word]
            draw.multiline_text((left, top), "\n".join(lines), "#d8d8e0", font, spacing=3)
            frame = Image.fromarray(clip.frames[number].numpy())
            page.paste(frame.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.NEAREST), (left, top + LABEL_PX))
        frames.append(page)
    file.write_bytes(encode_gif(frames, 1000 / clips[0].fps))


def draw_path(pipeline: LumosPipeline, file: Path) -> None:
    """What becomes of a caption and its clip, in training and at inference."""
    tokenizer = need_visual_tokenizer(pipeline.visual_tokenizer)
    clip = pipeline.generate([CAPTIONS[0]], seed=SEED)[0]
    frames, rows, cols = clip.codes.shape
    token_mask = MASK_KINDS["tube"](lambda: 0.7, frames, rows * cols, generator=generator(0, "picture"))
    colors = code_colors(clip.codes.numpy(), tokenizer.codebook_size)
    hidden = np.where(token_mask.view(frames, rows, cols, 1).numpy(), 200, colors).astype(np.uint8)
    stride = tokenizer.strides[0]
    shown = clip.frames.numpy()[::stride]
    titles = ("the clip", "its codes, one grid a latent frame", "training hides a tube of them", "what is asked for")
    asked = np.where(token_mask.view(frames, rows, cols, 1).numpy(), colors, 245).astype(np.uint8)
    figure = Figure(figsize=(7.6, 1.45 * len(titles) + 0.5), facecolor="white")
    for row, (title, pictures) in enumerate(zip(titles, (shown, colors, hidden, asked), strict=True)):
        for column, picture in enumerate(pictures):
            axes = figure.add_subplot(len(titles), frames, row * frames + column + 1)
            axes.imshow(picture, interpolation="nearest" if row else "bicubic")
            axes.set_axis_off()
            if column == 0:
                axes.set_title(title, loc="left", fontsize=9.5, color="#444444")
    figure.suptitle(f"“{clip.prompt}”", x=0.02, ha="left", fontsize=11, color="#222222")
    figure.subplots_adjust(left=0.02, right=0.99, top=0.91, bottom=0.01, wspace=0.06, hspace=0.25)
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=110)


def draw_refinement(pipeline: LumosPipeline, file: Path) -> None:
    """The first latent frames of a clip after each refinement step, grey where a code is still hidden."""
    looked: list[FrameInProgress] = []
    request = pipeline.request(CAPTIONS[0], pipeline.clip, seed=SEED)
    pipeline.generate_codes([request], on_frame=looked.append)
    steps, n_frames = pipeline.sampling.steps, 2
    size = need_visual_tokenizer(pipeline.visual_tokenizer).codebook_size
    figure = Figure(figsize=(7.6, 1.32 * n_frames + 0.3), facecolor="white")
    for state in looked[: steps * n_frames]:
        axes = figure.add_subplot(n_frames, steps, state.frame * steps + state.step)
        hidden = (state.codes == HIDDEN_CODE).numpy()
        axes.imshow(np.where(hidden[..., None], 200, code_colors(np.where(hidden, 0, state.codes.numpy()), size)))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        if state.frame == 0:
            axes.set_title(f"step {state.step}", fontsize=9.5, color="#444444")
        if state.step == 1:
            axes.set_ylabel(f"latent frame {state.frame}", fontsize=9.5, color="#444444")
    figure.subplots_adjust(left=0.04, right=0.99, top=0.9, bottom=0.01, wspace=0.06, hspace=0.08)
    FigureCanvasAgg(figure)
    figure.savefig(file, dpi=110)


def draw_masks(file: Path) -> None:
    """A clip of four latent frames of 8 x 8 positions, hidden by each kind at half of the positions."""
    frames, side = 4, 8
    figure = Figure(figsize=(6.4, 6.2))
    kinds = {name: kind for name, kind in MASK_KINDS.items() if not isinstance(kind, OfCodes)}  # these hide clips
    for row, (name, kind) in enumerate(kinds.items()):
        draws = generator(1, "picture", name)
        ratios = iter([0.2, 0.9, 0.5, 0.7] if name == "diffusion_forcing" else [0.5])
        token_mask = kind(ratios.__next__, frames, side * side, generator=draws)
        for column in range(frames):
            axes = figure.add_subplot(len(kinds), frames, row * frames + column + 1)
            _grid(axes, token_mask[column].view(side, side).numpy())
            if row == 0:
                axes.set_title(f"latent frame {column}", fontsize=9.5)
            if column == 0:
                axes.set_ylabel(name, fontsize=10)
    figure.subplots_adjust(left=0.08, right=0.99, top=0.94, bottom=0.01, wspace=0.06, hspace=0.08)
    _save(figure, file)


def draw_attention(file: Path) -> None:
    """The staircase of a text of 6 tokens and three latent frames of 2 x 2 codes."""
    spans = SequenceSpans(prefix=6, latent_frames=3, rows=2, cols=2, closing=1)
    figure = Figure(figsize=(4.6, 4.6))
    axes = figure.add_subplot()
    axes.imshow(attn_mask(spans).numpy(), cmap=ListedColormap([SEEN, COLORS[0]]), interpolation="nearest")
    edges = [0, spans.prefix, *(spans.frame_block(frame)[1] for frame in range(3))]
    for edge in edges[1:]:
        axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    middles = [(a + b - 1) / 2 for a, b in itertools.pairwise(edges)]
    names = ["text", *(f"frame {frame}" for frame in range(3))]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names, rotation=90, va="center")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel("is seen (key)")
    axes.set_ylabel("sees (query)")
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.tight_layout()
    _save(figure, file)


def draw_rope(file: Path) -> None:
    """The axis of each of 32 frequencies, high to low, by kind."""
    n_frequencies = 32
    figure = Figure(figsize=(7, 2.4))
    axes = figure.add_subplot()
    table = np.stack([frequency_axes(kind, n_frequencies).numpy() for kind in ROPE_KINDS])
    axes.imshow(table, cmap=ListedColormap(COLORS[:3]), aspect="auto", vmin=0, vmax=2, interpolation="nearest")
    axes.set_yticks(range(len(ROPE_KINDS)), list(ROPE_KINDS))
    axes.set_xticks([0, 15, 31], ["high", "", "low"])
    axes.set_xlabel("frequency")
    axes.set_xticks(np.arange(0.5, n_frequencies), minor=True)
    axes.set_yticks(np.arange(0.5, len(ROPE_KINDS)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    handles = [matplotlib.patches.Patch(color=COLORS[i], label=name) for i, name in enumerate(AXES)]
    axes.legend(handles=handles, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.tight_layout()
    _save(figure, file)


def draw_positions(file: Path) -> None:
    """Positions of every token of a text and two latent frames of 4 x 4 codes, strides 4, 8, 8."""
    spans = SequenceSpans(prefix=12, latent_frames=2, rows=4, cols=4, closing=1)
    figure = Figure(figsize=(7, 2.8))
    axes = figure.add_subplot()
    positions = spans.positions((4, 8, 8))
    for axis, name in enumerate(AXES):
        axes.step(range(spans.length), positions[:, axis], where="mid", color=COLORS[axis], label=name, linewidth=1.6)
    for frame in range(2):
        axes.axvspan(spans.frame_block(frame)[0] - 0.5, spans.frame_block(frame)[1] - 0.5, color=INK, alpha=0.10)
        axes.text(sum(spans.frame_block(frame)) / 2, 1, f"latent frame {frame}", ha="center", fontsize=9)
    axes.set_xlabel("token of the sequence")
    axes.set_ylabel("position")
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    _save(figure, file)


def _grid(axes: Axes, hidden: np.ndarray) -> None:
    axes.imshow(hidden, cmap=ListedColormap([SEEN, HIDDEN]), vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(np.arange(0.5, hidden.shape[1] - 1), minor=True)
    axes.set_yticks(np.arange(0.5, hidden.shape[0] - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _save(figure: Figure, file: Path) -> None:
    with io.BytesIO() as content:
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
        file.write_bytes(content.getvalue())


def main() -> None:
    torch.set_num_threads(2)
    pipeline = LumosPipeline.load()
    with matplotlib.rc_context(STYLE):
        draw_masks(FIGURES / "masks.svg")
        draw_attention(FIGURES / "attention.svg")
        draw_rope(FIGURES / "rope.svg")
        draw_positions(FIGURES / "positions.svg")
    draw_path(pipeline, FIGURES / "path.png")
    draw_refinement(pipeline, FIGURES / "refinement.png")
    draw_clips(pipeline, FIGURES / "clips.gif")


if __name__ == "__main__":
    main()
