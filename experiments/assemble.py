"""From a configuration to what a run is made of: its data, its module and its own callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.build import build_callbacks
from callbacks.progress import StepProgressBar
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.tokenizer_file import TokenizerFile
from data_modules.pixel_data import PixelDataModule
from data_modules.token_data import TokenDataModule
from experiments.config import Config, ExperimentConfig, TokenizerExperimentConfig
from experiments.plan.memory import place_here
from experiments.plan.placement import Placed
from lumos_pl.checkpoints.description import VISUAL_TOKENIZER, identity
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.errors import ConfigError
from lumos_pl.module import LumosModule, TrainingConfig
from lumos_pl.tokenizers.fsq_module import FsqModule
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What a run is made of.

    Args:
        data: opened and checked.
        build_module: the module, with drawn weights or (`fresh`) those that `init_from` names.
        callbacks: what it measures and shows.
        identity: all that a resumed run must have in common with the one it goes on from.
        placed: how a decoder is laid out over the GPUs at hand, in what memory.
    """

    data: LightningDataModule
    build_module: Callable[[bool], LightningModule]
    callbacks: list[Callback]
    identity: dict[str, Any]
    placed: Placed | None = None


def assemble(config: Config) -> Assembly:
    """Open the data and check all of the configuration against it, itself and this machine, before anything is written.

    Raises:
        ConfigError, DataError: what does not fit; a training step that this machine cannot hold.
    """
    settings = config.trainer
    if bool(settings.val_every_n_steps) != bool(config.data.val_root):
        rank_zero_warn("nothing is validated: that needs both data.val_root and trainer.val_every_n_steps")
    common = {
        "seed": config.seed,
        "batches_per_step": settings.accumulate * settings.processes,
        "optimizer": optimizer_identity(asdict(config.optimizer)),
    }
    match config:
        case ExperimentConfig():
            return _assemble_lumos(config, common)
        case TokenizerExperimentConfig():
            return _assemble_tokenizer(config, common)


def optimizer_identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides which state a run keeps beside its weights; all else of an optimizer may change."""
    return {"kind": settings["kind"], "ema": settings["ema_decay"] > 0}


def _assemble_lumos(config: ExperimentConfig, common: dict[str, Any]) -> Assembly:
    layout = config.layout.build()
    model = config.model.build(layout)
    data = TokenDataModule(
        config.data, layout, seed=config.seed, accumulate=config.trainer.accumulate, max_length=model.max_length
    )
    data.setup("fit")
    visual_tokenizer = _visual_tokenizer(config, data)
    _check_makes_clips(config, data)
    placed = place_here(config, data.train_manifests())
    training = TrainingConfig(
        mask=config.mask,
        loss=config.loss,
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
        compute=replace(config.model, activation_checkpointing=placed.placement.recompute),
        reshard_after_forward=placed.placement.reshard_after_forward,
        cpu_offload=config.trainer.cpu_offload,
    )

    def build_module(fresh: bool) -> LightningModule:
        load_initial = None
        if config.init_from is not None and fresh:
            load_initial = partial(load_initial_weights, source=Path(config.init_from))
        return LumosModule(
            model,
            layout,
            training,
            load_initial=load_initial,
            visual_tokenizer=visual_tokenizer,
            clip=config.callbacks.clip,
            sampling=config.callbacks.sampling,
        )

    return Assembly(
        data=data,
        build_module=build_module,
        callbacks=build_callbacks(config.callbacks, world=config.clips.world, joint=config.data.kind == "joint"),
        identity={
            "data": {**data.fingerprint(), VISUAL_TOKENIZER: data.visual_tokenizer},
            **identity(config.layout, model),
            **common,
        },
        placed=placed,
    )


def _visual_tokenizer(config: ExperimentConfig, data: TokenDataModule) -> VisualTokenizer | None:
    """What decodes samples, where the configuration names it."""
    if config.visual_tokenizer is None:
        return None
    # On rank 0, which decodes, where it trains: its GPU is the first of its node. The others only look whether it fits.
    decodes_on_gpu = not config.trainer.works_on_cpu and not _get_rank()
    tokenizer = load_visual_tokenizer(config.visual_tokenizer, device="cuda" if decodes_on_gpu else "cpu")
    data.check_visual_tokenizer(tokenizer)
    return tokenizer


def _check_makes_clips(config: ExperimentConfig, data: TokenDataModule) -> None:
    """Raise ConfigError where clips of captions are asked for and a tokenizer is missing."""
    if not (config.callbacks.prompts or config.callbacks.fidelity_captions):
        return
    if config.visual_tokenizer is None:
        where, fix = "visual_tokenizer", "visual_tokenizer=embedded"
    elif data.tokenizer is None:
        where, fix = "data.text_tokenizer", "set it to a tokenizer.json"
    else:
        return
    raise ConfigError(f"decoded samples need a {where.rpartition('.')[2].replace('_', ' ')}", where=where, fix=fix)


def _assemble_tokenizer(config: TokenizerExperimentConfig, common: dict[str, Any]) -> Assembly:
    if config.trainer.strategy == "fsdp2":
        raise ConfigError("tokenizers are not sharded", where="trainer.strategy", got="fsdp2", expected="auto or ddp")
    module = FsqModule(
        config.tokenizer, config.loss, config.optimizer, seed=config.seed, max_steps=config.trainer.max_steps
    )
    data = PixelDataModule(config.data, module.net.strides, seed=config.seed, accumulate=config.trainer.accumulate)
    data.setup("fit")
    shown = config.callbacks
    callbacks: list[Callback] = [TokenizerFile(shown.sample_grid_samples)]
    if shown.sample_grid_every_n_steps:
        grid = ReconstructionGrid(shown.sample_grid_every_n_steps, shown.sample_grid_samples, config.data.fps)
        callbacks.append(grid)
    if shown.progress_bar:
        callbacks.append(StepProgressBar(shown.log_every_n_steps))
    return Assembly(
        data=data,
        build_module=lambda fresh: module,
        callbacks=callbacks,
        identity={"data": data.fingerprint(), "tokenizer": asdict(config.tokenizer), **common},
    )
