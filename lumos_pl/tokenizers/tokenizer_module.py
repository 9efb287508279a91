"""The LightningModule that trains a visual tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lumos_pl.checkpoints.opening import PREFIXES
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.lightning_private.loops import set_hyperparameters
from lumos_pl.machinery.progress_bar import ProgressBar
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.seeding import derive_seed, generator
from lumos_pl.settings.plain import from_plain, read_value, to_plain
from lumos_pl.tokenizers.dictionary import DictionaryTokenizer
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.reconstruction import (
    CodebookUse,
    PixelBatch,
    mean_motion_kept,
    mean_psnr,
    reconstruct,
)
from lumos_pl.tokenizers.reconstruction_loss import ReconstructionConfig, level_loss, picture_loss
from lumos_pl.tokenizers.tokenizer_file import build_tokenizer
from lumos_pl.tokenizers.trained import TokenizerConfig, shape_of
from lumos_pl.tokenizers.transform_start import Start, start_as_transform
from lumos_pl.tokenizers.visual import to_unit
from lumos_pl.weighted_mean import WeightedMean


class TokenizerModule(OptimizedModule):
    """Trains a `TrainedTokenizer` to reconstruct its pictures.

    Validation looks at what a user of the codes gets: 8-bit pictures decoded from the codes in full precision. It logs
    `loss/val`, `psnr/val` (dB), `motion/val`, the share of the change from frame to frame that is reconstructed, if
    anything changes (`mean_motion_kept`), `codebook/used` and `codebook/perplexity` (a dictionary's still and moving
    patch of the same number count as one code).

    Every setting may also be given as plain values, as `hparams` and checkpoints hold them.

    Args:
        seed: for the weights.
        start: the first weights of the kind `fsq`: `random`, or `transform`: those of a transform coder, see
            transform_start.py, which need a lower learning rate than random ones.
    """

    LOGS = (*OptimizedModule.LOGS, "loss/val", "psnr/val", "motion/val", "codebook/used", "codebook/perplexity")

    def __init__(
        self,
        tokenizer: TokenizerConfig | Mapping[str, Any] | None = None,
        loss: ReconstructionConfig | Mapping[str, Any] | None = None,
        optimizer: OptimizerConfig | Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        start: Start = "random",
    ) -> None:
        shape = from_plain(TokenizerConfig, tokenizer, "tokenizer")
        loss = from_plain(ReconstructionConfig, loss, "loss")
        optimizer = from_plain(OptimizerConfig, optimizer, "optimizer")
        seed, start = read_value(seed, int, "seed"), read_value(start, Start, "start")
        super().__init__(optimizer, seed=seed)
        parts = {"tokenizer": shape, "loss": loss, "optimizer": optimizer}
        plain = {name: to_plain(part) for name, part in parts.items()}
        set_hyperparameters(self, {**plain, "seed": seed, "start": start})
        for name, got, expected in (("kind", optimizer.kind, "adamw"), ("ema_decay", optimizer.ema_decay, 0)):
            if got != expected:
                raise ConfigError("not for tokenizers", where=f"optimizer.{name}", got=got, expected=expected)
        self.tokenizer_config, self.loss_config = shape, loss
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "init"))
            self.net = build_tokenizer(shape)
        if start == "transform":
            if not isinstance(self.net, FsqTokenizer):
                raise ConfigError("a dictionary begins with patches of its clips", where="start", got=start)
            start_as_transform(self.net, generator(seed, "transform"))
        self._val_loss, self._psnr, self._motion = WeightedMean(), WeightedMean(), WeightedMean()
        self._codebook_use = CodebookUse(self.net.codebook_size)

    def setup(self, stage: str) -> None:
        """Fill a dictionary with the clips of the Trainer's data when a training begins."""
        if stage == "fit" and self.trainer.ckpt_path is None and isinstance(self.net, DictionaryTokenizer):
            if self.net.is_filled:
                return
            data = getattr(self.trainer, "datamodule", None)
            if data is None or not hasattr(data, "first_clips"):
                fix = "give fit(datamodule=PixelDataModule(..)), or module.net.fill(clips, generator) before"
                raise ConfigError("a dictionary without a patch", where="fit", fix=fix)
            with ProgressBar(disable=self.trainer.global_rank != 0) as progress:
                task = progress.add_task("filling the dictionary", total=1.0)
                self.net.fill(
                    data.first_clips(),
                    generator(self.seed, "dictionary"),
                    on_progress=lambda share: progress.update(task, completed=share),
                )

    def training_step(self, batch: PixelBatch, batch_idx: int) -> Tensor:
        pictures = to_unit(batch.frames)
        back = self.net(pictures)
        loss = picture_loss(self.loss_config, back.pictures[:, :, : pictures.shape[2]], pictures)
        if back.levels is not None:
            loss = loss + level_loss(self.loss_config, *back.levels)
        return self.loss_to_minimize(loss, len(batch.names), batch.names)

    def validation_step(self, batch: PixelBatch, batch_idx: int) -> None:
        reconstruction, codes = reconstruct(self.net, batch.frames)
        self._psnr.update(*mean_psnr(reconstruction, batch.frames))
        self._codebook_use.update(codes)
        loss = picture_loss(self.loss_config, to_unit(reconstruction), to_unit(batch.frames))
        self._val_loss.update(loss, len(batch.names))
        self._motion.update(*mean_motion_kept(reconstruction, batch.frames))
        self.log("loss/val", self._val_loss)
        self.log("psnr/val", self._psnr, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"codebook/{name}": value for name, value in self._codebook_use.compute().items()})
        if not (motion := self._motion.compute()).isnan():
            self.log("motion/val", motion)
        self._codebook_use.reset()
        self._motion.reset()

    def identity(self) -> dict[str, Any]:
        return {"tokenizer": shape_of(self.tokenizer_config), **super().identity()}

    def saved_tensors(self) -> dict[str, Tensor]:
        return {PREFIXES["model"] + name: tensor for name, tensor in self.net.state_dict().items()}

    def description(self) -> dict[str, Any]:
        return {"task": "tokenizer", **self.hparams}
