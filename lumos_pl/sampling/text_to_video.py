"""From captions to frames: a model with its vocabulary, text tokenizer and visual tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lumos_pl.layout import TokenLayout
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate
from lumos_pl.tokenizers.text import PromptTemplate, TextTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer


@dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """Everything between a caption and its clip but the weights, which a run in training changes."""

    layout: TokenLayout
    prompt: PromptTemplate
    text_tokenizer: TextTokenizer
    visual_tokenizer: VisualTokenizer

    def request(self, caption: str, clip: ClipFormat, *, seed: int) -> GenerationRequest:
        """What `generate` is asked for; the caption is worded as in training."""
        text = self.prompt.render(
            width=clip.width, height=clip.height, frames=clip.frames, fps=clip.fps, caption=caption
        )
        rows, cols = self.layout.latent_size(clip.width, clip.height)
        return GenerationRequest(
            text_ids=tuple(self.text_tokenizer.encode(text)),
            frames=self.layout.latent_frames(clip.frames),
            rows=rows,
            cols=cols,
            duration=clip.duration,
            fps=clip.fps,
            seed=seed,
        )

    def sample(
        self,
        net: LumosTransformer,
        captions: Sequence[str],
        clip: ClipFormat,
        config: SamplingConfig,
        *,
        seed: int,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """A clip for each caption, RGB uint8 [B, N, H, W, 3] on the CPU; caption i is drawn with `seed + i`."""
        requests = [self.request(caption, clip, seed=seed + i) for i, caption in enumerate(captions)]
        codes = torch.stack(generate(net, self.layout, requests, config, on_step=on_step))
        return self.visual_tokenizer.decode(codes)[:, : clip.frames].cpu()
