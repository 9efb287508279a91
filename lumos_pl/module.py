"""The LightningModule: joins the MM-RoPE decoder, AR-DF masking and the loss. It is thin; the work is done there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.ar_df import hide_behind_own, hide_tokens
from lumos_pl.batch import MaskedBatch, PackedBatch, check_masked, check_tokens
from lumos_pl.decoder_module import Captions, DecoderModule
from lumos_pl.errors import DataError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig, chunk_rows, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.attention_backend import (
    AttentionChoice,
    attention_seconds,
    candidates,
    fastest,
    measure_backends,
)
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.flops import forward_flops, training_flops
from lumos_pl.models.transformer import likeliest_codes, visual_logits
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.draw import draw_codes
from lumos_pl.seeding import derive_seed, generator
from lumos_pl.settings.plain import from_plain, to_plain
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.visual import VisualTokenizer
from lumos_pl.weighted_mean import WeightedMean


class LumosModule(DecoderModule):
    """Trains Lumos-1 with AR-DF on packed batches, in any Trainer.

    Every setting may also be given as plain values, as `hparams` and checkpoints hold them. Whatever the Trainer knows
    (steps, accumulation, clipping, ranks, precision) is taken from it.

    Args:
        model: the decoder's shape and how it is computed.
        layout: the vocabulary.
        mask: what training hides.
        loss: what the model is asked for.
        optimizer: how the weights are updated.
        adapter: what is trained in place of the decoder, which then keeps the weights of `init_from`.
        seed: for the weights and for every mask.
        init_from: a run, a checkpoint or a released folder to take the weights from; None draws them.
        visual_tokenizer: the one that made the codes, used to decode clips and pictures: the object, on the device
            where it is, or its name, see `load_visual_tokenizer`.
        clip, sampling: the defaults for making clips.
    """

    LOGS = (*DecoderModule.LOGS, "loss/val")

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
        init_from: str | Path | None = None,
        visual_tokenizer: VisualTokenizer | str | Path | None = None,
        clip: ClipFormat | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
    ) -> None:
        loss = from_plain(LossConfig, loss, "loss")
        super().__init__(
            model,
            layout,
            optimizer=optimizer,
            mean_over=loss.mean_over,
            adapter=adapter,
            seed=seed,
            init_from=init_from,
            visual_tokenizer=visual_tokenizer,
            clip=clip,
            sampling=sampling,
        )
        self.mask_config, self.loss_config = from_plain(MaskConfig, mask, "mask"), loss
        self._keep({"mask": to_plain(self.mask_config), "loss": to_plain(loss)})
        self.mean_loss = nn.ModuleDict({phase: WeightedMean() for phase in ("val", "test")})
        self.attention_of: dict[str, AttentionChoice] = {}  # by kind of batch, once measured

    def forward(self, tokens: Tensor, spans: Sequence[SequenceSpans]) -> Tensor:
        """Logits of every visual code at every token of packed samples.

        Args:
            tokens: [S] ids, with MASK where a code is to be predicted.
            spans: one per sample, their lengths adding up to S.
        Returns:
            [S, codebook_size]; the logits at a hidden token predict the code at that same place.
        Raises:
            DataError: the tokens do not match the spans.
        """
        check_tokens(tokens, spans)
        logits: Tensor = self._net.lm_head(self._net(tokens, spans), visual_logits)
        return logits

    def on_before_batch_transfer(self, batch: PackedBatch | Captions, dataloader_idx: int) -> MaskedBatch | Captions:
        """Hide tokens while the batch is still on the CPU: counting targets on a GPU would stall it."""
        if isinstance(batch, MaskedBatch) or not isinstance(batch, PackedBatch):
            return batch
        self._check_known(batch)
        batch = self._of_epoch(batch)
        return hide_tokens(batch, self.layout, self.mask_config, seed=self.seed, progress=self.progress)

    def _check_known(self, batch: PackedBatch) -> None:
        """Raise DataError for ids or lengths that the decoder does not have: a GPU would crash without saying why."""
        for spans, name in zip(batch.spans, batch.appearances, strict=True):
            if spans.length > self.shape.max_length:
                expected = f"at most {self.shape.max_length} tokens, model.max_length"
                raise DataError("longer than the context", where=name, got=spans.length, expected=expected)
        low, high = (int(end) for end in torch.aminmax(batch.tokens))
        if low < 0 or high >= self.layout.vocab_size:
            got, expected = f"ids from {low} to {high}", f"0 to {self.layout.vocab_size - 1}, layout {self.layout.name}"
            fix = "pack it by LumosModule.layout"
            raise DataError(
                "a batch of another vocabulary", where=", ".join(batch.names), got=got, expected=expected, fix=fix
            )

    def _of_epoch(self, batch: PackedBatch) -> PackedBatch:
        """Rename samples that a finite loader repeats in each epoch, so that each epoch hides other places."""
        trainer = self._trainer
        if trainer is None or not (trainer.training and trainer.current_epoch):
            return batch
        if getattr(trainer.train_dataloader, "is_endless", False):  # a stream names each appearance itself
            return batch
        return replace(batch, appearances=tuple(f"{name}/{trainer.current_epoch}" for name in batch.appearances))

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> dict[str, Tensor]:
        check_masked(batch)
        batch = self._self_forced(batch)
        if self.adapter_config.dropout > 0:  # the only draw from torch's own generators
            torch.manual_seed(derive_seed(self.seed, "adapter dropout", *batch.appearances))
        self._settle_attention(batch)
        outputs = self._step(batch)
        loss = self.loss_to_minimize(outputs["loss"], len(batch.target_index), batch.appearances)
        return outputs | {"loss": loss}

    def _self_forced(self, batch: MaskedBatch) -> MaskedBatch:
        """The batch itself or, for a share of batches, one with codes that the model drew as it does in sampling."""
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
        """On a GPU, settle what `auto` stands for: the fastest backend on the first batch of images, and of videos.

        Every rank measures for itself: the choices need not agree, so no communication is needed.
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
        if dataloader_idx:  # a user's second loader: Lightning's mean, exact on one process
            self.log(f"loss/{phase}", loss, batch_size=n_targets, sync_dist=True)
            return outputs
        mean = cast(WeightedMean, self.mean_loss[phase].to(loss.device))
        mean.update(loss, n_targets if batch.counts else 0)
        self.log(f"loss/{phase}", mean)
        return outputs

    def _step(self, batch: MaskedBatch) -> dict[str, Tensor]:
        check_masked(batch)
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
        return states.index_select(0, batch.target_index)  # indexing by [..] would sort the targets in its backward

    def step_flops(self, batch: MaskedBatch) -> float:
        """Floating-point operations of forward and backward over one batch, without recomputation."""
        forward = forward_flops(self.shape, batch.spans, len(batch.target_index))
        n_tokens, codes = sum(spans.length for spans in batch.spans), bool(self.adapter_config.codes)
        done = training_flops(forward, n_tokens=n_tokens, n_adapter=self.n_adapter, head_gradient=codes)
        return float(done.total)
