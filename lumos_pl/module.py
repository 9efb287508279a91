"""The LightningModule: joins the MM-RoPE decoder, AR-DF masking and the loss. It is thin; look there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, PackedBatch
from lumos_pl.errors import NumericError
from lumos_pl.layout import TokenLayout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.flops import forward_flops
from lumos_pl.models.parallel import shard_model
from lumos_pl.models.transformer import LumosTransformer, visual_logits
from lumos_pl.optimizer import OptimizerConfig, apply_settings, build_optimizer, update_ema


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the module needs to know besides the model and the vocabulary."""

    mask: MaskConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    seed: int
    max_steps: int
    activation_checkpointing: bool = False


class LumosModule(LightningModule):
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
        super().__init__()
        self.model_config, self.layout, self.training_config = model, layout, training
        self._load_initial = load_initial
        self._recent: list[tuple[Tensor, tuple[str, ...]]] = []  # losses since the last update, with their samples
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
            net = LumosTransformer(
                self.model_config, activation_checkpointing=self.training_config.activation_checkpointing
            )
        if self.device_mesh is None:
            return net.to_empty(device=self.device)
        shard_model(net, self.device_mesh)
        return net.to_empty(device=self.device_mesh.device_type)

    # -- steps ---------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> MaskedBatch:
        """Hide tokens while the batch is still on the CPU: counting targets on a GPU would stall it."""
        return hide_tokens(batch, self.layout, self.training_config.mask, seed=self.training_config.seed)

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        outputs = self._step(batch)
        self._recent.append((outputs["loss"].detach(), batch.draws))
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
        chunks = hidden.split(self.training_config.loss.chunk_size)

        def argmax(_: Tensor, weight: Tensor, offset: int) -> Tensor:
            return torch.cat([visual_logits(chunk, weight, offset).argmax(1) for chunk in chunks])

        codes: Tensor = self._net.lm_head(hidden, argmax)
        return codes

    def step_flops(self, batch: MaskedBatch) -> float:
        """Operations of forward and backward over one batch (without recomputation)."""
        return 3.0 * forward_flops(self.model_config, batch.spans, len(batch.target_index)).total

    @property
    def _net(self) -> LumosTransformer:
        assert self.net is not None, "configure_model runs before any step"
        return self.net

    # -- optimization --------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        training = self.training_config
        optimizer, schedule = build_optimizer(
            training.optimizer, self._net.named_parameters(), max_steps=training.max_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """The configuration decides the optimizer's settings, also when a checkpoint brought others."""
        schedule = cast(LambdaLR, self.lr_schedulers())
        apply_settings(schedule.optimizer, schedule, self.training_config.optimizer)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip, log the step's loss and norm, and stop before the update if anything is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self._net.parameters(), self.training_config.optimizer.grad_clip)
        norm = cast(Tensor, norm.full_tensor()) if hasattr(norm, "full_tensor") else norm
        if not torch.isfinite(norm):
            self._stop_on_bad_numbers(norm)
        loss = torch.stack([loss for loss, _ in self._recent]).mean()  # over the batches that were accumulated
        self.log("loss/train", loss, prog_bar=True, sync_dist=True)
        self.log("grad_norm", norm)
        self._recent.clear()

    def _stop_on_bad_numbers(self, norm: Tensor) -> None:
        bad = [draws for loss, draws in self._recent if not torch.isfinite(loss)]
        samples = bad or [draws for _, draws in self._recent]
        raise NumericError(
            "loss is not finite" if bad else "gradient is not finite",
            where=f"step {self.global_step}, samples {', '.join(name for draws in samples for name in draws)}",
            got=f"gradient norm {norm.item()}",
            fix="nothing was updated or saved: look at these samples, or resume with a lower optimizer.lr",
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in on_train_batch_end: the checkpoint callback runs before that hook of the module.
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            update_ema(self.ema, self._net, self.training_config.optimizer.ema_decay)
