"""From a configuration to what a run is made of: its data, its module and its own callbacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.adapter_file import AdapterFile
from callbacks.build import build_callbacks
from callbacks.progress import StepProgressBar
from callbacks.reconstruction_grid import ReconstructionGrid
from callbacks.step_seconds import StepSeconds
from callbacks.tokenizer_file import TokenizerFile
from data_modules.pixel_data import PixelDataModule
from data_modules.token_data import TokenDataModule
from experiments.config import Config, ExperimentConfig, TokenizerExperimentConfig
from experiments.plan.memory import check_tokenizer_fits, place_here
from experiments.plan.placement import Placed
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.devices import own_gpu
from lumos_pl.machinery.lightning_private.ranks import process_rank
from lumos_pl.module import LumosModule
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.visual import VisualTokenizer


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What a run is made of.

    Args:
        data: opened and checked.
        module: without its weights, for which it waits until the Trainer knows where they go.
        callbacks: what it measures and shows.
        placed: how a decoder is laid out over the GPUs at hand, in what memory.
    """

    data: TokenDataModule | PixelDataModule
    module: OptimizedModule
    callbacks: list[Callback]
    placed: Placed | None = None


def assemble(config: Config, *, was_there: bool = False) -> Assembly:
    """Open the data and check all of the configuration against it, itself and this machine, before anything is written.

    Args:
        was_there: the data were read before, by the run that is gone on with: their absence may pass.
    Raises:
        ConfigError, DataError: what does not fit; a training step that this machine cannot hold.
    """
    settings = config.trainer
    if bool(settings.val_every_n_steps) != config.data.has_validation:
        rank_zero_warn(
            "nothing is validated: that needs trainer.val_every_n_steps, and data.val_root or data.val_share"
        )
    match config:
        case ExperimentConfig():
            return _assemble_lumos(config, was_there)
        case TokenizerExperimentConfig():
            return _assemble_tokenizer(config, was_there)


def _assemble_lumos(config: ExperimentConfig, was_there: bool) -> Assembly:
    layout = config.layout.build()
    data = TokenDataModule(
        config.data,
        layout,
        seed=config.seed,
        max_length=config.model.max_length,
        world=config.world,
        visual_tokenizer=config.visual_tokenizer,
        was_there=was_there,
    )
    data.prepare_data()
    data.setup("fit")
    data.tell_of_left_out()
    data.warn_of_unread_words()
    visual_tokenizer = _visual_tokenizer(config, data)
    config = with_makeable_clips(config, data)
    placed = place_here(config, data.train_manifests())
    module = LumosModule(
        replace(config.model, activation_checkpointing=placed.placement.recompute),
        config.layout,
        mask=config.mask,
        loss=config.loss,
        optimizer=config.optimizer,
        adapter=config.adapter,
        seed=config.seed,
        init_from=config.init_from,
        visual_tokenizer=visual_tokenizer,
        clip=config.clip,
        sampling=config.sampling,
    )
    callbacks = build_callbacks(
        config.callbacks,
        world=config.world,
        joint=len(config.data.kinds) > 1,
        sources=list(config.data.sources),
        timeout=timedelta(seconds=config.trainer.rank_timeout_s),
    )
    return Assembly(
        data=data,
        module=module,
        callbacks=[AdapterFile(), *callbacks] if config.adapter.is_on else callbacks,
        placed=placed,
    )


def _visual_tokenizer(config: ExperimentConfig, data: TokenDataModule) -> VisualTokenizer | None:
    """What decodes samples, where the configuration names it."""
    if config.visual_tokenizer is None:
        return None
    # Ranks that decode do so where they train. The others only look whether it fits.
    shown = config.callbacks
    decoding = max(1, len(shown.prompts), 2 * shown.fidelity_captions)
    decodes_on_gpu = not config.trainer.works_on_cpu and process_rank() < decoding
    tokenizer = load_visual_tokenizer(config.visual_tokenizer, device=own_gpu() if decodes_on_gpu else "cpu")
    data.check_visual_tokenizer(tokenizer)
    return tokenizer


def with_makeable_clips(config: ExperimentConfig, data: TokenDataModule) -> ExperimentConfig:
    """The settings without the prompts that need not be and cannot, where a tokenizer is missing.

    Raises:
        ConfigError: a tokenizer is missing for clips that are to be.
    """
    shown = config.callbacks
    if not (shown.prompts or shown.fidelity_captions):
        return config
    if config.visual_tokenizer is None:
        where, fix = "visual_tokenizer", "visual_tokenizer=embedded"
    elif data.tokenizer is None:
        where, fix = "data.text_tokenizer", "set it to a tokenizer.json"
    else:
        return config
    if shown.prompts_optional and not shown.fidelity_captions:
        rank_zero_warn(f"no clips of callbacks.prompts are shown: {where} is not named")
        return replace(config, callbacks=replace(shown, prompts=[]))
    raise ConfigError(f"decoded samples need a {where.rpartition('.')[2].replace('_', ' ')}", where=where, fix=fix)


def _assemble_tokenizer(config: TokenizerExperimentConfig, was_there: bool) -> Assembly:
    if config.trainer.strategy == "fsdp2":
        raise ConfigError("tokenizers are not sharded", where="trainer.strategy", got="fsdp2", expected="auto or ddp")
    check_tokenizer_fits(config)
    module = TokenizerModule(config.tokenizer, config.loss, config.optimizer, seed=config.seed, start=config.start)
    data = PixelDataModule(config.data, module.net.strides, seed=config.seed, world=config.world, was_there=was_there)
    data.prepare_data()
    data.setup("fit")
    shown = config.callbacks
    callbacks: list[Callback] = [TokenizerFile(shown.sample_grid_samples), StepSeconds(shown.log_every_n_steps)]
    if shown.sample_grid_every_n_steps:
        grid = ReconstructionGrid(shown.sample_grid_every_n_steps, shown.sample_grid_samples, config.data.fps)
        callbacks.append(grid)
    if shown.progress_bar:
        callbacks.append(StepProgressBar(shown.log_every_n_steps))
    return Assembly(data=data, module=module, callbacks=callbacks)
