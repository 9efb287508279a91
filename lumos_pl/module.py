"""The LightningModule: joins the MM-RoPE decoder, AR-DF masking and the loss. It is thin; look there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, PackedBatch
from lumos_pl.layout import TokenLayout
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
from lumos_pl.models.config import PLAIN, ComputeConfig, TransformerConfig
from lumos_pl.models.flops import forward_flops
from lumos_pl.models.parallel import gather_model, shard_model
from lumos_pl.models.transformer import LumosTransformer, likeliest_codes
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.optimizer import OptimizerConfig, update_ema
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generated_clip import GeneratedClip
from lumos_pl.seeding import derive_seed
from lumos_pl.tokenizers.load import load_text_tokenizer, need_text_tokenizer, need_visual_tokenizer
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate, TextTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

Captions = str | Sequence[str]  # one, or a batch of them: what `predict_step` takes


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the module needs to know besides the model and the vocabulary.

    Args:
        reshard_after_forward, cpu_offload: of a sharded model, see `shard_model`.
    """

    mask: MaskConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    seed: int
    max_steps: int
    compute: ComputeConfig = PLAIN
    reshard_after_forward: bool = True
    cpu_offload: bool = False


class LumosModule(OptimizedModule):
    """Trains Lumos-1 with AR-DF on packed batches.

    Args:
        model: the decoder's shape.
        layout: the vocabulary.
        training: masking, loss and optimizer.
        load_initial: called with the built decoder instead of drawing its weights (`init_from`).
        visual_tokenizer: what made the codes, and decodes clips and pictures, on the device where it is.
        clip, sampling: how clips are made where nothing else is asked for; None: as in the release.
    """

    visual_tokenizer: VisualTokenizer | None

    def __init__(
        self,
        model: TransformerConfig,
        layout: TokenLayout,
        training: TrainingConfig,
        *,
        load_initial: Callable[[LumosTransformer], None] | None = None,
        visual_tokenizer: VisualTokenizer | None = None,
        clip: ClipFormat | None = None,
        sampling: SamplingConfig | None = None,
    ) -> None:
        super().__init__(training.optimizer, max_steps=training.max_steps)
        self.model_config, self.layout, self.training_config = model, layout, training
        self._load_initial = load_initial
        # Past nn.Module, which would save and train it with the decoder: ours is a module, others need not be.
        object.__setattr__(self, "visual_tokenizer", visual_tokenizer)
        self.clip, self.sampling = clip or ClipFormat(), sampling or SamplingConfig()
        self.attention_of: dict[str, AttentionChoice] = {}  # by kind of batch, where it was measured
        self.net: LumosTransformer | None = None
        self.ema: LumosTransformer | None = None

    def configure_model(self) -> None:
        """Build on the meta device, shard if the strategy has a mesh, then give memory and weights."""
        if self.net is not None:
            return
        training = self.training_config
        net = self._allocate()
        if self._load_initial is not None:
            self._load_initial(net)
        else:
            net.init_weights(training.seed)
        self.net = net
        if training.optimizer.ema_decay:
            self.ema = self._allocate().requires_grad_(False)
            self.ema.load_state_dict(net.state_dict())

    def _allocate(self) -> LumosTransformer:
        """A decoder with memory for its weights (this rank's part of them), and nothing in it yet."""
        with torch.device("meta"):
            net = LumosTransformer(self.model_config, self.training_config.compute)
        if self.device_mesh is None:
            return net.to_empty(device=self.device)
        training = self.training_config
        shard_model(
            net,
            self.device_mesh,
            mixed=self.trainer.precision == "bf16-mixed",
            reshard_after_forward=training.reshard_after_forward,
            cpu_offload=training.cpu_offload,
        )
        return net.to_empty(device="cpu" if training.cpu_offload else self.device_mesh.device_type)

    def on_fit_start(self) -> None:
        training = self.training_config  # whose weights may rest elsewhere than where it computes
        device = self.trainer.strategy.root_device if training.cpu_offload else self.device
        check_backend(training.compute.attention, device)

    # -- steps ---------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: PackedBatch | Captions, dataloader_idx: int) -> MaskedBatch | Captions:
        """Hide tokens while the batch is still on the CPU: counting targets on a GPU would stall it."""
        if not isinstance(batch, PackedBatch):
            return batch
        return hide_tokens(batch, self.layout, self.training_config.mask, seed=self.training_config.seed)

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        self._settle_attention(batch)
        outputs = self._step(batch)
        self.note_loss(outputs["loss"], batch.draws)
        return outputs

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

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        outputs = self._step(batch)
        self.log("loss/val", outputs["loss"], batch_size=len(batch.spans), sync_dist=True)
        return outputs

    def _step(self, batch: MaskedBatch) -> dict[str, Tensor]:
        objective = partial(masked_cross_entropy, targets=batch.target_codes, config=self.training_config.loss)
        loss, token_loss = self._net.lm_head(self._hidden_targets(batch), objective)
        return {"loss": loss, "token_loss": token_loss, "target_frames": batch.target_frames}

    @torch.no_grad()
    def predict_codes(self, batch: MaskedBatch) -> Tensor:
        """The likeliest code of every hidden visual token, in one pass, [M]."""
        rows = chunk_rows(self.training_config.loss, batch.inputs.device.type)
        codes: Tensor = self._net.lm_head(self._hidden_targets(batch), partial(likeliest_codes, chunk_size=rows))
        return codes

    def _hidden_targets(self, batch: MaskedBatch) -> Tensor:
        """Hidden states at the targets, [M, D]."""
        choice = self.attention_of.get(batch.kind)
        hidden = self._net(batch.inputs, batch.spans, attention=None if choice is None else choice.taken)
        return hidden.index_select(0, batch.target_index)  # [..] would sort the targets for its gradient

    def predict_step(self, batch: Captions, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedClip]:
        """A clip for each caption of a batch, or for the one that it is; in one process, as `pipeline` says."""
        lumos = self.pipeline()
        if lumos is None:
            return []
        seed = derive_seed(self.training_config.seed, "predict", dataloader_idx, batch_idx)
        return lumos.generate([batch] if isinstance(batch, str) else batch, seed=seed)

    # -- clips ---------------------------------------------------------------------------------

    def pipeline(self) -> LumosPipeline | None:
        """The decoder in training, with all that makes clips of it, in the Trainer's precision (alone: `32-true`).

        On rank 0, elsewhere None; all ranks call it: a sharded decoder is gathered. Captions are worded and turned into
        ids by `prompt` and `tokenizer` of the Trainer's data module; where it has none, as in the release, and in bytes
        if these are the layout's texts.
        """
        net = self.sampling_net()
        if net is None:
            return None
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

    def check_makes_clips(self) -> None:
        """Raise ConfigError where `pipeline` would lack a tokenizer: before training, and without its decoder."""
        need_visual_tokenizer(self.visual_tokenizer)
        need_text_tokenizer(self._wording()[1], self.layout)

    def _wording(self) -> tuple[PromptTemplate, TextTokenizer | None]:
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        prompt_template = getattr(data, "prompt", None) or PromptTemplate(RELEASE_PROMPT)
        return prompt_template, getattr(data, "tokenizer", None) or load_text_tokenizer(None, self.layout)

    def sampling_net(self) -> LumosTransformer | None:
        """The decoder to make clips with: on rank 0, elsewhere None. All ranks call it: a sharded one is gathered."""
        if self.device_mesh is None:
            return self._net if self.global_rank == 0 else None
        whole = gather_model(self._net)
        return None if whole is None else whole.to(self.device)

    def step_flops(self, batch: MaskedBatch) -> float:
        """Operations of forward and backward over one batch (without recomputation)."""
        return 3.0 * forward_flops(self.model_config, batch.spans, len(batch.target_index)).total

    @property
    def _net(self) -> LumosTransformer:
        assert self.net is not None, "configure_model runs before any step"
        return self.net

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in on_train_batch_end: the checkpoint callback runs before that hook of the module.
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            update_ema(self.ema, self._net, self.training_config.optimizer.ema_decay)
