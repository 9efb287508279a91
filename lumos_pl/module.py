"""The LightningModule: joins the MM-RoPE decoder, AR-DF masking and the loss. It is thin; look there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, PackedBatch
from lumos_pl.layout import TokenLayout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.attention_backend import check_backend
from lumos_pl.models.config import PLAIN, ComputeConfig, TransformerConfig
from lumos_pl.models.flops import forward_flops
from lumos_pl.models.parallel import gather_model, shard_model
from lumos_pl.models.transformer import LumosTransformer, likeliest_codes
from lumos_pl.optimized_module import OptimizedModule
from lumos_pl.optimizer import OptimizerConfig, update_ema


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the module needs to know besides the model and the vocabulary.

    Args:
        cpu_offload: of a sharded model, see `shard_model`.
    """

    mask: MaskConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    seed: int
    max_steps: int
    compute: ComputeConfig = PLAIN
    cpu_offload: bool = False


class LumosModule(OptimizedModule):
    """Trains Lumos-1 with AR-DF on packed batches.

    Args:
        model: the decoder's shape.
        layout: the vocabulary.
        training: masking, loss and optimizer.
        load_initial: called with the built decoder instead of drawing its weights (`init_from`).
    """

    def __init__(
        self,
        model: TransformerConfig,
        layout: TokenLayout,
        training: TrainingConfig,
        *,
        load_initial: Callable[[LumosTransformer], None] | None = None,
    ) -> None:
        super().__init__(training.optimizer, max_steps=training.max_steps)
        self.model_config, self.layout, self.training_config = model, layout, training
        self._load_initial = load_initial
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
        offload = self.training_config.cpu_offload
        shard_model(net, self.device_mesh, cpu_offload=offload)
        return net.to_empty(device="cpu" if offload else self.device_mesh.device_type)

    def on_fit_start(self) -> None:
        check_backend(self.training_config.compute.attention, self.device)

    # -- steps ---------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> MaskedBatch:
        """Hide tokens while the batch is still on the CPU: counting targets on a GPU would stall it."""
        return hide_tokens(batch, self.layout, self.training_config.mask, seed=self.training_config.seed)

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        outputs = self._step(batch)
        self.note_loss(outputs["loss"], batch.draws)
        return outputs

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        outputs = self._step(batch)
        self.log("loss/val", outputs["loss"], batch_size=len(batch.spans), sync_dist=True)
        return outputs

    def _step(self, batch: MaskedBatch) -> dict[str, Tensor]:
        hidden = self._net(batch.inputs, batch.spans)[batch.target_index]
        objective = partial(masked_cross_entropy, targets=batch.target_codes, config=self.training_config.loss)
        loss, token_loss = self._net.lm_head(hidden, objective)
        return {"loss": loss, "token_loss": token_loss, "target_frames": batch.target_frames}

    @torch.no_grad()
    def predict_codes(self, batch: MaskedBatch) -> Tensor:
        """The likeliest code of every hidden visual token, in one pass, [M]."""
        hidden = self._net(batch.inputs, batch.spans)[batch.target_index]
        objective = partial(likeliest_codes, chunk_size=self.training_config.loss.chunk_size)
        codes: Tensor = self._net.lm_head(hidden, objective)
        return codes

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
