"""The file that a tokenizer's training produces, and how good the tokenizer is."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from callbacks.reconstruction_grid import paint_pair_stills
from callbacks.steps import run_folder
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.tokenizers.load import VISUAL_TOKENIZER_FILE
from lumos_pl.tokenizers.reconstruction import mean_psnr, reconstruct
from lumos_pl.tokenizers.tokenizer_file import read_tokenizer
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.weighted_mean import WeightedMean

PICTURE_FILE = "reconstructions.png"


class TokenizerFile(Callback):
    """Writes `tokenizer.safetensors` to the run's folder at the end of training, reads it back, and evaluates it.

    `reconstructions.png` shows the first validation clips as reconstructed from that very file. The summary has its
    path, its fingerprint, and the PSNR of the validation clips in dB (None without any).

    Args:
        max_samples: clips in the picture.
    """

    def __init__(self, max_samples: int) -> None:
        self.max_samples = max_samples
        self._summary: dict[str, Any] = {}

    def summary(self) -> dict[str, Any]:
        return self._summary

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        path = folder / VISUAL_TOKENIZER_FILE
        if trainer.is_global_zero:
            cast(TokenizerModule, pl_module).net.save(path)
        trainer.strategy.barrier("tokenizer file")
        device = trainer.strategy.root_device
        tokenizer = read_tokenizer(path, device=str(device))
        psnr = WeightedMean().to(device)  # over the clips of all ranks
        data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
        for index, batch in enumerate(data.val_dataloader()):
            frames = batch.frames.to(device)
            reconstruction, _ = reconstruct(tokenizer, frames)
            psnr.update(*mean_psnr(reconstruction, frames))
            if index == 0 and trainer.is_global_zero:
                shown = slice(self.max_samples)
                picture = paint_pair_stills(
                    tokenizer.fingerprint, batch.names[shown], frames[shown], reconstruction[shown]
                )
                write_atomically(folder / PICTURE_FILE, picture)
        value = round(float(psnr.compute()), 3) if psnr.update_called else None
        self._summary = {"tokenizer": str(path), "fingerprint": tokenizer.fingerprint, "psnr": value}
