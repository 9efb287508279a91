"""The LightningModule: joins the MM-RoPE decoder, AR-DF masking and the loss. It is thin; look there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

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
from lumos_pl.ar_df import hide_behind_own, hide_tokens
from lumos_pl.batch import MaskedBatch, PackedBatch
from lumos_pl.checkpoints.decoder import StoredDecoder, open_decoder
from lumos_pl.checkpoints.description import (
    adapter_identity,
    adapter_tensors,
    decoder_tensors,
    identity,
    said_by,
)
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.checkpoints.initial import load_initial_weights
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.checkpoints.opening import PREFIXES
from lumos_pl.checkpoints.run_settings import RunSettings
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig, chunk_rows, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.attention_backend import (
    AttentionChoice,
    attention_seconds,
    candidates,
    check_backend,
    fastest,
    measure_backends,
)
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.flops import forward_flops, training_flops
from lumos_pl.models.parallel import gather_model, shard_model
from lumos_pl.models.parameters import adapter_count
from lumos_pl.models.transformer import LumosTransformer, likeliest_codes, visual_logits
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.optimizer import OptimizerConfig, update_ema
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.draw import draw_codes
from lumos_pl.sampling.generated_clip import GeneratedClip
from lumos_pl.seeding import derive_seed, generator
from lumos_pl.settings.plain import from_plain, read_value, to_plain
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.load import (
    is_data,
    load_text_tokenizer,
    load_visual_tokenizer,
    need_text_tokenizer,
    need_visual_tokenizer,
)
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate, TextTokenizer, check_readable
from lumos_pl.tokenizers.visual import VisualTokenizer
from lumos_pl.weighted_mean import WeightedMean

Captions = str | Sequence[str]  # one, or a batch of them: what `predict_step` takes

# The decoder's own numbers, of a checkpoint that names no size, as a released one.
SHAPE = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim"),
    *("qk_norm_rows", "norm_eps", "rope", "rope_theta", "max_length"),
)


class LumosModule(OptimizedModule):
    """Trains Lumos-1 with AR-DF on packed batches, in any Trainer.

    All settings may also be plain values, as `hparams` and a checkpoint hold them. What the Trainer knows (steps,
    accumulation, clipping, ranks, precision) is asked of it.

    Args:
        model: the decoder's shape and how it is computed.
        layout: the vocabulary.
        mask: what training hides.
        loss: what it asks for.
        optimizer: how the weights are updated.
        adapter: what is trained in place of the decoder, which then stays as `init_from` has it.
        seed: of the weights and of every mask.
        init_from: a run, a checkpoint or a released folder to take the weights from; None: they are drawn.
        visual_tokenizer: what made the codes, and decodes clips and pictures: itself, on the device where it is, or
            its name, see `load_visual_tokenizer`.
        clip, sampling: how clips are made where nothing else is asked for.
    """

    def __init__(
        self,
        model: ModelConfig | Mapping[str, Any] | None = None,
        layout: LayoutConfig | Mapping[str, Any] | None = None,
        *,
        mask: MaskConfig | Mapping[str, Any] | None = None,
        loss: LossConfig | Mapping[str, Any] | None = None,
        optimizer: OptimizerConfig | Mapping[str, Any] | None = None,
        adapter: AdapterConfig | Mapping[str, Any] | None = None,
        seed: int = 0,
        init_from: str | None = None,
        visual_tokenizer: VisualTokenizer | str | None = None,
        clip: ClipFormat | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
    ) -> None:
        loss = from_plain(LossConfig, loss, "loss")
        optimizer = from_plain(OptimizerConfig, optimizer, "optimizer")
        super().__init__(optimizer, seed=read_value(seed, int, "seed"), mean_over=loss.mean_over)
        self.model_config = from_plain(ModelConfig, model, "model")
        self.layout_config = from_plain(LayoutConfig, layout, "layout")
        self.mask_config, self.loss_config = from_plain(MaskConfig, mask, "mask"), loss
        self.adapter_config = from_plain(AdapterConfig, adapter, "adapter")
        self.clip = from_plain(ClipFormat, clip, "clip")
        self.sampling = from_plain(SamplingConfig, sampling, "sampling")
        self.init_from = init_from
        # In a list: nn.Module would save and train a tokenizer that is a module with the decoder.
        self._visual_tokenizer = [visual_tokenizer]
        self.save_hyperparameters(
            {
                "model": to_plain(self.model_config),
                "layout": to_plain(self.layout_config),
                "mask": to_plain(self.mask_config),
                "loss": to_plain(loss),
                "optimizer": to_plain(optimizer),
                "adapter": to_plain(self.adapter_config),
                "seed": seed,
                "init_from": init_from,
                "visual_tokenizer": visual_tokenizer if isinstance(visual_tokenizer, str) else None,
                "clip": to_plain(self.clip),
                "sampling": to_plain(self.sampling),
            }
        )
        self.layout = self.layout_config.build()
        self.layout.check_words(self.adapter_config.words)
        self.shape = self.model_config.build(self.layout)
        on = self.adapter_config.is_on
        self._n_adapter = adapter_count(self.shape, self.adapter_config) if on else None  # refuses what is not there
        self.mean_loss = nn.ModuleDict({phase: WeightedMean() for phase in ("val", "test")})
        self.attention_of: dict[str, AttentionChoice] = {}  # by kind of batch, where it was measured
        self._loaded_from: RunSettings | None = None
        self._built_late = False
        self._base_weights: str | None = None
        self.net: LumosTransformer | None = None
        self.ema: nn.Module | None = None

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
        """The module that a checkpoint holds, whoever's Trainer wrote it; nothing that the file names is executed.

        A visual tokenizer that is code, as Cosmos's, is to be given again.

        Args:
            checkpoint_path: a .ckpt, a run's folder or a released one, see `open_decoder`.
            map_location: the device it is moved to; the CPU by default.
            hparams_file, strict, weights_only: Lightning's, and not needed: what the file says is always read whole.
            changes: arguments of the module that are to be other than they were.
        Raises:
            CheckpointError: the file is damaged, hostile or not a decoder's.
        """
        source = resolve_named(Path(checkpoint_path))
        stored = open_decoder(source)
        with said_by(stored.file):
            kept = {} if stored.adapter is not None else {"init_from": None}
            module = cls(**(module_settings(cls, stored) | kept | changes))
        if module.shape != stored.model:
            raise CheckpointError(
                "the weights are of another decoder",
                file=stored.file,
                where="model",
                got=stored.model,
                expected=module.shape,
            )
        module._loaded_from = RunSettings.read(stored.config, stored.file)
        module.configure_model(stored)
        own = {name for name in module.state_dict() if not name.startswith(tuple(PREFIXES.values()))}
        if own != stored.rest.keys():
            what, where = "weights of another module", min(own ^ stored.rest.keys())
            raise CheckpointError(what, file=stored.file, where=where, fix="load it by the class that wrote it")
        module.load_state_dict(stored.rest, strict=False)
        if module.ema is not None and stored.has_average:
            open_decoder(source, weights="ema").copy_into(module.ema)
        return module if map_location is None else module.to(map_location)

    def configure_model(self, stored: StoredDecoder | None = None) -> None:
        """Build on the meta device, shard if the strategy has a mesh, then give memory and weights.

        Args:
            stored: where the weights are, if not where `init_from` says.
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
        if net.adapter is not None and stored is None:
            init_adapter(net, self.seed)
            pack_frozen(net, net.adapter)
        self.net = net
        if self.optimizer_config.ema_decay and net.adapter is not None:
            self.ema = AdapterAverage(adapter_parameters(net))
        elif self.optimizer_config.ema_decay:
            self.ema = self._allocate().requires_grad_(False)
            self.ema.load_state_dict(net.state_dict())

    def _allocate(self) -> LumosTransformer:
        """A decoder with memory for its weights (this rank's part of them), and nothing in it yet."""
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
        if averaged and self._built_late:  # it copied the module before there were weights
            what, got = "nothing to average yet", "StochasticWeightAveraging"
            fix = "optimizer.ema_decay keeps an average; or call module.configure_model() before fit"
            raise ConfigError(what, where="Trainer(callbacks)", got=got, fix=fix)
        device = self.trainer.strategy.root_device  # which computes; weights may rest elsewhere
        check_backend(self.model_config.attention, device)

    # -- steps ---------------------------------------------------------------------------------

    def forward(self, tokens: Tensor, spans: Sequence[SequenceSpans]) -> Tensor:
        """Logits of every visual code at every token of packed samples.

        Args:
            tokens: [S] ids, with MASK where a code is to be predicted.
            spans: one per sample, their lengths adding up to S.
        Returns:
            [S, codebook_size]; those at a hidden token are of the code that stands there.
        """
        logits: Tensor = self._net.lm_head(self._net(tokens, spans), visual_logits)
        return logits

    def on_before_batch_transfer(self, batch: PackedBatch | Captions, dataloader_idx: int) -> MaskedBatch | Captions:
        """Hide tokens while the batch is still on the CPU: counting targets on a GPU would stall it."""
        if not isinstance(batch, PackedBatch):
            return batch
        return hide_tokens(batch, self.layout, self.mask_config, seed=self.seed, progress=self.progress)

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        batch = self._self_forced(batch)
        if self.adapter_config.dropout > 0:  # nothing else draws from torch's own generators
            torch.manual_seed(derive_seed(self.seed, "adapter dropout", *batch.appearances))
        self._settle_attention(batch)
        outputs = self._step(batch)
        loss = self.loss_to_minimize(outputs["loss"], len(batch.target_index), batch.appearances)
        return outputs | {"loss": loss}

    def _self_forced(self, batch: MaskedBatch) -> MaskedBatch:
        """The batch, or in a share of cases one with the model's own codes in it, drawn as clips are."""
        share, config = self.mask_config.self_forcing, self.mask_config
        draws = generator(self.seed, "own codes", *batch.appearances)
        if not share or torch.rand((), generator=draws).item() >= share:
            return batch
        uniform = torch.rand(len(batch.target_index), dtype=torch.float64, generator=draws).to(batch.inputs.device)
        with torch.no_grad():
            drawn = partial(draw_codes, uniform=uniform, config=self.sampling)
            codes, _ = self._net.lm_head(self.states_at_targets(batch), drawn)
        own = hide_behind_own(batch.to("cpu"), codes.cpu(), self.layout, config, seed=self.seed, progress=self.progress)
        return own.to(batch.inputs.device)

    def _settle_attention(self, batch: MaskedBatch) -> None:
        """On a GPU, let `auto` be what is the fastest on the first batch of images, and on the first one of videos.

        Every rank finds out for itself: they need not agree, and so need not ask each other.
        """
        net, device, kind = self._net, batch.inputs.device, batch.kind
        if device.type != "cuda" or net.compute.attention != "auto" or kind in self.attention_of:
            return
        dtype = net.compute_dtype(device)
        seconds = measure_backends(
            candidates(batch.spans, device, dtype, compiled=net.compute.compile),
            lambda backend: attention_seconds(backend, batch.spans, net.config, device, dtype),
        )
        self.attention_of[kind] = AttentionChoice(fastest(seconds), seconds)
        if self.global_rank == 0:
            print(f"attention of {kind}s: {self.attention_of[kind].describe()}")

    def validation_step(self, batch: MaskedBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: MaskedBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self._evaluate(batch, "test", dataloader_idx)

    def _evaluate(self, batch: MaskedBatch, phase: str, dataloader_idx: int) -> dict[str, Tensor]:
        """Log the mean over all hidden tokens, whatever batch or rank they are in."""
        outputs = self._step(batch)
        loss, n_targets = outputs["loss"], len(batch.target_index)
        if dataloader_idx:  # a second loader of somebody's own: Lightning's mean, exact on one process
            self.log(f"loss/{phase}", loss, batch_size=n_targets, sync_dist=True)
            return outputs
        mean = cast(WeightedMean, self.mean_loss[phase].to(loss.device))
        mean.update(loss, n_targets if batch.counts else 0)
        self.log(f"loss/{phase}", mean)
        return outputs

    def _step(self, batch: MaskedBatch) -> dict[str, Tensor]:
        objective = partial(masked_cross_entropy, targets=batch.target_codes, config=self.loss_config)
        loss, token_loss = self._net.lm_head(self.states_at_targets(batch), objective)
        return {"loss": loss, "token_loss": token_loss, "target_frames": batch.target_frames}

    @torch.no_grad()
    def predict_codes(self, batch: MaskedBatch) -> Tensor:
        """The likeliest code of every hidden visual token, in one pass, [M]."""
        rows = chunk_rows(self.loss_config, batch.inputs.device.type)
        codes: Tensor = self._net.lm_head(self.states_at_targets(batch), partial(likeliest_codes, chunk_size=rows))
        return codes

    def states_at_targets(self, batch: MaskedBatch) -> Tensor:
        """The decoder's states at the targets, [M, D]."""
        choice = self.attention_of.get(batch.kind)
        states = self._net(batch.inputs, batch.spans, attention=None if choice is None else choice.taken)
        return states.index_select(0, batch.target_index)  # [..] would sort the targets for its gradient

    def predict_step(self, batch: Captions, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedClip]:
        """A clip for each caption of a batch, or for the one that it is; on every rank those of its own batches."""
        if self.device_mesh is not None:
            what, fix = "predictions of a sharded decoder", "open its checkpoint with LumosPipeline.load"
            raise ConfigError(what, where="Trainer(strategy)", fix=fix)
        lumos = self._pipeline(self._net)
        place = batch_idx * self.trainer.world_size + self.global_rank if self._trainer is not None else batch_idx
        seed = derive_seed(self.seed, "predict", dataloader_idx, place)
        return lumos.generate([batch] if isinstance(batch, str) else batch, seed=seed)

    # -- clips ---------------------------------------------------------------------------------

    def pipeline(self, ranks: int = 1) -> LumosPipeline | None:
        """The decoder in training, with all that makes clips of it, in the Trainer's precision (alone: `32-true`).

        On the first ranks, elsewhere None; all ranks call it: a sharded decoder is gathered, and where a rank has no
        room for it, it is None too. Captions are worded and turned into ids by `prompt` and `tokenizer` of the
        Trainer's data module; where there is none, as the checkpoint says that the module was loaded from; else as in
        the release, and in bytes if these are the layout's texts.

        Args:
            ranks: on how many.
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
        """Loaded when it is first asked for."""
        held = self._visual_tokenizer[0]
        if isinstance(held, str):
            held = self._visual_tokenizer[0] = load_visual_tokenizer(held, device=str(self.device))
        return held

    def check_makes_clips(self, captions: Sequence[str] = ()) -> None:
        """Raise ConfigError where `pipeline` would lack a tokenizer, and DataError where a caption cannot be read.

        Before training, and without its decoder.
        """
        need_visual_tokenizer(self.visual_tokenizer)
        text_tokenizer = need_text_tokenizer(self._wording()[1], self.layout)
        for caption in captions:
            check_readable(text_tokenizer, caption)

    def _wording(self) -> tuple[PromptTemplate, TextTokenizer | None]:
        data: Any = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        if hasattr(data, "prompt") and hasattr(data, "tokenizer"):
            return data.prompt, data.tokenizer or load_text_tokenizer(None, self.layout)
        if self._loaded_from is not None:
            loaded = self._loaded_from
            return loaded.prompt_template, load_text_tokenizer(loaded.text_tokenizer, self.layout)
        return PromptTemplate(RELEASE_PROMPT), load_text_tokenizer(None, self.layout)

    def sampling_net(self, ranks: int = 1) -> LumosTransformer | None:
        """The decoder to make clips with, on the first ranks, see `pipeline`."""
        if self.device_mesh is None:
            return self._net if self.global_rank < ranks else None
        return gather_model(self._net, ranks=ranks, device=self.device)

    def step_flops(self, batch: MaskedBatch) -> float:
        """Operations of forward and backward over one batch (without recomputation)."""
        forward = forward_flops(self.shape, batch.spans, len(batch.target_index))
        n_tokens, codes = sum(spans.length for spans in batch.spans), bool(self.adapter_config.codes)
        done = training_flops(forward, n_tokens=n_tokens, n_adapter=self._n_adapter, head_gradient=codes)
        return float(done.total)

    @property
    def _net(self) -> LumosTransformer:
        if self.net is None:
            raise ConfigError("the module has no weights yet", fix="call configure_model(), as a Trainer does")
        return self.net

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in on_train_batch_end: the checkpoint callback runs before that hook of the module.
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            update_ema(self.ema, self._net, self.optimizer_config.ema_decay)

    # -- what is saved -------------------------------------------------------------------------

    @property
    def strict_loading(self) -> bool:
        """Lightning's: of an adapter's training what is saved is not all of the module."""
        return not self.adapter_config.is_on

    @strict_loading.setter
    def strict_loading(self, strict: bool) -> None: ...

    @property
    def base_weights(self) -> str:
        """Digest of the weights that the adapter belongs to; read once."""
        if self._base_weights is None:
            self._base_weights = open_decoder(resolve_named(Path(str(self.init_from)))).weights_sha256()
        return self._base_weights

    def adapter_by_name(self) -> AdapterConfig:
        """The adapter's settings with the names of the decoder's matrices instead of patterns for them."""
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
        """The module's settings, its data's, and the precision, in the sections that an experiment has."""
        data = getattr(self.trainer, "datamodule", None)
        of_data = {} if data is None or not hasattr(data, "description") else data.description()
        return {**self.hparams, **of_data, "trainer": {"precision": self.trainer.precision}}


def module_settings(kind: type[LumosModule], stored: StoredDecoder) -> dict[str, Any]:
    """The arguments of the module that a checkpoint was made with, as far as it says them; of a release, its shape."""
    own = (base.__init__ for base in kind.__mro__ if issubclass(base, LumosModule))
    arguments = {name for init in own for name in inspect.signature(init).parameters}
    said = {name: value for name, value in in_current_keys(stored.config).items() if name in arguments}
    if not is_data(said.get("visual_tokenizer")):  # Cosmos's is code, which no checkpoint may name
        said.pop("visual_tokenizer", None)
    shape = {name: getattr(stored.model, name) for name in SHAPE}
    return {"model": shape, **said, "layout": to_plain(stored.layout)}
