"""What is evaluated: a checkpoint's decoder with the data, tokenizers and settings of its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_modules.clips import Clip
from data_modules.shard_sample import ShardSample
from data_modules.token_data import TokenDataModule
from data_modules.token_pipeline import Source
from experiments.config import ExperimentConfig, saved_config
from experiments.evaluation.settings import EvalSettings
from experiments.evaluation.world import with_own_clips
from lumos_pl.checkpoints.decoder import SavedDecoder, load_decoder
from lumos_pl.devices import resolve_device
from lumos_pl.errors import CheckpointError
from lumos_pl.layout import TokenLayout
from lumos_pl.pipeline import place_decoder
from lumos_pl.sampling.generate import GenerationRequest, generate
from lumos_pl.sampling.text_to_video import clip_seed
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

OF_TRAINING = ("mask", "optimizer", "loggers")  # sections that an evaluation does not ask for


@dataclass(frozen=True, kw_only=True)
class Subject:
    """
    Args:
        saved: the decoder, on the device where it works.
        trained: the configuration of its run; where the checkpoint names none, `config`.
        config: that with the settings' overrides.
        data: set up for validation.
        visual_tokenizer: the run's; None where it has none.
    """

    saved: SavedDecoder
    trained: ExperimentConfig
    config: ExperimentConfig
    data: TokenDataModule
    visual_tokenizer: VisualTokenizer | None
    settings: EvalSettings

    @classmethod
    def open(cls, source: Path, settings: EvalSettings) -> Subject:
        """Load a run's folder, a .ckpt or a released folder; what does not fit raises before anything is computed.

        Clips that the settings ask for are made, see `with_own_clips`.
        """
        device = resolve_device(settings.device)
        saved = load_decoder(source, weights=settings.weights)
        config = saved_config(saved.config, saved.file, settings.overrides, without=OF_TRAINING)
        trained = saved_config(saved.config, saved.file, without=OF_TRAINING) if saved.config else config
        if not (isinstance(config, ExperimentConfig) and isinstance(trained, ExperimentConfig)):
            raise CheckpointError("not a Lumos-1 model", file=saved.file, where="task", got=config.task)
        config = with_own_clips(config, settings.overrides)
        data = TokenDataModule(config.data, saved.layout, seed=config.seed, max_length=saved.net.config.max_length)
        data.setup("validate")
        tokenizer = None
        if config.visual_tokenizer is not None:
            tokenizer = load_visual_tokenizer(config.visual_tokenizer, device=device)
            saved.check_visual_tokenizer(tokenizer)
            data.check_visual_tokenizer(tokenizer)
        place_decoder(saved.net, device, config.trainer.precision)
        return cls(
            saved=saved, trained=trained, config=config, data=data, visual_tokenizer=tokenizer, settings=settings
        )

    @property
    def layout(self) -> TokenLayout:
        return self.saved.layout

    @property
    def device(self) -> torch.device:
        return self.saved.net.lm_head.weight.device

    def autocast(self) -> AbstractContextManager[None]:
        """What the decoder works under; visual tokenizers do not."""
        enabled = self.config.trainer.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @property
    def source(self) -> Source:
        source = self.data.val_source()
        assert source is not None, "parts that need it are left out without it"
        return source

    def samples(self, count: int, *, frames: int | None = None) -> list[ShardSample]:
        """The first validation samples; see `Source.first`."""
        return list(self.source.first(count, frames=frames))

    def clip(self, sample: ShardSample) -> Clip:
        return self.source.clips.build(sample, f"eval/{sample.key}")

    def truth(self, sample: ShardSample) -> Tensor:
        """A sample's codes, [T, H, W] int64."""
        return self.clip(sample).sequence.codes

    def generate(
        self, samples: Sequence[ShardSample], given: Sequence[int], on_step: Callable[[int, int], None]
    ) -> list[Tensor]:
        """Codes of clips with the text, length and first latent frames of these, [T, H, W] each.

        A sample may say that it is longer than its codes are.

        Args:
            given: latent frames that are kept, of each.
        """
        requests = []
        for i, (sample, kept) in enumerate(zip(samples, given, strict=True)):
            sequence = self.clip(sample).sequence
            codes = sequence.codes
            request = GenerationRequest(
                text_ids=sequence.text_ids,
                frames=self.layout.latent_frames(sample.frames),
                rows=codes.shape[1],
                cols=codes.shape[2],
                duration=sample.duration,
                fps=sample.fps,
                seed=clip_seed(self.settings.seed, i),
                given_codes=codes[:kept] if kept else None,
            )
            requests.append(request)
        with self.autocast():
            return generate(self.saved.net, self.layout, requests, self.config.sampling, on_step=on_step)

    def decode(self, codes: Tensor) -> Tensor:
        """[T, H, W] to RGB uint8 [N, H, W, 3] on the CPU; one clip at a time, so that none depends on others."""
        assert self.visual_tokenizer is not None
        return self.visual_tokenizer.decode(codes[None])[0].cpu()
