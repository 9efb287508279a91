"""From captions to frames: a model with its vocabulary, text tokenizer and visual tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lumos_pl.atomic_file import naming
from lumos_pl.encoding import encode_gif, encode_mp4, encode_png
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generate import TOKENS_AT_ONCE, GenerationRequest, generate
from lumos_pl.seeding import derive_seed
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.text import PromptTemplate, TextTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer


def clip_seed(seed: int, index: int, sample: int = 0) -> int:
    """The seed of a prompt's sample: it depends on these three alone, not on what else is made, or where.

    Args:
        seed: of all of them.
        index: the prompt's place in its list, from 0.
        sample: which of the prompt's samples, from 0.
    """
    return derive_seed(seed, "clip", index, sample)


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedClip:
    """One image or clip.

    Args:
        codes: [T, H, W] int64, given frames included.
        frames: RGB uint8 [N, H, W, 3]; an image is one frame.
        fps: frames per second.
        prompt: the caption.
        seed: with the same model, prompt, settings and given frames, it gives the same codes.
    """

    codes: Tensor
    frames: Tensor
    fps: int
    prompt: str
    seed: int

    def encode(self, suffix: str) -> bytes:
        """The content of a file: `.mp4` (H.264), `.gif`, or, of an image, `.png`."""
        pictures = [Image.fromarray(frame) for frame in self.frames.numpy()]
        match suffix:
            case ".mp4":
                return encode_mp4(self.frames.numpy(), self.fps)
            case ".gif":
                return encode_gif(pictures, round(1000 / self.fps))
            case ".png" if len(pictures) == 1:
                return encode_png(pictures[0])
        expected = ".mp4, .gif" + (" or .png" if len(pictures) == 1 else f" for {len(pictures)} frames")
        raise ConfigError("unknown kind of file", where="suffix", got=repr(suffix), expected=expected)

    def save(self, file: str | Path) -> None:
        """Write a file of the kind that its name ends with, see `encode`."""
        with naming(Path(file)):
            Path(file).write_bytes(self.encode(Path(file).suffix))


@dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """Everything between a caption and its clip but the weights, which a run in training changes."""

    layout: TokenLayout
    prompt: PromptTemplate
    text_tokenizer: TextTokenizer
    visual_tokenizer: VisualTokenizer

    def request(self, caption: str, clip: ClipFormat, *, seed: int, given: Tensor | None = None) -> GenerationRequest:
        """What `generate` is asked for; the caption is worded as in training.

        Args:
            given: the clip's first frames, RGB uint8 [N, H, W, 3]: one for I2V, more for continuation.
        Raises:
            DataError: a size without tokens, or given frames that do not fit.
        """
        rows, cols = self.layout.latent_size(clip.width, clip.height)
        return GenerationRequest(
            text_ids=tuple(self.text_tokenizer.encode(self.wording(caption, clip))),
            frames=self.layout.latent_frames(clip.frames),
            rows=rows,
            cols=cols,
            duration=clip.duration,
            fps=clip.fps,
            seed=seed,
            given_codes=None if given is None else self._encode(given, clip),
        )

    def clips_at_once(self, clip: ClipFormat) -> int:
        """How many `generate` makes in one pass."""
        rows, cols = self.layout.latent_size(clip.width, clip.height)
        return max(1, TOKENS_AT_ONCE // SequenceSpans(0, 1, rows, cols).frame_length)

    def wording(self, caption: str, clip: ClipFormat) -> str:
        """What the model reads."""
        return self.prompt.render(
            width=clip.width, height=clip.height, frames=clip.frames, fps=clip.fps, caption=caption
        )

    def _encode(self, given: Tensor, clip: ClipFormat) -> Tensor:
        stride = self.layout.strides[0]
        good = given.dtype == torch.uint8 and given.shape[1:] == (clip.height, clip.width, 3)
        if not good or len(given) % stride != 1 % stride:
            raise DataError(
                "given frames do not fit the clip",
                where="given",
                got=f"{list(given.shape)} {given.dtype}",
                expected=f"[N, {clip.height}, {clip.width}, 3] torch.uint8 with N = 1 + {stride}k",
            )
        return self.visual_tokenizer.encode(given[None])[0].cpu()

    def sample(
        self,
        net: LumosTransformer,
        captions: Sequence[str],
        clip: ClipFormat,
        config: SamplingConfig,
        *,
        seed: int | Sequence[int],
        given: Sequence[Tensor | None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[GeneratedClip]:
        """A clip for each caption.

        Args:
            seed: of all, from which each has its own, see `clip_seed`; or one for each.
            given: for each, its first frames or None, see `request`.
            on_step: see `generate`.
        """
        seeds = [clip_seed(seed, i) for i in range(len(captions))] if isinstance(seed, int) else seed
        starts = [None] * len(captions) if given is None else given
        # An autocast around this call is for the decoder; a visual tokenizer gives other codes and pictures under it.
        as_saved = torch.autocast(net.lm_head.weight.device.type, enabled=False)
        with as_saved:
            requests = [
                self.request(caption, clip, seed=own, given=start)
                for caption, own, start in zip(captions, seeds, starts, strict=True)
            ]
        made = generate(net, self.layout, requests, config, on_step=on_step)
        with as_saved:
            return [
                GeneratedClip(codes=codes, frames=self._decode(codes, clip), fps=clip.fps, prompt=caption, seed=own)
                for codes, caption, own in zip(made, captions, seeds, strict=True)
            ]

    def _decode(self, codes: Tensor, clip: ClipFormat) -> Tensor:
        return self.visual_tokenizer.decode(codes[None])[0, : clip.frames].cpu()
