"""What every module around a decoder does, whatever it trains: build, open and save it, and make clips with it."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import Tensor, nn

from lumos_pl.adapters.config import AdapterConfig, targeted
from lumos_pl.adapters.training import (
    AdapterAverage,
    adapt,
    adapter_parameters,
    decoder_parameters,
    init_adapter,
    pack_frozen,
)
from lumos_pl.checkpoints.decoder import StoredDecoder, open_decoder
from lumos_pl.checkpoints.description import (
    adapter_identity,
    adapter_tensors,
    decoder_tensors,
    identity,
)
from lumos_pl.checkpoints.huggingface import is_released
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.checkpoints.opening import PREFIXES
from lumos_pl.checkpoints.reading import read_checkpoint
from lumos_pl.checkpoints.run_settings import RunSettings
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loaded_again import check_fits, check_place, made_again
from lumos_pl.machinery.lightning_private.loops import set_hyperparameters
from lumos_pl.models.attention_backend import (
    check_backend,
)
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.parallel import gather_model, shard_model
from lumos_pl.models.parameters import adapter_count
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.optimizer import OptimizerConfig, update_ema
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generated_clip import GeneratedClip
from lumos_pl.seeding import derive_seed
from lumos_pl.settings.plain import check_texts, from_plain, read_value, to_plain
from lumos_pl.tokenizers.load import (
    load_text_tokenizer,
    load_visual_tokenizer,
    need_text_tokenizer,
    need_visual_tokenizer,
)
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate, TextTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer, check_visual_tokenizer

Captions = str | Sequence[str]  # one or a batch of them, for `predict_step`


class DecoderModule(OptimizedModule):
    """A Lumos-1 decoder, or an adapter beside a frozen one, with its vocabulary, tokenizers and defaults for clips.

    Every setting may also be given as plain values, as `hparams` and checkpoints hold them.

    Args:
        mean_over: what a step's loss is the mean over, see `LossConfig`.
        seed: for the weights, and for everything else that the module draws.

    The other arguments are those of `LumosModule`.
    """

    def __init__(
        self,
        model: ModelConfig | Mapping[str, Any] | None,
        layout: LayoutConfig | Mapping[str, Any] | None,
        *,
        optimizer: OptimizerConfig | Mapping[str, Any] | None,
        mean_over: str,
        adapter: AdapterConfig | Mapping[str, Any] | None,
        seed: int,
        init_from: str | Path | None,
        visual_tokenizer: VisualTokenizer | str | Path | None,
        clip: ClipFormat | Mapping[str, Any] | None,
        sampling: SamplingConfig | Mapping[str, Any] | None,
    ) -> None:
        optimizer = from_plain(OptimizerConfig, optimizer, "optimizer")
        super().__init__(optimizer, seed=read_value(seed, int, "seed"), mean_over=mean_over)
        self.model_config = from_plain(ModelConfig, model, "model")
        self.layout_config = from_plain(LayoutConfig, layout, "layout")
        self.adapter_config = from_plain(AdapterConfig, adapter, "adapter")
        self.clip = from_plain(ClipFormat, clip, "clip")
        self.sampling = from_plain(SamplingConfig, sampling, "sampling")
        init_from = read_value(init_from, str | Path | None, "init_from")
        self.init_from = None if init_from is None else str(init_from)
        if isinstance(visual_tokenizer, Path):
            visual_tokenizer = str(visual_tokenizer)
        # In a list, or nn.Module would register a tokenizer that is a module, and train and save it.
        self._visual_tokenizer: list[VisualTokenizer | str | None] = [visual_tokenizer]
        self._keep(
            {
                "model": to_plain(self.model_config),
                "layout": to_plain(self.layout_config),
                "optimizer": to_plain(optimizer),
                "adapter": to_plain(self.adapter_config),
                "seed": seed,
                "init_from": self.init_from,
                "visual_tokenizer": visual_tokenizer if isinstance(visual_tokenizer, str) else None,
                "clip": to_plain(self.clip),
                "sampling": to_plain(self.sampling),
            }
        )
        self.layout = self.layout_config.build()
        if visual_tokenizer is not None and not isinstance(visual_tokenizer, str):
            check_visual_tokenizer(visual_tokenizer, self.layout)
        self.layout.check_words(self.adapter_config.words)
        self.shape = self.model_config.build(self.layout)
        on = self.adapter_config.is_on
        self.n_adapter = adapter_count(self.shape, self.adapter_config) if on else None  # refuses unknown targets
        self._loaded_from: RunSettings | None = None
        self._built_late = False
        self._base_weights: str | None = None
        self.net: LumosTransformer | None = None
        self.ema: nn.Module | None = None

    def _keep(self, settings: dict[str, Any]) -> None:
        """Keep these plain values as hyperparameters, even if a subclass saves something else under their names."""
        self._kept = getattr(self, "_kept", {}) | settings
        set_hyperparameters(self, settings)

    def save_hyperparameters(
        self, *names: Any, ignore: Any = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Lightning's, for a subclass's own arguments; those of a `LumosModule` are always saved as plain values."""
        frame = frame or sys._getframe(1)
        match names:
            case (Mapping() | Namespace() as given,):
                left_out = [ignore] if isinstance(ignore, str) else ignore or ()
                values = given if isinstance(given, Mapping) else vars(given)
                set_hyperparameters(self, {name: value for name, value in values.items() if name not in left_out})
                self._log_hyperparams = logger
            case _:
                super().save_hyperparameters(*names, ignore=ignore, frame=frame, logger=logger)
        self.hparams.update(getattr(self, "_kept", {}))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        hparams_file: None = None,
        strict: None = None,
        weights_only: None = None,
        **changes: Any,
    ) -> Self:
        """Open the module that a checkpoint holds, whichever Trainer wrote it; nothing named in the file is executed.

        A visual tokenizer that is code, as Cosmos's is, has to be given again. A subclass gets the saved settings that
        its `__init__` takes.

        Args:
            checkpoint_path: a .ckpt, a run's folder or a released one, see `open_decoder`.
            map_location: the device to move it to; the CPU by default.
            hparams_file, strict, weights_only: Lightning's, not needed here: everything is read from the file.
            changes: arguments of the module to change. A section given as a mapping changes the fields that it names,
                given as settings it replaces all of them. `adapter` starts a new adapter on the weights of the file;
                `init_from` says where the base of the file's adapter is now.
        Raises:
            CheckpointError: the file is damaged, hostile or not a decoder's, or its weights are of another module.
            ConfigError: the class takes other arguments than the file and `changes` give.
        """
        if map_location is not None:
            check_place(map_location)
        given = read_value(checkpoint_path, str | Path, "checkpoint_path")
        base = read_value(changes.get("init_from"), str | Path | None, "init_from")
        source = resolve_named(Path(given))
        stored = open_decoder(source, base=base)
        module = made_again(cls, stored, changes, named=str(given))
        check_fits(stored, module.shape, module.adapter_config)
        module._loaded_from = RunSettings.read(stored.config, stored.file)
        module.configure_model(stored)
        if not is_released(stored.file):
            module.on_load_checkpoint(read_checkpoint(stored.file))  # for what a subclass saved of its own
        own = {name for name in module.state_dict() if not name.startswith(tuple(PREFIXES.values()))}
        if own != stored.rest.keys():
            what, where = "weights of another module", min(own ^ stored.rest.keys())
            raise CheckpointError(what, file=stored.file, where=where, fix="load it by the class that wrote it")
        module.load_state_dict(stored.rest, strict=False)
        if module.ema is not None and stored.has_average:
            open_decoder(source, weights="ema", base=base).copy_into(module.ema)
        return module if map_location is None else module.to(map_location)

    def configure_model(self, stored: StoredDecoder | None = None) -> None:
        """Build on the meta device, shard if the strategy has a mesh, then give memory and weights.

        Args:
            stored: where the weights are, if not at `init_from`.
        """
        if self.net is not None:
            return
        if self.adapter_config.is_on and stored is None and self.init_from is None:
            fix = "set init_from to the checkpoint that it belongs to"
            raise ConfigError("an adapter of nothing", where="adapter", got=self.adapter_config.kind, fix=fix)
        n_ranks = 1 if self._trainer is None else self.trainer.world_size
        if self.adapter_config.frozen != "as_is" and n_ranks > 1:
            what, fix = "matrices of few bits on several devices", "set adapter.frozen=as_is, or trainer.devices=1"
            raise ConfigError(what, where="adapter.frozen", got=f"{n_ranks} ranks", fix=fix)
        self._built_late = self._trainer is not None
        net = self._allocate()
        if stored is not None:
            stored.copy_into(net)
        elif self.init_from is not None:
            load_initial_weights(net, source=Path(self.init_from))
        else:
            net.init_weights(self.seed)
        if net.adapter is not None and (stored is None or stored.adapter is None):
            init_adapter(net, self.seed)
            pack_frozen(net, net.adapter)
        self.net = net
        if self.optimizer_config.ema_decay and net.adapter is not None:
            self.ema = AdapterAverage(adapter_parameters(net))
        elif self.optimizer_config.ema_decay:
            self.ema = self._allocate().requires_grad_(False)
            self.ema.load_state_dict(net.state_dict())

    def _allocate(self) -> LumosTransformer:
        """A decoder with memory allocated for its weights (this rank's part of them) but nothing in it yet."""
        with torch.device("meta"):
            net = LumosTransformer(self.shape, self.model_config)
            if self.adapter_config.is_on:
                mixed = self._trainer is not None and self.trainer.precision == "bf16-mixed"
                adapt(net, self.adapter_config, frozen_dtype=torch.bfloat16 if mixed else None)
        if self.device_mesh is None:
            return net.to_empty(device=self.device)
        offload = getattr(self.trainer.strategy, "cpu_offload", False)
        shard_model(
            net,
            self.device_mesh,
            mixed=self.trainer.precision == "bf16-mixed",
            reshard_after_forward=getattr(self.trainer.strategy, "reshard_after_forward", True),
            cpu_offload=offload,
        )
        return net.to_empty(device="cpu" if offload else self.device_mesh.device_type)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        averaged = any(isinstance(c, StochasticWeightAveraging) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        if averaged and self._built_late:  # its copy was made before there were weights
            what, got = "nothing to average yet", "StochasticWeightAveraging"
            fix = "optimizer.ema_decay keeps an average; or call module.configure_model() before fit"
            raise ConfigError(what, where="Trainer(callbacks)", got=got, fix=fix)
        made, saved = (
            {name for name in of if name.startswith("net.")} for of in (self.state_dict(), self.saved_tensors())
        )
        if made != saved:
            what, got = "another decoder than a checkpoint of it holds", min(made ^ saved)
            fix = "AdapterConfig trains an adapter, ModelConfig(compile=True) or net.compile() compiles"
            raise ConfigError(what, where="module.net", got=got, fix=fix)
        device = self.trainer.strategy.root_device  # where it computes; weights may be offloaded elsewhere
        check_backend(self.model_config.attention, device)

    @property
    def _net(self) -> LumosTransformer:
        if self.net is None:
            raise ConfigError("the module has no weights yet", fix="call configure_model(), as a Trainer does")
        return self.net

    def on_train_start(self) -> None:
        super().on_train_start()
        # Not in a hook of the module: a subclass's own hook would drop it, and the checkpoint callback runs earlier.
        for optimizer in self.trainer.optimizers[-1:]:
            if not hasattr(optimizer, "averaging"):
                optimizer.averaging = optimizer.register_step_post_hook(self._average)  # type: ignore[attr-defined]

    def _average(self, *_: Any) -> None:
        if self.ema is not None:
            update_ema(self.ema, self._net, self.optimizer_config.ema_decay)

    # -- clips ---------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        if isinstance(captions := self.trainer.predict_dataloaders, str):
            check_texts(captions, "Trainer.predict(dataloaders)")

    def predict_step(self, batch: Captions, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedClip]:
        """A clip for each caption of the batch, or for its only one; each rank makes those of its own batches."""
        if self.device_mesh is not None:
            what, fix = "predictions of a sharded decoder", "open its checkpoint with LumosPipeline.load"
            raise ConfigError(what, where="Trainer(strategy)", fix=fix)
        lumos = self._pipeline(self._net)
        place = batch_idx * self.trainer.world_size + self.global_rank if self._trainer is not None else batch_idx
        seed = derive_seed(self.seed, "predict", dataloader_idx, place)
        return lumos.generate([batch] if isinstance(batch, str) else batch, seed=seed)

    def pipeline(self, ranks: int = 1) -> LumosPipeline | None:
        """The decoder in training and all that is needed to make clips with it, in the Trainer's precision.

        Without a Trainer the precision is `32-true`. All ranks have to call it, because a sharded decoder is gathered;
        it is None beyond the first `ranks` ranks, and on a rank without memory for the gathered decoder. Captions are
        worded and tokenized by `prompt` and `tokenizer` of the Trainer's data module; without one, as the checkpoint
        says that the module was loaded from; else as in the release, or as bytes if the layout's texts are bytes.

        Args:
            ranks: how many ranks get a pipeline.
        """
        net = self.sampling_net(ranks)
        return None if net is None else self._pipeline(net)

    def _pipeline(self, net: LumosTransformer) -> LumosPipeline:
        prompt_template, text_tokenizer = self._wording()
        return LumosPipeline(
            net=net,
            layout=self.layout,
            prompt_template=prompt_template,
            text_tokenizer=text_tokenizer,
            visual_tokenizer=self.visual_tokenizer,
            precision="32-true" if self._trainer is None else self.trainer.precision,
            clip=self.clip,
            sampling=self.sampling,
        )

    @property
    def visual_tokenizer(self) -> VisualTokenizer | None:
        """Loaded on first use."""
        held = self._visual_tokenizer[0]
        if isinstance(held, str):
            held = self._visual_tokenizer[0] = load_visual_tokenizer(held, device=str(self.device))
        return held

    def check_makes_clips(self, captions: Sequence[str] = (), clip: ClipFormat | None = None) -> None:
        """Raise ConfigError if `pipeline` would lack a tokenizer, and DataError if a clip could not be made.

        Works before training, without the decoder's weights.

        Args:
            captions: of the clips; one may be unreadable or too long.
            clip: their format, which may not fit either; None: the module's.
        """
        need_visual_tokenizer(self.visual_tokenizer)
        need_text_tokenizer(self._wording()[1], self.layout)
        with torch.device("meta"):
            shape = LumosTransformer(self.shape, self.model_config)
        self._pipeline(shape).check(captions, clip=clip)

    def _wording(self) -> tuple[PromptTemplate, TextTokenizer | None]:
        data: Any = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if hasattr(data, "prompt") and hasattr(data, "tokenizer"):
            return data.prompt, data.tokenizer or load_text_tokenizer(None, self.layout)
        if self._loaded_from is not None:
            loaded = self._loaded_from
            return loaded.prompt_template, load_text_tokenizer(loaded.text_tokenizer, self.layout)
        return PromptTemplate(RELEASE_PROMPT), load_text_tokenizer(None, self.layout)

    def sampling_net(self, ranks: int = 1) -> LumosTransformer | None:
        """The decoder to make clips with on the first `ranks` ranks, else None; see `pipeline`."""
        if self.device_mesh is None:
            return self._net if self.global_rank < ranks else None
        return gather_model(self._net, ranks=ranks, device=self.device)

    # -- what is saved -------------------------------------------------------------------------

    @property
    def strict_loading(self) -> bool:
        """Lightning's: a checkpoint of an adapter's training does not hold all of the module."""
        return not self.adapter_config.is_on

    @strict_loading.setter
    def strict_loading(self, strict: bool) -> None: ...

    @property
    def base_weights(self) -> str:
        """SHA-256 of the weights that the adapter belongs to; computed once."""
        if self._base_weights is None:
            self._base_weights = open_decoder(resolve_named(Path(str(self.init_from)))).weights_sha256()
        return self._base_weights

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Torch's, but also works before there are weights, which is how `ddp_spawn` hands over trained ones."""
        if any(name.startswith(PREFIXES["model"]) for name in state_dict):
            self.configure_model()
        return super().load_state_dict(state_dict, strict, assign)

    def adapter_by_name(self) -> AdapterConfig:
        """The adapter's settings, its target patterns replaced by the names of the matrices that they match."""
        names = targeted(self.adapter_config, dict(decoder_parameters(self._net)))
        return replace(self.adapter_config, targets=names)

    def identity(self) -> dict[str, Any]:
        of_adapter = adapter_identity(self.adapter_config, self.base_weights) if self.adapter_config.is_on else {}
        return {**identity(self.layout_config, self.shape), **super().identity(), **of_adapter}

    def saved_tensors(self) -> dict[str, Tensor]:
        on, averaged = self.adapter_config.is_on, self.optimizer_config.ema_decay > 0
        tensors = adapter_tensors(self.adapter_config, self.shape, None) if on else decoder_tensors(self.shape)
        prefixes = [PREFIXES["model"], *([PREFIXES["ema"]] if averaged else [])]
        return {prefix + name: tensor for prefix in prefixes for name, tensor in tensors.items()}

    def description(self) -> dict[str, Any]:
        """The settings of the module and its data, and the precision, in the sections of an experiment."""
        data = getattr(self.trainer, "datamodule", None)
        of_data = {} if data is None or not hasattr(data, "description") else data.description()
        return {**self.hparams, **of_data, "trainer": {"precision": self.trainer.precision}}
