"""Neither Lightning's sanity check nor a validation beforehand leaves a trace: callbacks log what they log without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.caption_fidelity import CaptionFidelity
from callbacks.frame_loss_balance import FrameLossBalance
from callbacks.jsonl_logger import JsonlLogger, read_records
from callbacks.kind_loss import KindLoss
from callbacks.progress import StepProgressBar
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.sample_grid import SampleGrid
from callbacks.sampled_clips import SampledClips
from callbacks.source_loss import SourceLoss
from callbacks.throughput import Throughput
from callbacks.tokenizer_file import TokenizerFile
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.tokenizers.reconstruction import PixelBatch
from lumos_pl.tokenizers.reconstruction_loss import ReconstructionConfig
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.callbacks.clips_to_show import CLIP, CONFIG, WORLD, TrueClips, clips
from tests.callbacks.tiny_run import TinyModule, loader, make_batch

PLANTED: Any = TrueClips()
OF_LUMOS: dict[str, Callable[[], Callback]] = {
    "frame_loss_balance": lambda: FrameLossBalance(2, 2),
    "kind_loss": lambda: KindLoss(2),
    "source_loss": lambda: SourceLoss(["b0", "b1", "b3"], 2),
    "sample_grid": lambda: SampleGrid(2, 2),
    "throughput": lambda: Throughput(2),
    "sampled_clips": lambda: SampledClips(list(PLANTED.drawn)[:2], every_n_steps=2, clip=CLIP, sampling=CONFIG),
    "caption_fidelity": lambda: CaptionFidelity(4, WORLD, CONFIG),
    "progress": lambda: StepProgressBar(2),
}
OF_TOKENIZERS: dict[str, Callable[[], Callback]] = {
    "reconstruction_grid": lambda: ReconstructionGrid(2, 2, fps=8),
    "tokenizer_file": lambda: TokenizerFile(2),
}
TIMES = ("throughput/", "tokens/s")


class Watch(Callback):
    """Notes what was there when the sanity check was over."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, ["never"]

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.left = [tag for tags in logged(self.folder).values() for tag in tags]


class Data(LightningDataModule):
    """Three batches to train on, two others to validate on."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        return loader(self.batches[:4])

    def val_dataloader(self) -> Any:
        return loader(self.batches[4:])


def logged(folder: Path) -> dict[str, Any]:
    """All that the loggers have, by tag; of what depends on the clock the steps alone."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()
    scalars = {
        tag: [(e.step, 0 if tag.startswith(TIMES) else e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    images = {
        tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in events.Tags().get("images", [])
    }
    lines = read_records(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    return {"scalars": scalars, "images": images, "lines": [[*sorted(line), line["step"]] for line in lines]}


def run(
    folder: Path, callback: Callback, module: LightningModule, batches: list[Any], sanity: int, validated: bool = False
) -> dict[str, Any]:
    watch = Watch(folder)
    if validated:
        aside: dict[str, Any] = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": isinstance(callback, ProgressBar),
        }
        before = Trainer(accelerator="cpu", callbacks=[callback], default_root_dir=folder / "aside", **aside)
        before.validate(module, datamodule=Data(batches), verbose=False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=4,
        val_check_interval=2,
        logger=[
            TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
            JsonlLogger(folder / "metrics.jsonl"),
            CSVLogger(folder, name="", version="csv"),
        ],
        callbacks=[callback, watch],
        default_root_dir=folder,
        log_every_n_steps=1,
        num_sanity_val_steps=sanity,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Data(batches))
    assert watch.left == ([] if sanity else ["never"])
    return logged(folder)


def parts(name: str) -> tuple[Callback, LightningModule, list[Any]]:
    """A callback, a module that it goes with, and batches of it."""
    if name in OF_LUMOS:
        module = TinyModule()
        module.made_with = PLANTED
        return OF_LUMOS[name](), module, [make_batch(f"b{i}", [(1 + i % 2 * 2, 4, 4)]) for i in range(7)]
    config = TokenizerConfig(levels=[4, 4], width=8, patch_width=4, blocks=1)
    still = [clips(2, 5, (40 * i, 9, 200)) for i in range(7)]
    batches = [PixelBatch(frames, [f"{i}/a", f"{i}/b"]) for i, frames in enumerate(still)]
    return OF_TOKENIZERS[name](), TokenizerModule(config, ReconstructionConfig(), OptimizerConfig()), batches


@pytest.mark.parametrize("name", [*OF_LUMOS, *OF_TOKENIZERS])
def test_the_sanity_check_leaves_no_trace(name: str, tmp_path: Path) -> None:
    found = [run(tmp_path / str(sanity), *parts(name), sanity) for sanity in (0, 2)]
    assert found[0] == found[1] and found[0]["scalars"]


@pytest.mark.parametrize("name", [*OF_LUMOS, *OF_TOKENIZERS])
def test_what_was_validated_is_trained_as_if_it_had_not_been(name: str, tmp_path: Path) -> None:
    """Trainer.validate is in inference mode, whose tensors a fit may not write to."""
    found = [run(tmp_path / str(validated), *parts(name), 2, validated) for validated in (False, True)]
    assert found[0] == found[1]
