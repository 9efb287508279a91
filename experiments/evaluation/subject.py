"""What is evaluated: a checkpoint's decoder with the data, tokenizers and settings of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data_modules.shards.sample import ShardSample
from data_modules.stream.source import Source
from data_modules.stream.training_sequence import TrainingSequence
from data_modules.token_data import TokenDataModule
from experiments.config import ExperimentConfig
from experiments.evaluation.settings import POSITIONS, EvalSettings, OnStep
from experiments.evaluation.world import with_own_clips
from experiments.merging import changed_by
from experiments.read_config import saved_config
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.devices import resolve_device
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest
from lumos_pl.sampling.generated_clip import clip_seed
from lumos_pl.tokenizers.load import load_visual_tokenizer, refuse_code

OF_TRAINING = ("mask", "optimizer", "loggers")  # sections that an evaluation does not ask for


@dataclass(frozen=True, kw_only=True)
class Subject:
    """
    Args:
        lumos: the model, opened from a file, with the tokenizers that its run has.
        trained: the configuration of its run; where the checkpoint names none, `config`.
        config: that with the settings' overrides.
        data: set up for validation.
    """

    lumos: LumosPipeline
    trained: ExperimentConfig
    config: ExperimentConfig
    data: TokenDataModule
    settings: EvalSettings

    @classmethod
    def open(cls, source: Path, settings: EvalSettings, *, visual_tokenizer: str | None = None) -> Subject:
        """Load a run's folder, a .ckpt or a released folder; what does not fit raises before anything is computed.

        Clips that the settings ask for are made, see `with_own_clips`.

        Args:
            visual_tokenizer: the one that the user's own files name, beside the overrides: see `load_visual_tokenizer`.
        """
        device = resolve_device(settings.device)
        saved = load_decoder(source, weights=settings.weights, adapters=settings.adapters)
        config = saved_config(saved.config, saved.file, settings.overrides, without=OF_TRAINING)
        trained = saved_config(saved.config, saved.file, without=OF_TRAINING) if saved.config else config
        if not (isinstance(config, ExperimentConfig) and isinstance(trained, ExperimentConfig)):
            raise CheckpointError("not a Lumos-1 model", file=saved.file, where="task", got=config.task)
        if any(word.startswith(POSITIONS) for word in settings.overrides):
            saved.net.rotate_as(config.model.rope, config.model.rope_theta)
        users_own = changed_by(settings.overrides).get("visual_tokenizer", visual_tokenizer)
        named_by = None if config.visual_tokenizer == users_own else saved.file
        if named_by is not None:
            refuse_code(config.visual_tokenizer, named_by)
        config = with_own_clips(config, settings.overrides)
        data = TokenDataModule(config.data, saved.layout, seed=config.seed, max_length=saved.net.config.max_length)
        data.setup("validate")
        tokenizer = None
        if config.visual_tokenizer is not None:
            tokenizer = load_visual_tokenizer(config.visual_tokenizer, device=device, named_by=named_by)
        lumos = LumosPipeline(
            net=saved.net,
            layout=saved.layout,
            prompt_template=data.prompt,
            text_tokenizer=data.tokenizer,
            visual_tokenizer=tokenizer,
            precision=config.trainer.precision,
            sampling=config.sampling,
            saved=saved,
        ).place(device)
        if tokenizer is not None:
            data.check_visual_tokenizer(tokenizer)
        return cls(lumos=lumos, trained=trained, config=config, data=data, settings=settings)

    @property
    def source(self) -> Source:
        source = self.data.val_source()
        assert source is not None, "parts that need it are left out without it"
        return source

    def samples(self, count: int, *, frames: int | None = None) -> list[ShardSample]:
        """The first validation samples; see `Source.first`."""
        return list(self.source.first(count, frames=frames))

    def training_sequence(self, sample: ShardSample) -> TrainingSequence:
        return self.source.sequences.build(sample, f"eval/{sample.key}")

    def truth(self, sample: ShardSample) -> Tensor:
        """A sample's codes, [T, H, W] int64."""
        return self.training_sequence(sample).sequence.codes

    def generate(
        self,
        samples: Sequence[ShardSample],
        n_given: Sequence[int],
        on_step: OnStep,
        *,
        sampling: SamplingConfig | None = None,
    ) -> list[Tensor]:
        """Codes of clips with the text, length and first latent frames of these, [T, H, W] each.

        A sample may say that it is longer than its codes are.

        Args:
            n_given: latent frames that are kept, of each.
            sampling: other than the run's.
        """
        requests = [
            GenerationRequest.continuing(
                self.training_sequence(sample).sequence,
                n_given=kept,
                latent_frames=self.lumos.layout.latent_frames(sample.frames),
                seed=clip_seed(self.settings.seed, i),
            )
            for i, (sample, kept) in enumerate(zip(samples, n_given, strict=True))
        ]
        return self.lumos.generate_codes(requests, sampling, on_step=on_step)
